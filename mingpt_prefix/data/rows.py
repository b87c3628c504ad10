"""Rows of CSV as spreadsheets and people write it."""

import csv
import re
from collections.abc import Iterable, Iterator
from itertools import chain

from mingpt_prefix.errors import DataError

_SEPARATOR = re.compile(r'"?sep=([,;\t])"?\s*', re.IGNORECASE)


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
