"""Rows of CSV as spreadsheets and people write it, and the tables that are made of their fields."""

import csv
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

from mingpt_prefix.data.tables import Table, table_from_json
from mingpt_prefix.errors import DataError, printable

_SEPARATOR = re.compile(r'"?sep=([,;\t])"?\s*', re.IGNORECASE)


@dataclass(frozen=True)
class Columns:
    """Which columns or fields of the user's own files are read; empty: the usual form alone.

    `text` holds the sentence ("text" if not given); `inputs` are the table's, in this order, and
    must be filled. Without `inputs` a table is all other columns, those that are empty left out.
    """

    inputs: tuple[str, ...] = ()
    text: str = ""

    def __bool__(self) -> bool:
        return bool(self.inputs or self.text)


USUAL = Columns()


def csv_rows(lines: Iterable[str]) -> Iterator[tuple[int, list[str] | csv.Error]]:
    """The rows that hold anything, with the lines they begin in; the last may be what is wrong.

    The delimiter is a comma, semicolon or tab: the one of which most are in the header, unless a
    first line `sep=;` names it, as spreadsheets write it.
    """
    lines = iter(lines)
    header, skipped = next(lines, ""), 0
    while header and not header.strip():
        header, skipped = next(lines, ""), skipped + 1
    if (said := _SEPARATOR.fullmatch(header)) is not None:
        header, skipped = next(lines, ""), skipped + 1
    delimiter = max(",;\t", key=header.count) if said is None else said[1]
    rows = csv.reader(chain([header], lines), delimiter=delimiter, strict=True)
    line = skipped + 1
    try:
        for row in rows:
            if any(field.strip() for field in row):
                yield line, row
            line = skipped + rows.line_num + 1
    except csv.Error as error:
        yield line, error


def fitted(row: list[str], width: int) -> list[str]:
    """The fields under the header's columns; blank ones behind them are a spreadsheet's.

    Raises:
        DataError: for too few or too many.
    """
    if len(row) < width or any(field.strip() for field in row[width:]):
        raise DataError(f"{len(row)} fields under {width} columns")
    return row[:width]


def check_header(header: list[str], names: Iterable[str], flag: str = "") -> None:
    """Check that each of `names` is one column.

    Raises:
        DataError: naming the first that is not, `flag` (which gave it), and the columns.
    """
    for name in names:
        if header.count(name) != 1:
            how_many = "several columns" if name in header else "no column"
            found = printable(", ".join(header), 100)
            raise DataError(f"{how_many} '{printable(name)}'{flag}; the columns are {found}")


def by_column(header: list[str], row: list[str]) -> dict[str, str]:
    """The fields by their columns. One without a name may stand there, but hold nothing."""
    return {n: value for n, value in zip(header, row, strict=True) if n or value.strip()}


def table_from_fields(fields: Mapping[str, object], columns: Columns) -> Table:
    """The table of a row of the user's own; the sentence, if there is one, is left out.

    Raises:
        DataError: if an input is missing or empty.
        TableError: as `table_from_json`.
    """
    names = columns.inputs or [name for name in fields if name != (columns.text or "text")]
    filled = {}
    for name in names:
        value = fields.get(name)
        if isinstance(value, str):
            value = " ".join(value.split())
        if value not in (None, ""):
            filled[name] = value
        elif columns.inputs:
            raise DataError(f"'{printable(name)}' is missing or empty")
    return table_from_json(filled)
