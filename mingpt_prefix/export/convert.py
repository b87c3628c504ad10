"""Prefixes and LoRA out to other libraries, and in from PEFT.
    mingpt-prefix export --to peft runs/prefix-gpt2-1 adapter
    mingpt-prefix export --to past-key-values runs/prefix-gpt2-1 past.safetensors
    mingpt-prefix export --from peft adapter mine.safetensors --model gpt2

--to takes a run's folder, a prefix file or a LoRA file. --from writes a prefix file (for `sample
--prefix`, and `train --init-prefix` to train on), or a LoRA file (for `sample --lora`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

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
from mingpt_prefix.checkpoints.pretrained import load_model
from mingpt_prefix.checkpoints.run_folder import kept_by
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
    """read what PEFT trained"""
    model: str | None = None
    """with --from: the model it was trained on; needed unless the adapter names one of OpenAI's"""
    input_template: str | None = None
    """with --from: what it is given for a table: "{title} by {author}", say"""


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


def export(source: Path, to: str, target: Path) -> None:
    """Write what `source` holds to `target`, in the form `to`.

    Raises:
        CheckpointError, PrefixError, LoraError, ConfigError: naming the file.
    """
    file = learned_file(source)
    if LORA_FORMAT.claims(file):
        _export_lora(file, to, target)
    else:
        _export_prefix(file, to, target)


def _export_prefix(file: Path, to: str, target: Path) -> None:
    prefix, info = read_prefix(file)
    write = write_adapter if to == "peft" else write_past_key_values
    with PREFIX_FORMAT.naming(file):
        check_alone(info)
        write(target, prefix, info)


def _export_lora(file: Path, to: str, target: Path) -> None:
    if to != "peft":
        raise ConfigError(f"--to {to}: {shown(file)} is LoRA, which has no keys and values")
    write_lora_adapter(target, *read_lora(file))


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
            if args.model or args.input_template:
                raise ConfigError("--model and --input-template go with --from")
            export(args.source, args.to, args.target)
        else:
            import_adapter(args.source, args.target, args.model, args.input_template)
        say(f"Written: {shown(args.target)}.")
        return 0

    return run_script(prog, run)
