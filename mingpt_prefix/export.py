"""A prefix out to other libraries, and in from PEFT.

python -m mingpt_prefix.export --to peft runs/prefix-gpt2-1 adapter
python -m mingpt_prefix.export --to past-key-values runs/prefix-gpt2-1 past.safetensors
python -m mingpt_prefix.export --from peft adapter mine.safetensors --model gpt2

--to takes a run's folder or a prefix file. What --from writes is a prefix file: sample.py --prefix
writes by it, and train.py --init-prefix trains on from it.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from mingpt_prefix.config import MODELS
from mingpt_prefix.console import parse, run_script, say
from mingpt_prefix.errors import CheckpointError, ConfigError, PrefixError
from mingpt_prefix.folder import shown
from mingpt_prefix.peft_format import read_adapter, write_adapter, write_past_key_values
from mingpt_prefix.prefix_file import (
    PrefixInfo,
    check_alone,
    check_prefix,
    read_prefix,
    save_prefix,
)
from mingpt_prefix.runs import RunFolder, read_run
from mingpt_prefix.tables import TEXT_FORMAT
from mingpt_prefix.templates import template_format
from mingpt_prefix.weights import load_model


@dataclass(frozen=True)
class Args:
    """Flags of the command."""

    source: Positional[Path]
    """a run's folder or a prefix file; with --from, an adapter's folder"""
    target: Positional[Path]
    """the folder or file to write"""
    to: Literal["peft", "past-key-values"] | None = None
    """a folder that PEFT loads, or keys and values for transformers"""
    from_: Annotated[Literal["peft"] | None, arg(name="from")] = None
    """read what PEFT trained"""
    model: str | None = None
    """with --from: the model it was trained on; needed unless the adapter names one of OpenAI's"""
    input_template: str | None = None
    """with --from: how tables are spelled for it, as train.py has it"""


def prefix_file(source: Path) -> Path:
    """The prefix file of a finished run's folder, or the file itself.

    Raises:
        CheckpointError: for a folder that is none of a run, or of one that has no prefix (yet).
    """
    if not source.is_dir():
        return source
    content = read_run(source)
    mode = content["config"].get("mode")
    if mode != "prefix":
        what = "a run of another mode, which leaves no prefix that is whole by itself"
        raise CheckpointError(f"{shown(source)}: {what}")
    if content.get("result") is None:
        raise CheckpointError(f"{shown(source)}: the run has not ended")
    return RunFolder(source).prefix_file


def export_prefix(source: Path, to: str, target: Path) -> None:
    """Write the prefix of `source` to `target`, in the form `to`.

    Raises:
        CheckpointError, PrefixError: naming the file.
    """
    file = prefix_file(source)
    prefix, info = read_prefix(file)
    write = write_adapter if to == "peft" else write_past_key_values
    try:
        check_alone(info)
        write(target, prefix, info)
    except PrefixError as error:
        raise PrefixError(f"{shown(file)}: {error}") from None


def import_adapter(folder: Path, target: Path, model: str | None, template: str | None) -> None:
    """Write the adapter in `folder` as a prefix file of `model`.

    Raises:
        PrefixError, WeightsError, ConfigError: for another model's adapter, or none at all.
    """
    adapter = read_adapter(folder)
    base = model or adapter.base or (adapter.info.base if adapter.info else "")
    if base not in MODELS and not model:
        raise ConfigError(f"{shown(folder)}: name the model that it was trained on with --model")
    if adapter.base and base in MODELS and base != adapter.base:
        raise PrefixError(f"{shown(folder)}: it was trained on {adapter.base}, not on {base}")
    loaded = load_model(base, "cpu", "fp32")
    info = adapter.info or PrefixInfo(
        base=loaded.name,
        fingerprint=loaded.fingerprint,
        length=int(adapter.prefix.lengths[0]),
        text_format=template_format(template) if template else TEXT_FORMAT,
        placement="prefix",
        training={},
    )
    try:
        check_prefix(info, adapter.prefix, loaded)
    except PrefixError as error:
        raise PrefixError(f"{shown(folder)}: {error}") from None
    save_prefix(target, adapter.prefix.kv, info)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""

    def run() -> int:
        args = parse(Args, argv, "mingpt_prefix.export", __doc__)
        if (args.to is None) == (args.from_ is None):
            raise ConfigError("one of --to and --from is needed, and only one")
        if args.to is not None:
            if args.model or args.input_template:
                raise ConfigError("--model and --input-template go with --from")
            export_prefix(args.source, args.to, args.target)
        else:
            import_adapter(args.source, args.target, args.model, args.input_template)
        say(f"Written: {shown(args.target)}.")
        return 0

    return run_script("mingpt_prefix.export", run)


if __name__ == "__main__":
    sys.exit(main())
