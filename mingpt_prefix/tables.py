"""Tables and the text a model reads and writes for them.

`parse_table("name[The Mill], eatType[pub]")` gives a `Table`, `format_table` writes it back, and
`linearize` spells it as a model is given it: `" name : The Mill | Type : pub"`, the form of the
prefix-tuning paper (Li & Liang, ACL 2021, figure 1). This is the one module that knows the text
format; its name, `TEXT_FORMAT`, is saved with every prefix.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from mingpt_prefix.errors import ConfigError, TableError
from mingpt_prefix.printing import escape, printable

TEXT_FORMAT = "bar-v1"
MAX_TABLE_CHARS = 8_000

_PRINTED_NAMES = {
    "eatType": "Type",
    "priceRange": "price",
    "familyFriendly": "family friendly",
}
_ELLIPSES = ("...", "…")
_CONTEXT = 20
# Control characters, line and paragraph separators, and halves of surrogate pairs: none of them
# can be shown on one line, and the last cannot be encoded at all.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_CONTROL_BETWEEN_SLOTS = re.compile(rf"(?![\t\n\r]){_CONTROL.pattern}")


@dataclass(frozen=True)
class Table:
    """One table: (slot name, value) pairs in the order they were written."""

    slots: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Example:
    """A table and one sentence that says it."""

    table: Table
    text: str


def parse_table(text: str) -> Table:
    """Read `name[The Mill], eatType[pub]`; any slot names, a trailing `...` or `…` is dropped.

    White space around names, values and commas is dropped too, line ends among it.

    Raises:
        TableError: with the position of the first mistake.
    """
    if len(text) > MAX_TABLE_CHARS:
        what = f"the table is longer than {MAX_TABLE_CHARS:,} characters"
        raise _error(what, text, MAX_TABLE_CHARS)
    if control := _CONTROL_BETWEEN_SLOTS.search(text):
        raise _error("control character", text, control.start())
    if not text.strip():
        raise _error("the table is empty", text, 0)
    slots: dict[str, str] = {}
    at = 0
    while True:
        at = _skip_space(text, at)
        name, value, after = _parse_slot(text, at)
        if name in slots:
            raise _error(f"slot '{printable(name)}' is repeated", text, at)
        slots[name] = value
        at = _skip_space(text, after)
        if text.startswith(",", at) and text[at + 1 :].strip() not in _ELLIPSES:
            at += 1
            continue
        rest = text[at:].removeprefix(",").strip()
        if rest and rest not in _ELLIPSES:
            what = "a comma is missing between slots" if "[" in rest else "text after the last slot"
            raise _error(what, text, at)
        return Table(tuple(slots.items()))


def table_from_mapping(obj: Mapping[str, str | int | float]) -> Table:
    """Read `{"name": "The Mill", "eatType": "pub"}`, as a JSON object holds it.

    Names and values obey the rules of `parse_table`, so that `format_table` can write them.

    Raises:
        TableError: its position counts in the written form, `name[The Mill], eatType[pub]`.
    """
    if not isinstance(obj, Mapping):
        raise TableError(f"a table must be an object, not {type(obj).__name__}", 0)
    slots: list[tuple[str, str]] = []
    position = 0
    for name, value in obj.items():
        if mistake := _mistake_in_pair(name, value):
            raise TableError(f"slot '{printable(str(name))}': {mistake}", position)
        slots.append((name, str(value)))
        position += len(f"{name}[{value}], ")
    return parse_table(format_table(Table(tuple(slots))))


def format_table(table: Table) -> str:
    """Write `name[The Mill], eatType[pub]`, which `parse_table` reads back."""
    return ", ".join(f"{name}[{value}]" for name, value in table.slots)


def linearize(table: Table, text_format: str = TEXT_FORMAT) -> str:
    """Spell a table as a model reads it: `" name : The Mill | Type : pub | price : high"`.

    Raises:
        ConfigError: for a text format this version does not know.
    """
    _check_format(text_format)
    slots = (f"{_PRINTED_NAMES.get(name, name)} : {value}" for name, value in table.slots)
    return " " + " | ".join(slots)


def target_text(text: str, text_format: str = TEXT_FORMAT) -> str:
    """Spell a sentence as a model writes it: after one space, each run of white space as one.

    Raises:
        ConfigError: for a text format this version does not know.
    """
    _check_format(text_format)
    return " " + " ".join(text.split())


def _mistake_in_pair(name: object, value: object) -> str | None:
    """Say why a pair cannot be written as `name[value]`, beyond what `parse_table` will see."""
    if not isinstance(name, str):
        return f"a slot name must be text, not {type(name).__name__}"
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return f"a value must be text or a number, not {type(value).__name__}"
    # Compared this way round, so that NaN is refused too.
    if not isinstance(value, str) and not abs(value) < 1e300:
        return "the number is too large or not finite"
    if set(name) & set("[],"):
        return "brackets and commas cannot stand in a name"
    if isinstance(value, str) and set(value) & set("[]"):
        return "brackets cannot stand in a value"
    return None


def _parse_slot(text: str, at: int) -> tuple[str, str, int]:
    """Read the slot that begins at `at`: its name, its value, the position after its `]`."""
    opening = _find_any(text, "[],", at)
    name = text[at:opening].rstrip()
    if not name:
        raise _error("a slot name is missing", text, at)
    if opening == len(text) or text[opening] != "[":
        what = f"'[' is missing after the slot name '{printable(name)}'"
        raise _error(what, text, at + len(name))
    closing = _find_any(text, "[]", opening + 1)
    if closing == len(text):
        raise _error("']' is missing for the '['", text, opening)
    if text[closing] == "[":
        raise _error("'[' inside a value", text, closing)
    value_at = _skip_space(text, opening + 1)
    value = text[value_at:closing].rstrip()
    if not value:
        raise _error(f"the value of slot '{printable(name)}' is empty", text, opening + 1)
    for start, part in ((at, name), (value_at, value)):
        if control := _CONTROL.search(part):
            raise _error("control character", text, start + control.start())
    return name, value, closing + 1


def _find_any(text: str, characters: str, at: int) -> int:
    """Find the first of `characters` from `at` on; the length of the text if there is none."""
    found = (text.find(character, at) for character in characters)
    return min((position for position in found if position >= 0), default=len(text))


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _check_format(text_format: str) -> None:
    if text_format != TEXT_FORMAT:
        raise ConfigError(
            f"unknown text format '{printable(str(text_format))}'; known: {TEXT_FORMAT}"
        )


def _error(what: str, text: str, position: int) -> TableError:
    before = escape(text[max(0, position - _CONTEXT) : position])[-_CONTEXT:]
    after = escape(text[position : position + _CONTEXT])[:_CONTEXT]
    return TableError(f"{what} at character {position}, in '{before}{after}'", position)
