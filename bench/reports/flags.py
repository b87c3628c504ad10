"""Markdown of the flags of a program, group by group."""

from importlib import import_module
from typing import Any, Literal, get_args, get_origin

from mingpt_prefix.__main__ import PROGRAMS
from mingpt_prefix.cli.flags import groups_of
from reports.render import table

# What score and serve share with sample is shown there.
_OWN = {"score": ("data", "output"), "serve": ("server",)}


def flags_tables(program: str) -> str:
    """A table for each group."""
    module, kind, _ = PROGRAMS[program]
    loaded = import_module(f"mingpt_prefix.{module}")
    titles = _OWN.get(program, getattr(loaded, "GROUPS", ()))
    parts, groups = [], list(groups_of(getattr(loaded, kind), titles))
    for title, flags in groups:
        rows = []
        for flag in flags:
            choices = "{" + ",".join(choices_of(flag.kind)) + "}"
            shown = f"{flag.option} {choices}".removesuffix(" {}")
            rows.append((f"`{shown}`", flag.help.replace("|", "\\|"), flag.default))
        parts.append(table((title if len(groups) > 1 else "flag", "", "default"), rows))
    return "\n\n".join(parts)


def choices_of(kind: Any) -> list[str]:
    """The values that a type names."""
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    return [name for part in get_args(kind) for name in choices_of(part)]
