"""From train.py's flags to a `TrainConfig`: chooses what the flags leave open, and says why."""

import dataclasses
import shlex
from pathlib import Path

import torch

from mingpt_prefix import tiny
from mingpt_prefix.adapters.learned import text_tokens
from mingpt_prefix.adapters.prefix_file import read_prefix, rows_digest
from mingpt_prefix.checkpoints.hf_format import CONFIG_FILE, read_config
from mingpt_prefix.checkpoints.hub import known_name
from mingpt_prefix.checkpoints.pretrained import (
    DTYPES,
    choose_attention,
    choose_device,
    model_folder,
    weights_at_hand,
)
from mingpt_prefix.checkpoints.resuming import config_from_json
from mingpt_prefix.checkpoints.run_folder import kept_by, read_run, read_run_file
from mingpt_prefix.cli.recipes import recipe
from mingpt_prefix.cli.train_args import LoraFlags, PrefixFlags, TrainArgs
from mingpt_prefix.config import MODELS, Mode, ModelConfig, TrainConfig, flag_name
from mingpt_prefix.data.datasets import load_examples
from mingpt_prefix.data.templates import TEMPLATE_FORMAT
from mingpt_prefix.data.tokenizer import load_tokenizer
from mingpt_prefix.errors import CheckpointError, ConfigError, DataError, shown

# Flags that only some modes use.
_FLAGS_OF = {
    ("prefix", "prefix+lora"): [field.name for field in dataclasses.fields(PrefixFlags)],
    ("lora", "prefix+lora"): [field.name for field in dataclasses.fields(LoraFlags)],
    ("prefix+lora",): ["lora_lr"],
}
_CHOSEN = (
    "model data device dtype attention graphs shard log out config resume mode no_reparam"
    " sweep sweep_width".split()
)
_RECIPE_FLAGS = tuple(f.name for f in dataclasses.fields(TrainArgs) if f.name not in _CHOSEN)
_SETTINGS = ("model", "data", "device", "dtype", "attention", *_RECIPE_FLAGS)


def _given(args: TrainArgs, name: str) -> object:
    """The value that the flags give the setting `name`, or the flag's default."""
    if name == "model" and args.model:
        return known_name(args.model) or args.model
    if name != "reparam":
        return getattr(args, name)
    if args.reparam and args.no_reparam:
        raise ConfigError("--reparam and --no-reparam exclude each other")
    return True if args.reparam else False if args.no_reparam else None


def resolve(args: TrainArgs) -> tuple[TrainConfig, str]:
    """The settings of a new run, and a line that says what was chosen and why.

    Raises:
        ConfigError: for a setting out of range, or one that the mode has no use for.
        WeightsError: for a model that cannot be loaded.
    """
    mode = args.mode or "prefix"
    if args.sweep_width is not None:
        raise ConfigError("--sweep-width is for --sweep")
    if mode == "pretrain" and not (args.model and args.data):
        raise ConfigError("--mode pretrain needs --model and --data with .txt or .txt.xz files")
    _check_flags_of(mode, args)
    device = choose_device(args.device)
    model, why = _given(args, "model"), "as --model says"
    if not model:
        model, why = _choose_model(device)
    shape = model_shape(model)
    is_tiny = shape.tokenizer in tiny.VOCABULARIES
    data = args.data or (("sample",) if is_tiny else ("e2e",))
    dtype = args.dtype
    if dtype == "auto":
        dtype = "bf16" if device.type == "cuda" else "fp32"
    attention = choose_attention(args.attention, device, DTYPES[dtype])
    given = {name: _given(args, name) for name in _RECIPE_FLAGS}
    if args.init_text is not None:
        given["init"] = args.init or "noise"  # whatever the recipe says
        if args.prefix_length is None:
            given["prefix_length"] = len(text_tokens(args.init_text, shape))
    if args.init_prefix is not None:
        given |= _of_prefix(args, args.init_prefix)
    config = TrainConfig(
        mode=mode,
        model=model,
        data=data,
        device=device.type,
        dtype=dtype,
        attention=attention,
        **recipe(mode, is_tiny, **given),
    )
    what = {
        "prefix": "a prefix for",
        "lora": "LoRA of",
        "prefix+lora": "a prefix and LoRA for",
        "finetune": "all weights of",
        "pretrain": "all weights of",
    }
    start = " from fresh weights" if mode == "pretrain" and model in MODELS else ""
    where = "the GPU" if device.type == "cuda" else "the CPU"
    how = f"on {where} ({dtype}, {attention} attention)"
    line = f"Training {what[mode]} {model}{start} on {', '.join(data)}, {how}"
    return config, f"{line}: {why}."


def repeat(args: TrainArgs) -> tuple[TrainConfig, str]:
    """The settings of the run whose run.json is `args.config`, but for those that flags name, and a
    line that says so.

    Raises:
        CheckpointError: when it is no run's.
        ConfigError: for a setting that does not go with the others, or not with this machine.
    """
    config = config_from_json(read_run_file(args.config)["config"])
    defaults = TrainArgs()
    values = {name: _given(args, name) for name in ("mode", *_SETTINGS)}
    given = {name: value for name, value in values.items() if value != _given(defaults, name)}
    changed = ", ".join(f"--{flag_name(name)}" for name in given)
    _check_flags_of(args.mode or config.mode, args)
    if args.init_prefix is not None:
        given |= _of_prefix(args, args.init_prefix)
    if "batch_size" in given:
        given.setdefault("micro_batch_size", min(config.micro_batch_size, args.batch_size))
    config = dataclasses.replace(config, **given)
    choose_attention(config.attention, choose_device(config.device), DTYPES[config.dtype])
    exceptions = f", except {changed}" if changed else ""
    return config, f"Training with the settings of {shown(args.config)}{exceptions}."


def _check_flags_of(mode: Mode, args: TrainArgs) -> None:
    """Raises ConfigError for flags that are given, and are for other modes."""
    for modes, names in _FLAGS_OF.items():
        given = [name for name in names if getattr(args, name) != getattr(TrainArgs, name)]
        if mode not in modes and given:
            flags = ", ".join(f"--{flag_name(name)}" for name in given)
            verb = "is" if len(given) == 1 else "are"
            raise ConfigError(f"{flags} {verb} for --mode {' or '.join(modes)}, not {mode}")


def _of_prefix(args: TrainArgs, file: str) -> dict:
    """The settings that a run takes from the prefix it starts from.

    Raises:
        PrefixError: when the file is missing or damaged.
        ConfigError: when a flag says otherwise.
    """
    kv, info = read_prefix(Path(file))
    taken = {"prefix_length": info.length, "placement": info.placement}
    for name, value in taken.items():
        if getattr(args, name) not in (None, value):
            given = f"--{flag_name(name)} {getattr(args, name)}"
            raise ConfigError(f"{given}: the prefix {shown(file)} has {value}")
    taken |= {"init": args.init or "noise", "init_digest": rows_digest(kv)}
    if args.input_template is None and info.text_format.startswith(TEMPLATE_FORMAT):
        taken["input_template"] = info.text_format.removeprefix(TEMPLATE_FORMAT)
    return taken


def _choose_model(device: torch.device) -> tuple[str, str]:
    """gpt2 if it can be trained on E2E at once, else tiny; and why."""
    if device.type != "cuda":
        return "tiny", "no GPU found, so using the embedded model; choose another with --model"
    at_hand, why = weights_at_hand("gpt2")
    if at_hand:
        try:
            load_tokenizer("gpt2")
            load_examples("e2e", "test")
            return "gpt2", f"there is a GPU, and GPT-2's weights are at hand ({why})"
        except DataError as error:
            why = str(error)
    return "tiny", f"GPT-2 cannot be trained here ({why}), so using the embedded model"


def _train_on(folder: Path) -> str:
    """How to train further from what a finished run has kept, in words."""
    kept, further = kept_by(folder), "to train further, start a new run with"
    if kept.model is not None:
        return f"{further} --model {shlex.quote(str(kept.model))}"
    if kept.prefix is not None and kept.lora is None:
        return f"{further} --init-prefix {shlex.quote(str(kept.prefix))}"
    return "nothing is left to do"


def model_shape(model: str) -> ModelConfig:
    """The shape of a known name, a folder or a hub id; raises WeightsError for none of them."""
    if model in MODELS:
        return MODELS[model]
    return read_config(model_folder(model) / CONFIG_FILE)


def resume(args: TrainArgs) -> tuple[TrainConfig, str]:
    """The settings of the run in `args.resume`, and a line that says so.

    Flags may only change what the result does not depend on: where the data and the base model's
    folder have moved to, and --grad-checkpoint.

    Raises:
        CheckpointError: when it is no run folder, or has ended.
        ConfigError: when a flag says otherwise than the run's settings, or they name what this
            machine cannot do.
    """
    content = read_run(args.resume)
    config = config_from_json(content.get("config"))
    if content.get("result") is not None:
        raise CheckpointError(
            f"{shown(args.resume)}: this run has finished; {_train_on(args.resume)}"
        )
    defaults = TrainArgs()
    for name in ("mode", *_SETTINGS):
        given = _given(args, name)
        had = getattr(config, name)
        if given in (_given(defaults, name), had):
            continue
        # What the files hold is compared later; a known model's name is kept in the prefix file.
        has_moved = name == "data" or (name == "model" and not {given, had} & MODELS.keys())
        if not has_moved and name != "grad_checkpoint":
            raise ConfigError(f"--{flag_name(name)} {given}: the run has {had}")
        config = dataclasses.replace(config, **{name: given})
    if args.out is not None:
        raise ConfigError("--out: a resumed run stays in its folder")
    choose_attention(config.attention, choose_device(config.device), DTYPES[config.dtype])
    return config, f"Continuing the {config.mode} run of {config.model} in {args.resume}."
