"""What all readers of data files share: bytes, UTF-8, JSON, and checks of what was read."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mingpt_prefix.data.tables import Example, Table
from mingpt_prefix.errors import DataError, TableError, printable

# How many things of a file (by its name) were left out, and why.
LeftOut = dict[tuple[str, str], int]
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def read_bytes(path: Path, name: str) -> bytes:
    """Read a regular file whole; `name` is for messages.

    Raises:
        DataError: when it is missing, not a file, or unreadable.
    """
    try:
        if path.is_dir():
            raise DataError(f"{name}: a folder, where a file is expected")
        if not path.is_file():
            raise DataError(f"{name}: no such file")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{name}: {error.strerror or error}") from None


def decode(data: bytes, name: str) -> str:
    """Decode UTF-8, with or without a byte order mark, and refuse what cannot be text."""
    nul = data.find(b"\0")
    if nul >= 0:
        line = data.count(b"\n", 0, nul) + 1
        raise DataError(f"{name}: line {line}: a NUL byte; the file must be UTF-8 text")
    try:
        return data.removeprefix(b"\xef\xbb\xbf").decode()
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        byte = error.object[error.start]
        raise DataError(f"{name}: line {line}: byte 0x{byte:02x} is not UTF-8") from None


def parse_json(text: str) -> Any:
    """Parse JSON; repeated keys are refused.

    Raises:
        TableError: with the position of the mistake where JSON tells it.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        message = f"not valid JSON at character {error.pos}: {error.msg}"
        raise TableError(message, error.pos) from None
    except RecursionError:
        raise TableError("not valid JSON: nested too deeply", 0) from None
    except TableError:
        raise
    except ValueError:
        raise TableError("not valid JSON: a number is too long", 0) from None


def located(examples: Iterable[Example], where: str) -> list[Example]:
    """The examples with the place that they were read from."""
    return [replace(example, where=where) for example in examples]


def checked_example(table: Table, text: str) -> Example:
    """The example; raises DataError for a text that is empty or cannot be encoded."""
    if not text.strip():
        raise DataError("the text is empty")
    if _SURROGATE.search(text):
        raise DataError("the text holds half of a surrogate pair")
    return Example(table, text)


def not_empty(
    examples: list[Example],
    name: str,
    counts: Mapping[str, int] = MappingProxyType({}),
    left_out: LeftOut | None = None,
) -> list[Example]:
    """The examples of the file `name`; what was left out of it goes to `left_out`.

    Raises:
        DataError: where there are none.
    """
    own = {(name, why): count for why, count in counts.items() if count}
    if left_out is not None:
        left_out.update(own)
    if not examples:
        raise DataError(f"{name}: no examples in it{f'; {told_left_out(own)}' if own else ''}")
    return examples


def told_left_out(left_out: LeftOut) -> str:
    """What was left out of all files, in words."""
    counts: Counter[str] = Counter()
    for (_, why), count in left_out.items():
        counts[why] += count
    return "left out: " + ", ".join(f"{why} ({count:,})" for why, count in counts.items())


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    obj: dict[str, object] = {}
    for name, value in pairs:
        if name in obj:
            raise TableError(f"'{printable(name)}' is repeated", 0)
        obj[name] = value
    return obj
