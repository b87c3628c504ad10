"""A compact GPT-2 that learns table-to-text by prefix-tuning.
    mingpt-prefix train --mode prefix
    mingpt-prefix sample --table "name[The Mill], eatType[pub]"
    mingpt-prefix score --data sample

Each command has a --help of its own, and `mingpt-prefix --version` tells the version.
"""

import sys
from collections.abc import Sequence
from dataclasses import make_dataclass
from importlib import import_module
from typing import Annotated, Union

from tyro.conf import subcommand

from mingpt_prefix import __version__
from mingpt_prefix.cli.flags import as_tyro_shows
from mingpt_prefix.cli.terminal import parse, run_script, say
from mingpt_prefix.errors import ConfigError, meant, printable

# (module, its flags, what it does); a module is imported when it is needed, for some bring torch.
PROGRAMS = {
    "train": ("cli.train_command", "TrainArgs", "train a prefix, LoRA, or all weights of a model"),
    "sample": ("cli.sample", "SampleConfig", "write sentences for tables"),
    "score": ("cli.score", "ScoreConfig", "write sentences for a data set, and score them"),
    "serve": ("serve.command", "SampleConfig", "a page to try prefixes on, and HTTP endpoints"),
    "export": ("export.convert", "Args", "prefixes and LoRA to PEFT and transformers, and back"),
    "bank": ("bank.store", "Args", "put several prefixes of one model into a folder"),
}


def main(argv: Sequence[str] | None = None, prog: str = "mingpt-prefix") -> int:
    """The whole program; returns the exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv and argv[0] in PROGRAMS:
        module = import_module(f"mingpt_prefix.{PROGRAMS[argv[0]][0]}")
        return module.main(argv[1:], f"{prog} {argv[0]}")

    def run() -> int:
        if argv == ["--version"]:
            say(f"mingpt-prefix {__version__}")
        elif argv and not argv[0].startswith("-"):
            hint = meant(argv[0], PROGRAMS) or f"; there are {', '.join(PROGRAMS)}"
            raise ConfigError(f"unknown command '{printable(argv[0])}'{hint}")
        else:
            completes = bool(argv) and argv[0].startswith("--tyro-")  # the shell, by all flags
            parse(_programs(completes), argv or ["--help"], prog, __doc__)
        return 0

    return run_script(prog, run)


def _programs(with_flags: bool) -> type:
    """What tyro takes for subcommands."""
    kinds = []
    for name, (module, flags, what) in PROGRAMS.items():
        kind = make_dataclass("Flags", [])
        if with_flags:
            program = import_module(f"mingpt_prefix.{module}")
            kind = as_tyro_shows(getattr(program, flags), getattr(program, "GROUPS", ()))
        kinds.append(Annotated[kind, subcommand(name, description=what)])
    return Union[tuple(kinds)]  # noqa: UP007


if __name__ == "__main__":
    sys.exit(main(prog="python -m mingpt_prefix"))
