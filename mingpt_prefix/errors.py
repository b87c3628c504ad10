"""Errors that a user can fix, what their messages quote, and the commands they propose.

Programs print the one-line message and exit with code 2. Text from files, flags and libraries goes
through `printable`: short, on one line, without control characters.
"""

import difflib
from collections.abc import Iterable

_MODULE = "python -m mingpt_prefix"
program = "mingpt-prefix"  # what this one was called as; cli.terminal sets it


class MingptPrefixError(ValueError):
    """An error that a user can fix; its message is one line."""


class TableError(MingptPrefixError):
    """A table that cannot be read; `position` is the 0-based character where it goes wrong."""

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.position = position


class PromptError(TableError):
    """A prompt that cannot be read; `position` is the 0-based character where it goes wrong."""


class DataError(MingptPrefixError):
    """A data set that is missing, cannot be downloaded, or has a bad row."""


class WeightsError(MingptPrefixError):
    """Base weights that are missing, damaged, or belong to another model."""


class AdapterError(MingptPrefixError):
    """An adapter that is damaged or does not fit the model."""


class PrefixError(AdapterError):
    """A prefix that is damaged or does not fit the model."""


class LoraError(AdapterError):
    """A LoRA that is damaged or does not fit the model."""


class CheckpointError(MingptPrefixError):
    """A checkpoint or run folder that cannot be read or written."""


class ConfigError(MingptPrefixError):
    """A setting that is unknown or out of range."""


class TrainingError(MingptPrefixError):
    """A training run that cannot continue."""


def printable(text: str, limit: int = 40) -> str:
    """Text from outside, cut to `limit` characters, with unprintable characters escaped."""
    shown = escape(text[:limit])
    return shown if len(shown) <= limit and len(text) <= limit else shown[: limit - 1] + "…"


def escape(text: str) -> str:
    """Text with each unprintable character escaped, e.g. `\\n` for a line end."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def shown(path: object) -> str:
    """A path or another name, as messages show it."""
    return printable(str(path), 200)


def listed(names: Iterable[str], limit: int = 3) -> str:
    """The first names of a set, and how many more there are."""
    names = sorted(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(printable(name, 60) for name in names[:limit]) + more


def meant(text: str, known: Iterable[str]) -> str:
    """Behind a message on a word that is not known: the one that may be meant, or ""."""
    near = difflib.get_close_matches(text, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def reason(error: Exception) -> str:
    """The text of an error of the operating system or of safetensors, in one printable line."""
    return printable(getattr(error, "strerror", None) or str(error), 200)


def command(name: str) -> str:
    """How to run the program `name`, in the way this one was run: "python train.py" or
    "mingpt-prefix train"."""
    if program.endswith(".py") and name in ("train", "sample"):
        return f"python {name}.py"
    return f"{_MODULE if program.startswith(_MODULE) else 'mingpt-prefix'} {name}"
