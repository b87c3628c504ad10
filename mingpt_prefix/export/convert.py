"""Prefixes and LoRA out to other libraries, and in from PEFT.
    mingpt-prefix export --to peft runs/prefix-gpt2-1 adapter
    mingpt-prefix export --to past-key-values runs/prefix-gpt2-1 past.safetensors
    mingpt-prefix export --from peft adapter mine.safetensors --model gpt2

With --to, SOURCE is a run's folder, a prefix file or a LoRA file; if the base of such a file is a
model's folder, --model names it, so that PEFT finds it. With --from, TARGET becomes a prefix file
(for `sample --prefix` and `train --init-prefix`) or a LoRA file (for `sample --lora`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from mingpt_prefix import tiny
from mingpt_prefix.adapters.lora_file import FORMAT as LORA_FORMAT
from mingpt_prefix.adapters.lora_file import LoraInfo, check_lora, read_lora, save_lora
from mingpt_prefix.adapters.prefix_file import FORMAT as PREFIX_FORMAT
from mingpt_prefix.adapters.prefix_file import (
    PrefixInfo,
    check_alone,
    check_prefix,
    read_prefix,
    save_prefix,
)
from mingpt_prefix.checkpoints.hub import REPOS
from mingpt_prefix.checkpoints.pretrained import load_model
from mingpt_prefix.checkpoints.run_folder import kept_by, read_run
from mingpt_prefix.cli.terminal import parse, run_script, say
from mingpt_prefix.config import MODELS
from mingpt_prefix.data.templates import text_format_of
from mingpt_prefix.errors import CheckpointError, ConfigError, shown
from mingpt_prefix.export.peft_folder import read_config
from mingpt_prefix.export.peft_lora import (
    PEFT_TYPE,
    LoraAdapter,
    read_lora_adapter,
    write_lora_adapter,
)
from mingpt_prefix.export.peft_prefix import (
    PrefixAdapter,
    read_adapter,
    write_adapter,
    write_past_key_values,
)
from mingpt_prefix.model import GPT2


@dataclass(frozen=True)
class Args:
    """Flags of the command."""

    source: Positional[Path]
    """a run's folder, a prefix file or a LoRA file; with --from, an adapter's folder"""
    target: Positional[Path]
    """the folder or file to write"""
    to: Literal["peft", "past-key-values"] | None = None
    """a folder that PEFT loads, or a prefix's keys and values for transformers"""
    from_: Annotated[Literal["peft"] | None, arg(name="from")] = None
    """import an adapter that PEFT trained"""
    model: str | None = None
    """the model it was trained on; needed with --from unless the adapter names one of OpenAI's
    models, and with --to peft if that model is a folder and the source is a file"""
    input_template: str | None = None
    """with --from: the model's input for a table ("{title} by {author}", for example)"""


def learned_file(source: Path) -> Path:
    """The one file that a finished run learned beside its frozen model, or the file itself.

    Raises:
        CheckpointError: for a folder that is none of a run, or of one that has no such file (yet).
    """
    if not source.is_dir():
        return source
    kept = kept_by(source)
    if kept.prefix is not None and kept.lora is not None:
        what = "a run of prefix+lora, and other libraries have no adapter that is both"
        raise CheckpointError(f"{shown(source)}: {what}")
    if kept.model is not None:
        what = "a run of another mode, which leaves no prefix or LoRA"
        raise CheckpointError(f"{shown(source)}: {what}")
    return kept.prefix or kept.lora


def export(source: Path, to: str, target: Path, model: str | None = None) -> None:
    """Write what `source` holds to `target`, in the form `to`; `model` is what it was trained on.

    Raises:
        CheckpointError, PrefixError, LoraError, WeightsError, ConfigError: naming the file.
    """
    file = learned_file(source)
    is_lora = LORA_FORMAT.claims(file)
    form = LORA_FORMAT if is_lora else PREFIX_FORMAT
    learned, info = read_lora(file) if is_lora else read_prefix(file)
    if is_lora and to != "peft":
        raise ConfigError(f"--to {to}: {shown(file)} is LoRA, which has no keys and values")
    given = None if model is None else load_model(model, "cpu", "fp32")
    with form.naming(file):
        if given is not None:
            form.check_base(info, given.fingerprint, given.name)
        if not is_lora:
            check_alone(info)
        if to != "peft":
            write_past_key_values(target, learned, info)
            return
        write = write_lora_adapter if is_lora else write_adapter
        write(target, learned, info, _base_for_peft(model or info.base or _base_of(source)))


def _base_of(source: Path) -> str:
    """The base model as the settings of the run `source` name it; "" for a file."""
    return str(read_run(source)["config"].get("model", "")) if source.is_dir() else ""


def _base_for_peft(model: str) -> str | None:
    """A known model's hub name, or the path of a folder; None for neither."""
    if model in REPOS:
        return REPOS[model]
    folder = tiny.MODEL if model == "tiny" else Path(model)
    # A path that starts at the root: any other might be taken for a name on the hub.
    return str(folder.resolve()) if model and folder.is_dir() else None


def import_adapter(folder: Path, target: Path, model: str | None, template: str | None) -> None:
    """Write the adapter in `folder` as a prefix file or a LoRA file of `model`.

    Raises:
        PrefixError, LoraError, WeightsError, ConfigError: for another model's adapter, or none.
    """
    is_lora = read_config(folder).get("peft_type") == PEFT_TYPE
    form = LORA_FORMAT if is_lora else PREFIX_FORMAT
    adapter = read_lora_adapter(folder) if is_lora else read_adapter(folder)
    base = model or adapter.base or (adapter.info.base if adapter.info else "")
    if base not in MODELS and not model:
        raise ConfigError(f"{shown(folder)}: name the model that it was trained on with --model")
    if adapter.base and base in MODELS and base != adapter.base:
        raise form.error(f"{shown(folder)}: it was trained on {adapter.base}, not on {base}")
    loaded = load_model(base, "cpu", "fp32")
    text_format = text_format_of(template or "")
    if isinstance(adapter, LoraAdapter):
        lora = adapter.info or _lora_info(adapter, loaded, text_format)
        with form.naming(folder):
            check_lora(lora, adapter.low_rank, loaded)
        save_lora(target, adapter.low_rank, lora)
    else:
        info = adapter.info or _prefix_info(adapter, loaded, text_format)
        with form.naming(folder):
            check_prefix(info, adapter.prefix, loaded)
        save_prefix(target, adapter.prefix.kv, info)


def _prefix_info(adapter: PrefixAdapter, model: GPT2, text_format: str) -> PrefixInfo:
    return PrefixInfo(
        base=model.name,
        fingerprint=model.fingerprint,
        length=int(adapter.prefix.lengths[0]),
        text_format=text_format,
        placement="prefix",
        training={},
    )


def _lora_info(adapter: LoraAdapter, model: GPT2, text_format: str) -> LoraInfo:
    return LoraInfo(
        base=model.name,
        fingerprint=model.fingerprint,
        rank=adapter.rank,
        alpha=adapter.alpha,
        targets=adapter.targets,
        text_format=text_format,
        training={},
    )


def main(argv: Sequence[str] | None = None, prog: str = "mingpt-prefix export") -> int:
    """The command line; returns the exit code."""

    def run() -> int:
        args = parse(Args, argv, prog, __doc__)
        if (args.to is None) == (args.from_ is None):
            raise ConfigError("one of --to and --from is needed, and only one")
        if args.to is not None:
            if args.input_template:
                raise ConfigError("--input-template goes with --from")
            export(args.source, args.to, args.target, args.model)
        else:
            import_adapter(args.source, args.target, args.model, args.input_template)
        say(f"Saved {shown(args.target)}.")
        return 0

    return run_script(prog, run)
