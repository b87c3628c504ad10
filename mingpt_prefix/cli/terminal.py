"""What all programs share at the terminal: flags, lines on stdout, and how they end."""

import contextlib
import dataclasses
import io
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import TextIO, TypeVar

import tyro

from mingpt_prefix import errors
from mingpt_prefix.cli.flags import as_tyro_shows, ungrouped, unknown
from mingpt_prefix.errors import ConfigError, MingptPrefixError, command, printable, shown

T = TypeVar("T")
INTERRUPTED, PIPE_CLOSED = 130, 141  # as a shell counts them
_BOX = re.compile(r"[─-╿]+")
# A title that its text begins with again.
_TWICE = re.compile(r"^(.{8,}?) (?=\1)", re.IGNORECASE)
# tyro shows choices in any order, and None among them, which means that a flag is not given.
_CHOICES = re.compile(r"(?<=Expected one of )\((.*?)\)")
# What tyro says at length, with a flag's aliases in front of its name.
_FLAG = r"(?:\S+/)?(--[\w-]+)"
_NO_VALUE = re.compile(rf".*Missing value for argument '{_FLAG}'.*")
_NO_NUMBER = re.compile(rf".*Error parsing (?:{_FLAG})?: .*(int\(\)|to float).*: '(.*)'")
_MISSING = re.compile(r"Required options Missing from .*?: (.*\(required\)) ")
_REQUIRED = re.compile(r"(\S+) (.*?) \(required\)")
_NOT_FOR_USERS = re.compile(r" Argument helptext: .*|\bgroup-\d+\.")
_OWN_NAME = re.compile(r"\bmingpt-prefix ([a-z]+)\b")
# What torch says; not every message with "memory" in it means this.
_NO_MEMORY = re.compile("out of memory|allocate memory|not enough memory", re.IGNORECASE)


def parse(
    kind: type[T],
    argv: Sequence[str] | None,
    prog: str,
    description: str,
    groups: Sequence[str] = (),
) -> T:
    """Flags as an instance of the dataclass `kind`; `--help` prints and exits. `groups` are the
    titles of those that this program takes, if not all.

    Raises:
        ConfigError: for unknown flags and wrong types, in one line.
    """
    said, has_groups = io.StringIO(), dataclasses.is_dataclass(kind)
    description = re.sub(r"\n\n(?= )", "\n", description)  # tyro would make them two empty lines
    description = _OWN_NAME.sub(lambda match: command(match[1]), description)
    try:
        with contextlib.redirect_stderr(said):
            found = tyro.cli(
                as_tyro_shows(kind, groups) if has_groups else kind,
                prog=prog,
                description=description,
                args=None if argv is None else list(argv),
                config=(
                    tyro.conf.AvoidSubcommands,
                    tyro.conf.DisallowNone,
                    tyro.conf.OmitArgPrefixes,
                    tyro.conf.PositionalMetavarFromFieldName,
                ),
                return_unknown_args=has_groups,
            )
    except SystemExit as end:
        if end.code in (0, None):
            raise
        text = " ".join(_BOX.sub(" ", said.getvalue()).split())
        text = _CHOICES.sub(_in_order, _NOT_FOR_USERS.sub("", _TWICE.sub("", text)))
        raise ConfigError(_in_short(text) or "the flags cannot be read") from None
    if not has_groups:
        return found
    found, rest = found
    if rest:
        raise ConfigError(unknown(rest, kind, groups))
    return ungrouped(kind, found)


def _in_short(text: str) -> str:
    """The commonest of what tyro says of flags, in fewer words."""
    if (found := _NO_VALUE.fullmatch(text)) is not None:
        return f"{found[1]}: a value is missing"
    if (found := _NO_NUMBER.fullmatch(text)) is not None:
        of, kind = f"{found[1]}: " * bool(found[1]), "whole " * (found[2] == "int()")
        return f"{of}'{printable(found[3])}' is not a {kind}number"
    if (found := _MISSING.match(text)) is not None:
        missing = " and ".join(f"{name} ({what})" for name, what in _REQUIRED.findall(found[1]))
        return f"missing: {missing}. {text[found.end() :]}"
    return text


def _in_order(choices: re.Match[str]) -> str:
    names = re.findall(r"'(.*?)'", choices[1])
    return ", ".join(sorted(name for name in names if name != "None"))


def say(text: str = "") -> None:
    """A line on stdout, at once."""
    print(text, flush=True)


def complain(text: object) -> None:
    """A line on stderr, at once, that begins with this program's name."""
    print(f"{errors.program}: {text}", file=sys.stderr, flush=True)


def quote(text: str) -> str:
    """Text as one argument of a shell, in double quotes where nothing in it needs more."""
    return shlex.quote(text) if set(text) & set('"$`\\!') else f'"{text}"'


def run_script(prog: str, program: Callable[[], int]) -> int:
    """The exit code of `program`, which was called as `prog`; what goes wrong in it is one line on
    stderr, and exit code 2."""
    errors.program = prog
    set_up_streams()
    try:
        return program()
    except MingptPrefixError as error:
        return fail(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        drop_output(sys.stdout)
        return PIPE_CLOSED
    except OSError as error:
        if error.filename is not None:
            return fail(f"{shown(error.filename)}: {error.strerror or error}")
        drop_output(sys.stdout)
        return fail(f"cannot write: {error.strerror or error}")
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not _NO_MEMORY.search(str(error)):
            raise
        return fail("not enough memory for this model, batch and number of beams")


def set_up_streams() -> None:
    """What goes to a file or a pipe is UTF-8, and what a terminal cannot show is written as an
    escape; a stream that is missing is empty, and swallows all."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None or getattr(stream, "closed", False):
            # Else print would write on stdout what is meant for stderr, and the next file that is
            # opened would be given the number of the stream.
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8", errors="ignore"))  # noqa: SIM115
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):  # a notebook has something else
            encoding = None if is_terminal(stream) else "utf-8"
            stream.reconfigure(encoding=encoding, errors="backslashreplace")


def is_terminal(stream: TextIO) -> bool:
    """Whether it is one; a stream that cannot say so is none."""
    return hasattr(stream, "isatty") and stream.isatty()


def fail(why: object) -> int:
    """Say what is wrong in one line on stderr; returns exit code 2."""
    complain(why)
    return 2


def drop_output(stream: TextIO) -> None:
    """Nothing can be written to it any more, also not when Python flushes at its end."""
    with contextlib.suppress(AttributeError, io.UnsupportedOperation):  # a stream that is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
