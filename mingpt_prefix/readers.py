"""The file formats of examples and tables, as bytes or lines: CSV, JSONL, JSON, one table a line.

`read_examples(Path("train.csv"))` gives a list of `Example`. CSV has the columns `mr` and `ref`;
JSONL and JSON hold objects `{"table": {"name": "The Mill"}, "text": "The Mill is a pub."}`. A bad
row is never skipped: it is an error that names the file, the line and what is wrong.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mingpt_prefix.errors import DataError, MingptPrefixError, TableError
from mingpt_prefix.tables import Example, Table, parse_table, printable, table_from_mapping

_SURROGATE = re.compile(r"[\ud800-\udfff]")


def read_examples(path: Path) -> list[Example]:
    """Read a .csv, .jsonl or .json file whole.

    Raises:
        DataError: naming the file, the line and what is wrong.
    """
    name = printable(str(path), 200)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{name}: the name must end in {', '.join(_READERS)}")
    return reader(read_bytes(path, name), name)


def read_csv(data: bytes, name: str) -> list[Example]:
    """Read CSV bytes by the columns `mr` and `ref`, others ignored; `name` is for messages.

    Raises:
        DataError: naming the file, the line and what is wrong.
    """
    rows = csv.reader(io.StringIO(_decode(data, name), newline=""), strict=True)
    examples: list[Example] = []
    tables: dict[str, Table] = {}  # a table stands beside each of its sentences: parsed once
    header: list[str] = []
    line = 1
    try:
        for row in rows:
            if row and not header:
                header = [column.strip().lower() for column in row]
                if header.count("mr") != 1 or header.count("ref") != 1:
                    raise DataError("the first line must name the columns mr and ref once")
                mr, ref = header.index("mr"), header.index("ref")
            elif row:
                if len(row) != len(header):
                    raise DataError(f"{len(row)} fields under {len(header)} columns")
                if row[mr] not in tables:
                    tables[row[mr]] = parse_table(row[mr])
                examples.append(_example(tables[row[mr]], row[ref]))
            line = rows.line_num + 1
    except (csv.Error, MingptPrefixError) as error:
        raise DataError(f"{name}: line {line}: {error}") from None
    return _not_empty(examples, name)


def read_jsonl(data: bytes, name: str) -> list[Example]:
    """Read one `{"table": {...}, "text": "..."}` a line; blank lines are skipped.

    Raises:
        DataError: naming the file, the line and what is wrong.
    """
    examples = []
    # Not splitlines: it also splits at characters that may stand inside a JSON string.
    for number, line in enumerate(_decode(data, name).split("\n"), 1):
        try:
            if line.strip():
                examples.append(_example_from_json(_parse_json(line)))
        except MingptPrefixError as error:
            raise DataError(f"{name}: line {number}: {error}") from None
    return _not_empty(examples, name)


def read_json(data: bytes, name: str) -> list[Example]:
    """Read a JSON list of `{"table": {...}, "text": "..."}`.

    Raises:
        DataError: naming the file, the item and what is wrong.
    """
    where = name
    try:
        items = _parse_json(_decode(data, name))
        if not isinstance(items, list):
            raise DataError("a list of objects is expected")
        examples = []
        for number, item in enumerate(items, 1):
            where = f"{name}: item {number}"
            examples.append(_example_from_json(item))
    except MingptPrefixError as error:
        raise DataError(f"{where}: {error}") from None
    return _not_empty(examples, name)


def iter_tables(lines: Iterable[str]) -> Iterator[tuple[int, Table | TableError]]:
    """Read one table a line, lazily: (line number from 1, the table or what is wrong with it).

    A line holds the bracket form, `{"name": "The Mill"}`, or `{"table": {"name": "The Mill"}}`.
    Every line gives one item, an empty one an error, so that answers stay in step with lines.
    """
    for number, line in enumerate(lines, 1):
        try:
            item: Table | TableError = _table_from_line(line.removeprefix("\ufeff").rstrip("\r\n"))
        except TableError as error:
            item = error
        yield number, item


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


def _table_from_line(line: str) -> Table:
    if not line.lstrip().startswith("{"):
        return parse_table(line)
    obj = _parse_json(line)
    # A slot may be called "table" too: its value is then no object.
    return table_from_mapping(obj["table"] if isinstance(obj.get("table"), dict) else obj)


def _decode(data: bytes, name: str) -> str:
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


def _parse_json(text: str) -> Any:
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


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    obj: dict[str, object] = {}
    for name, value in pairs:
        if name in obj:
            raise TableError(f"'{printable(name)}' is repeated", 0)
        obj[name] = value
    return obj


def _example_from_json(obj: object) -> Example:
    if not isinstance(obj, dict) or "table" not in obj or "text" not in obj:
        raise DataError('an object {"table": {...}, "text": "..."} is expected')
    if not isinstance(obj["text"], str):
        raise DataError(f"text must be a string, not {type(obj['text']).__name__}")
    return _example(table_from_mapping(obj["table"]), obj["text"])


def _example(table: Table, text: str) -> Example:
    if not text.strip():
        raise DataError("the text is empty")
    if _SURROGATE.search(text):
        raise DataError("the text holds half of a surrogate pair")
    return Example(table, text)


def _not_empty(examples: list[Example], name: str) -> list[Example]:
    if not examples:
        raise DataError(f"{name}: no examples in it")
    return examples


_READERS = {".csv": read_csv, ".jsonl": read_jsonl, ".json": read_json}
SUFFIXES = tuple(_READERS)
