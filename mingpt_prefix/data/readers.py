"""The file formats of examples, as bytes: CSV, JSONL, JSON, XML, text.

`read_examples(Path("train.csv"))` gives a list of `Example`. CSV (rows.py) has the columns `mr` and
`ref`; JSONL and JSON hold objects `{"table": {"name": "The Mill"}, "text": "The Mill is a pub."}`,
where a table may also be triples, `[["The Mill", "near", "Café Rouge"]]`; XML is WebNLG's, and JSON
may be DART's (corpora.py); text files are those of the prefix-tuning paper's own code, with lines
`name : The Mill | Type : pub||The Mill is a pub.` With `Columns`, CSV files with other columns and
flat JSON objects are read too. A bad row is never skipped: it is an error that names the file, the
line and what is wrong.
"""

import csv
import io
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from mingpt_prefix.data.corpora import dart_examples, read_webnlg
from mingpt_prefix.data.parsing import (
    LeftOut,
    checked_example,
    decode,
    located,
    not_empty,
    parse_json,
    read_bytes,
)
from mingpt_prefix.data.rows import (
    USUAL,
    Columns,
    by_column,
    check_header,
    csv_rows,
    fitted,
    table_from_fields,
)
from mingpt_prefix.data.tables import Example, Table, parse_bars, parse_table, table_from_json
from mingpt_prefix.errors import DataError, MingptPrefixError, printable, shown

_TABLE_COLUMNS = ("mr", "ref")


def read_examples(
    path: Path, columns: Columns = USUAL, left_out: LeftOut | None = None
) -> list[Example]:
    """Read a .csv, .tsv, .txt, .jsonl, .json or .xml file whole; what WebNLG's and DART's hold
    beside examples is counted in `left_out`.

    Raises:
        DataError: naming the file, the line and what is wrong.
    """
    name = shown(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{name}: the name must end in {', '.join(_READERS)}")
    return reader(read_bytes(path, name), name, columns, left_out)


def read_csv(
    data: bytes, name: str, columns: Columns = USUAL, _left_out: object = None
) -> list[Example]:
    """Read CSV bytes by the names of their columns; `name` is for messages.

    Raises:
        DataError: naming the file, the line and what is wrong.
    """
    examples: list[Example] = []
    read_row: Callable[[list[str]], Example] | None = None
    lines, where, width = io.StringIO(decode(data, name), newline=""), name, 0
    try:
        for line, row in csv_rows(lines):
            where = f"{name}: line {line}"
            if isinstance(row, csv.Error):
                raise DataError(printable(str(row), 100))
            if read_row is None:
                read_row, width = _row_reader([column.strip() for column in row], columns), len(row)
            else:
                examples += located([read_row(fitted(row, width))], where)
    except MingptPrefixError as error:
        raise DataError(f"{where}: {error}") from None
    return not_empty(examples, name)


def _row_reader(header: list[str], columns: Columns) -> Callable[[list[str]], Example]:
    """What makes an example of a row under this header.

    Raises:
        DataError: when the header lacks a column, or has one twice.
    """
    lower = [column.lower() for column in header]
    has_usual = all(lower.count(name) == 1 for name in _TABLE_COLUMNS)
    if has_usual and not columns.text:
        mr, ref = (lower.index(name) for name in _TABLE_COLUMNS)
        tables: dict[str, Table] = {}  # a table stands beside each of its sentences: parsed once

        def read_usual(row: list[str]) -> Example:
            if row[mr] not in tables:
                tables[row[mr]] = _with_inputs(parse_table(row[mr]), columns)
            return checked_example(tables[row[mr]], row[ref])

        return read_usual
    if not columns:
        found = f"the columns are {printable(', '.join(header), 100)}"
        how = "name the one with the sentences by --text-field"
        raise DataError(f"no columns 'mr' and 'ref', once each; {found}; {how}")
    check_header(header, [columns.text or "text"], " (--text-field)")
    flag = " (--input-template)" * bool(columns.inputs)
    check_header(header, columns.inputs or filter(None, header), flag)

    def read_own(row: list[str]) -> Example:
        return _example_from_fields(by_column(header, row), columns)

    return read_own


def read_bars(
    data: bytes, name: str, columns: Columns = USUAL, _left_out: object = None
) -> list[Example]:
    """Read one `name : The Mill | Type : pub||The Mill is a pub.` a line; blank lines are skipped.

    Raises:
        DataError: naming the file, the line and what is wrong.
    """
    examples = []
    for number, line in enumerate(decode(data, name).split("\n"), 1):
        where = f"{name}: line {number}"
        table, bars, text = line.strip().partition("||")
        try:
            if not bars and table:
                raise DataError("'table||sentence' is expected of a .txt file")
            if bars:
                example = checked_example(_with_inputs(parse_bars(table), columns), text)
                examples += located([example], where)
        except MingptPrefixError as error:
            raise DataError(f"{where}: {error}") from None
    return not_empty(examples, name)


def read_jsonl(
    data: bytes, name: str, columns: Columns = USUAL, left_out: LeftOut | None = None
) -> list[Example]:
    """Read one `{"table": {...}, "text": "..."}` a line; blank lines are skipped.

    Raises:
        DataError: naming the file, the line and what is wrong.
    """
    examples, counts = [], Counter()
    # Not splitlines: it also splits at characters that may stand inside a JSON string.
    for number, line in enumerate(decode(data, name).split("\n"), 1):
        where = f"{name}: line {number}"
        try:
            if line.strip():
                examples += located(_examples_from_json(parse_json(line), columns, counts), where)
        except MingptPrefixError as error:
            raise DataError(f"{where}: {error}") from None
    return not_empty(examples, name, counts, left_out)


def read_json(
    data: bytes, name: str, columns: Columns = USUAL, left_out: LeftOut | None = None
) -> list[Example]:
    """Read a JSON list of `{"table": {...}, "text": "..."}`, or of DART's items.

    Raises:
        DataError: naming the file, the item and what is wrong.
    """
    text, where = decode(data, name), name
    try:
        items = parse_json(text)
        if not isinstance(items, list):
            raise DataError("a list of objects is expected")
        examples, counts = [], Counter()
        for number, item in enumerate(items, 1):
            where = f"{name}: item {number}"
            examples += located(_examples_from_json(item, columns, counts), where)
    except MingptPrefixError as error:
        raise DataError(f"{where}: {error}") from None
    return not_empty(examples, name, counts, left_out)


def _examples_from_json(obj: object, columns: Columns, left_out: Counter[str]) -> list[Example]:
    if isinstance(obj, dict) and "tripleset" in obj:
        return dart_examples(obj, left_out)
    if columns and isinstance(obj, dict) and not isinstance(obj.get("table"), dict | list):
        return [_example_from_fields(obj, columns)]
    text_field = columns.text or "text"
    if not isinstance(obj, dict) or "table" not in obj or text_field not in obj:
        form = f'{{"table": {{...}}, "{printable(text_field)}": "..."}}'
        hint = "" if columns else "; for flat objects give --text-field"
        raise DataError(f"an object {form} is expected{hint}")
    table = _with_inputs(table_from_json(obj["table"]), columns)
    return [checked_example(table, _text(obj, text_field))]


def _example_from_fields(fields: Mapping[str, object], columns: Columns) -> Example:
    """A row of the user's own: the sentence in one field, the table in others."""
    text_field = columns.text or "text"
    if text_field not in fields:
        raise DataError(f"no '{printable(text_field)}', where the sentence is looked for")
    return checked_example(table_from_fields(fields, columns), _text(fields, text_field))


def _text(fields: Mapping[str, object], name: str) -> str:
    if not isinstance(fields[name], str):
        raise DataError(f"{printable(name)} must be a string, not {type(fields[name]).__name__}")
    return fields[name]


def _with_inputs(table: Table, columns: Columns) -> Table:
    for name in columns.inputs:
        if table.is_triples or name not in dict(table.slots):
            raise DataError(f"the table has no '{printable(name)}'")
    return table


_READERS = {
    ".csv": read_csv,
    ".tsv": read_csv,
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".xml": read_webnlg,
    ".txt": read_bars,
}
SUFFIXES = tuple(suffix for suffix in _READERS if suffix != ".txt")
