"""From train.py's flags to a `TrainConfig`: what is not said is chosen here, and why is told."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from mingpt_prefix.config import MODELS, Mode, ModelConfig, TrainConfig, recipe, to_json
from mingpt_prefix.errors import CheckpointError, ConfigError, WeightsError
from mingpt_prefix.folder import CONFIG_FILE, read_config
from mingpt_prefix.runs import read_run
from mingpt_prefix.tables import printable
from mingpt_prefix.weights import choose_device, weights_at_hand

RUNS = Path("runs")


@dataclass(frozen=True)
class TrainArgs:
    """Flags of train.py; those not given come from the recipe of the mode and model."""

    mode: Mode = "prefix"
    """what is trained: a prefix, all weights, or (pretrain) all weights on plain text"""
    model: str | None = None
    """tiny, gpt2, gpt2-medium, gpt2-large, gpt2-xl, or a folder as transformers saves a model"""
    data: tuple[str, ...] = ()
    """e2e, sample, files (.csv, .jsonl, .json) or folders; for pretrain .txt or .txt.xz files"""
    prefix_length: int | None = None
    """rows in front of every layer's keys and values"""
    reparam: bool | None = None
    """train the rows through an embedding and an MLP (the paper's way), or directly"""
    lr: float | None = None
    epochs: float | None = None
    max_steps: int | None = None
    """end after so many steps, whatever --epochs says"""
    batch_size: int | None = None
    micro_batch_size: int | None = None
    """sequences at once; gradients add up to --batch-size"""
    optimizer: Literal["adamw", "muon"] | None = None
    """muon takes the blocks' matrices, and AdamW the rest; for finetune and pretrain"""
    dropout: float | None = None
    weight_decay: float | None = None
    warmup: float | None = None
    """share of all steps in which the learning rate rises"""
    evals: int | None = None
    """how many dev losses are taken, evenly spaced"""
    block_size: int | None = None
    """tokens in a window of pretraining"""
    seed: int | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    attention: Literal["auto", "reference"] = "auto"
    out: Path | None = None
    """the run's folder; a new one under runs/ if not given"""
    resume: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """go on with the run in this folder, exactly where it was saved"""


_CHOSEN = ("model", "data", "device", "dtype", "attention", "out", "resume", "mode")
_RECIPE_FLAGS = tuple(f.name for f in dataclasses.fields(TrainArgs) if f.name not in _CHOSEN)


def resolve(args: TrainArgs) -> tuple[TrainConfig, str]:
    """The settings of a new run, and a line that says what was chosen and why.

    Raises:
        ConfigError: for a setting out of range, or one that the mode has no use for.
        WeightsError: for a model that is not to be had.
    """
    device = choose_device(args.device)
    model, why_model = _choose_model(args, device)
    shape = model_shape(model)
    is_tiny = shape.tokenizer == "tiny"
    if args.mode == "pretrain" and not args.data:
        raise ConfigError("--mode pretrain needs --data with .txt or .txt.xz files")
    data = args.data or (("sample",) if is_tiny else ("e2e",))
    given = {name: getattr(args, name) for name in _RECIPE_FLAGS}
    if args.mode != "prefix" and (args.prefix_length, args.reparam) != (None, None):
        raise ConfigError(f"--prefix-length and --reparam are for --mode prefix, not {args.mode}")
    dtype = args.dtype
    if dtype == "auto":
        dtype = "bf16" if device.type == "cuda" else "fp32"
    config = TrainConfig(
        mode=args.mode,
        model=model,
        data=data,
        device=device.type,
        dtype=dtype,
        attention="reference",
        **recipe(args.mode, is_tiny, **given),
    )
    where = "the GPU" if device.type == "cuda" else "the CPU"
    what = {"prefix": "a prefix for", "finetune": "all weights of", "pretrain": "from scratch"}
    line = f"Training {what[args.mode]} {model} on {', '.join(data)}, on {where} ({dtype})"
    return config, f"{line}: {why_model}."


def _choose_model(args: TrainArgs, device: torch.device) -> tuple[str, str]:
    if args.model is not None:
        return args.model, "as --model says"
    if args.mode == "pretrain":
        raise ConfigError("--mode pretrain needs --model: a name (its shape) or a folder")
    if device.type != "cuda":
        return "tiny", "there is no GPU, so the embedded model was chosen; --model names another"
    at_hand, why = weights_at_hand("gpt2")
    if at_hand:
        return "gpt2", f"there is a GPU, and GPT-2's weights are at hand ({why})"
    return "tiny", f"GPT-2's weights are not to be had ({why}), so the embedded model was chosen"


def model_shape(model: str) -> ModelConfig:
    """The shape of a known name or of a folder; raises WeightsError for neither."""
    if model in MODELS:
        return MODELS[model]
    if not Path(model).is_dir():
        known = ", ".join(MODELS)
        raise WeightsError(f"unknown model '{printable(model)}'; known: {known}, or a folder")
    return read_config(Path(model) / CONFIG_FILE)


def resume(args: TrainArgs) -> tuple[TrainConfig, str]:
    """The settings of the run in `args.resume`, and a line that says so.

    Raises:
        CheckpointError: when it is no run folder, or has ended.
        ConfigError: when a flag says otherwise than the run's settings.
    """
    content = read_run(args.resume)
    config = config_from_json(content.get("config"))
    if content.get("result") is not None:
        raise CheckpointError(f"{args.resume}: this run has ended; nothing is left to do")
    defaults = TrainArgs()
    for name in ("mode", "model", "data", "device", "dtype", *_RECIPE_FLAGS):
        given = getattr(args, name)
        if given != getattr(defaults, name) and given != getattr(config, name):
            flag = name.replace("_", "-")
            raise ConfigError(f"--{flag} {given}: the run has {getattr(config, name)}")
    if args.out is not None:
        raise ConfigError("--out: a resumed run stays in its folder")
    return config, f"Going on with the {config.mode} run of {config.model} in {args.resume}."


def config_from_json(saved: object) -> TrainConfig:
    """A `TrainConfig` as run.json holds it.

    Raises:
        CheckpointError: when settings are missing, unknown or of the wrong type.
    """
    if not isinstance(saved, dict):
        raise CheckpointError("run.json: no settings in it")
    try:
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()}
        config = TrainConfig(**values)
        same = json.loads(json.dumps(to_json(config))) == saved
    except TypeError as error:
        raise CheckpointError(f"run.json: the settings are not a run's: {error}") from None
    if not same:
        raise CheckpointError("run.json: settings are missing in it")
    return config


def new_run_folder(config: TrainConfig) -> Path:
    """`runs/prefix-tiny-1`, or the next number that is free."""
    stem = f"{config.mode}-{Path(config.model).name}"
    taken = {path.name for path in RUNS.glob(f"{stem}-*")}
    number = next(n for n in range(1, len(taken) + 2) if f"{stem}-{n}" not in taken)
    return RUNS / f"{stem}-{number}"
