"""Tables as users write them: one a line, the rows of a CSV file, or values of Python.

as_table({"name": "The Mill"}) == as_table("name[The Mill]")
for number, table in iter_tables(lines): ...
"""

import csv
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice

from mingpt_prefix.data.parsing import parse_json
from mingpt_prefix.data.rows import (
    USUAL,
    Columns,
    by_column,
    check_header,
    csv_rows,
    fitted,
    table_from_fields,
)
from mingpt_prefix.data.tables import Table, parse_bars, parse_table, table_from_json
from mingpt_prefix.errors import DataError, MingptPrefixError, TableError, printable


def iter_tables(
    lines: Iterable[str], columns: Columns | None = None
) -> Iterator[tuple[int, Table | TableError]]:
    """Read one table a line, lazily: (line number from 1, the table or what is wrong with it).

    Every line gives one item, an empty one an error, so that answers stay in step with lines. If
    the first line is the header of CSV with a column `mr`, each row under it gives one. With
    `columns`, the user's own, any first line is a header if neither of the first two is a table.

    Raises:
        DataError: if an input is not one of the header's columns, or is several.
    """
    lines = (line.removeprefix("\ufeff") for line in lines)
    begin = list(islice(lines, 2))
    lines = chain(begin, lines)
    items: Iterable[tuple[int, str | Table | Exception]] = enumerate(lines, 1)
    if len(begin) == 2 and begin[0].strip():
        header = next((row for _, row in csv_rows(begin)), [])
        is_own = columns is not None and not any(map(_is_table, begin))
        if header and isinstance(header, list) and (is_own or _is_of_tables(header)):
            items = _csv_tables(lines, columns or USUAL)
    for number, item in items:
        try:
            if isinstance(item, Exception):
                raise TableError(printable(str(item), 100), 0)
            yield number, as_table(item.rstrip("\r\n") if isinstance(item, str) else item)
        except TableError as error:
            yield number, error


def _is_table(line: str) -> bool:
    try:
        return bool(table_from_line(line))
    except TableError:
        return False


def _is_of_tables(header: list[str]) -> bool:
    return [name.strip().lower() for name in header].count("mr") == 1


def _csv_tables(
    lines: Iterable[str], columns: Columns
) -> Iterator[tuple[int, str | Table | Exception]]:
    """The fields of the column `mr`, or else tables of all columns; or what is wrong with a row."""
    rows = csv_rows(lines)
    header = [name.strip() for name in next(rows)[1]]
    column = [name.lower() for name in header].index("mr") if _is_of_tables(header) else None
    if column is None:
        check_header(header, columns.inputs or filter(None, header))
    for line, row in rows:
        try:
            if isinstance(row, csv.Error):
                raise DataError(str(row))
            row = fitted(row, len(header))
            if column is not None:
                yield line, row[column]
            else:
                yield line, table_from_fields(by_column(header, row), columns)
        except MingptPrefixError as error:
            yield line, error


def table_from_line(line: str) -> Table:
    """Read the bracket form, `{"name": "The Mill"}`, `{"table": {"name": "The Mill"}}`, triples,
    `[["The Mill", "near", "Café Rouge"]]`, or a line as `readers.read_bars` does, of which the
    sentence is left out.

    Raises:
        TableError: with the position of the first mistake.
    """
    start = "".join(line[:100].split())
    if not start.startswith(("{", "[[")):
        table, bars, _ = line.partition("||")
        try:
            return parse_table(line)
        except TableError:
            if not bars or " : " not in table:
                raise
        return parse_bars(table)
    obj = parse_json(line)
    # A slot may be called "table" too: its value is then no object.
    if isinstance(obj, dict) and isinstance(obj.get("table"), dict | list):
        obj = obj["table"]
    return table_from_json(obj)


def as_table(given: Table | str | Mapping | list) -> Table:
    """A table in any spelling: as `table_from_line` or `tables.table_from_json` reads it.

    Raises:
        TableError: with the position of the first mistake.
    """
    if isinstance(given, Table):
        return given
    return table_from_line(given) if isinstance(given, str) else table_from_json(given)
