"""Choosing and loading a pipeline's model and prefix: from Python, or by sample.py's flags.

pipeline = load_pipeline("runs/prefix-tiny-1")
pipeline(["name[The Mill], eatType[pub]"])
"""

from dataclasses import replace
from pathlib import Path

from mingpt_prefix import tiny
from mingpt_prefix.adapters.lora_file import FORMAT as LORA_FORMAT
from mingpt_prefix.adapters.lora_file import load_folded
from mingpt_prefix.adapters.prefix_file import (
    FORMAT,
    PrefixInfo,
    check_prefix,
    read_fitting,
    read_prefix,
)
from mingpt_prefix.batch import PrefixKV
from mingpt_prefix.checkpoints.pretrained import load_model
from mingpt_prefix.checkpoints.run_folder import (
    RUNS,
    RunFolder,
    finished_runs,
    kept_by,
    newest_finished,
)
from mingpt_prefix.data.templates import text_format_of
from mingpt_prefix.data.tokenizer import tokenizer_of
from mingpt_prefix.errors import ConfigError, PrefixError, shown
from mingpt_prefix.evaluation.sample_config import SampleConfig
from mingpt_prefix.evaluation.table_to_text import Pipeline
from mingpt_prefix.model import GPT2


def load_pipeline(
    source: str | Path | None = None,
    model: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    attention: str = "auto",
) -> Pipeline:
    """Load the pipeline of a finished run's folder, a prefix file or a LoRA file.

    Without a `source`, the newest finished run under runs/ is loaded, or else the embedded model's
    prefix, as in sample.py. `model` is the base that the source was trained on; it is only needed
    if that is a folder. `device`: auto, cpu or cuda; `dtype`: auto, fp32, bf16, fp16 or fp64;
    `attention`: auto, reference or triton.

    Raises:
        CheckpointError, PrefixError, LoraError, WeightsError: naming the file that is missing,
            damaged, or does not fit the model.
        ConfigError: if the device, dtype or attention is unknown or unavailable.
        DataError: if GPT-2's tokenizer is not cached and cannot be downloaded.
    """
    how = {"model": model, "device": device, "dtype": dtype, "attention": attention}
    if source is None:
        return open_pipeline(SampleConfig(**how))
    path = Path(source)
    kind = "run" if path.is_dir() else "lora" if LORA_FORMAT.claims(path) else "prefix"
    return open_pipeline(SampleConfig(**how, **{kind: path}))


def open_pipeline(config: SampleConfig) -> Pipeline:
    """The pipeline that the flags name; without --run, --prefix and --lora, the newest that fits.

    That is the newest finished run under runs/, or else the embedded model with its shipped prefix.
    With only --model: the newest prefix trained on it, or else the model without a prefix.

    Raises:
        ConfigError, CheckpointError, WeightsError, PrefixError: if flags exclude each other, or
            files are missing, damaged, or do not fit each other.
    """
    if config.run is not None and (config.prefix is not None or config.lora is not None):
        name = "--prefix" if config.prefix is not None else "--lora"
        raise ConfigError(f"--run and {name} exclude each other")
    if config.lora is not None:
        called = f"the LoRA {shown(config.lora)}"
        if config.prefix is not None:
            called = f"the prefix {shown(config.prefix)} and {called}"
        return _with_lora(config, config.lora, config.prefix, called)
    if config.prefix is not None:
        return _with_prefix(config, config.prefix, f"the prefix {shown(config.prefix)}")
    if config.run is not None:
        return _of_run(config, config.run, shown(config.run))
    if config.model is not None:
        return _of_model(config)
    if (run := newest_finished(RUNS)) is not None:
        return _of_run(config, run, f"{shown(run)} (the newest finished run)")
    why = f"the shipped prefix (no finished run under {RUNS}/)"
    return _with_prefix(config, tiny.PREFIX, why)


def _of_run(config: SampleConfig, folder: Path, called: str) -> Pipeline:
    kept = kept_by(folder)
    if kept.lora is not None:
        what = "LoRA" if kept.prefix is None else "the prefix and LoRA"
        return _with_lora(config, kept.lora, kept.prefix, f"{what} of {called}")
    if kept.prefix is not None:
        return _with_prefix(config, kept.prefix, f"the prefix of {called}")
    if config.model is not None:
        what = f"is a {kept.mode} run, with a model of its own"
        raise ConfigError(f"--model: {shown(folder)} {what}")
    pipeline = _pipeline(_load(config, kept.model), None, None, f"the model of {called}")
    text_format = text_format_of(kept.template)
    return replace(pipeline, text_format=text_format, slots=_slots(kept.settings))


def _with_prefix(config: SampleConfig, file: Path, called: str) -> Pipeline:
    kv, info = read_prefix(file)
    with FORMAT.naming(file):
        base = FORMAT.base_to_load(info, config.model)
    model = _load(config, base)
    with FORMAT.naming(file):
        check_prefix(info, kv, model)
    return _pipeline(model, kv, info, f"{called} on {shown(base)}")


def _with_lora(config: SampleConfig, file: Path, prefix: Path | None, called: str) -> Pipeline:
    model, lora = load_folded(config.model, file, config.device, config.dtype, config.attention)
    called += f" on {shown(config.model or lora.base)}"
    if prefix is None:
        pipeline = _pipeline(model, None, None, called)
        return replace(pipeline, text_format=lora.text_format, slots=_slots(lora.training))
    return _pipeline(model, *read_fitting(prefix, model), called)


def _of_model(config: SampleConfig) -> Pipeline:
    model = _load(config, config.model)
    for file in (*(RunFolder(run).prefix_file for run in finished_runs(RUNS)), tiny.PREFIX):
        fitting = _read_if_fitting(file, model)
        if fitting is not None:
            called = f"the prefix {shown(file)} (the newest for this model)"
            kv, info = fitting
            return _pipeline(model, kv, info, f"{called} on {shown(config.model)}")
    called = f"{shown(config.model)} without a prefix (none was made for it)"
    return _pipeline(model, None, None, called)


def _read_if_fitting(file: Path, model: GPT2) -> tuple[PrefixKV, PrefixInfo] | None:
    try:
        return read_fitting(file, model)
    except PrefixError:
        return None


def _load(config: SampleConfig, model: str | Path) -> GPT2:
    return load_model(model, config.device, config.dtype, config.attention)


def where_computed(model: GPT2) -> str:
    """The model's device, dtype and attention, in words."""
    dtype = str(model.wte.weight.dtype).removeprefix("torch.")
    return f"on {model.device} ({dtype}, {model.attention} attention)"


def _pipeline(
    model: GPT2, prefix: PrefixKV | None, info: PrefixInfo | None, called: str
) -> Pipeline:
    tokenizer, origin = tokenizer_of(model.config), f"{called}, {where_computed(model)}"
    if info is None:
        return Pipeline(model, tokenizer, origin=origin)
    how = (info.text_format, info.placement, origin, _slots(info.training))
    return Pipeline(model, tokenizer, prefix, *how)


def _slots(settings: dict) -> tuple[str, ...]:
    """The slot names in a run's settings, which may come from a stranger's file."""
    slots = settings.get("slots")
    is_list = isinstance(slots, list) and all(isinstance(name, str) for name in slots)
    return tuple(slots) if is_list else ()
