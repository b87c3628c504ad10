"""Tables, and the text that a model reads and writes for them.

`parse_table("name[The Mill], eatType[pub]")` returns a `Table`, and `format_table` writes it back.
`linearize` spells it for the model: `" name : The Mill | Type : pub"`, as in the prefix-tuning
paper (Li & Liang, ACL 2021, figure 1); triples as `" | Mill : near : Café | ..."`, as its code
spells WebNLG; or by a user's template. Only this module knows the text format, whose name
(`TEXT_FORMAT`, or a template's) is saved with every prefix.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mingpt_prefix.data.templates import TEMPLATE_FORMAT, TEXT_FORMAT, fill, template_fields
from mingpt_prefix.errors import ConfigError, TableError, escape, printable

MAX_TABLE_CHARS = 8_000

_PRINTED_NAMES = {
    "eatType": "Type",
    "priceRange": "price",
    "familyFriendly": "family friendly",
}
_ELLIPSES = ("...", "…")
_CONTEXT = 20
_MAX_NAMES = 100
# Control characters, line and paragraph separators, and lone surrogates: none can be shown on one
# line, and the last cannot be encoded.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_CONTROL_BETWEEN_SLOTS = re.compile(rf"(?![\t\n\r]){_CONTROL.pattern}")


@dataclass(frozen=True)
class Table:
    """One table: (slot name, value) pairs in the order they were written, or (subject, predicate,
    object) triples."""

    slots: tuple[tuple[str, ...], ...]

    @property
    def is_triples(self) -> bool:
        return len(self.slots[0]) == 3


@dataclass(frozen=True)
class Example:
    """A table and one sentence for it; `where` names the source in error messages."""

    table: Table
    text: str
    where: str = field(default="", compare=False)


def parse_table(text: str) -> Table:
    """Parse `name[The Mill], eatType[pub]`, with any slot names.

    A trailing `...` or `…` is dropped, and so is white space around names, values and commas.

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


def parse_bars(text: str) -> Table:
    """Parse `name : The Mill | Type : pub`, which `linearize` writes without a template.

    Raises:
        TableError: if a part is not a slot, and like `table_from_json`.
    """
    names = {printed: name for name, printed in _PRINTED_NAMES.items()}
    slots: dict[str, str] = {}
    for part in text.split(" | "):
        name, colon, value = part.strip().partition(" : ")
        if not colon or name in slots:
            raise _error("'name : value', each name once, is expected", text, text.index(part))
        slots[name] = value
    return table_from_json({names.get(name, name): value for name, value in slots.items()})


def table_from_json(obj: object) -> Table:
    """A table from `{"name": "The Mill"}`, or from triples: `[["The Mill", "near", "Café Rouge"]]`.

    Values may be text, numbers, true or false, which are spelled so; slots of null are left out.

    Raises:
        TableError: with a position in the form that `format_table` writes.
    """
    if isinstance(obj, list):
        return table_from_triples(obj)
    if not isinstance(obj, Mapping):
        raise TableError(f"a table must be an object, not {type(obj).__name__}", 0)
    slots: dict[str, str] = {}
    position = 0
    for name, value in obj.items():
        if value is None:
            continue
        value = str(value).lower() if isinstance(value, bool) else value
        if mistake := _mistake_in_pair(name, value):
            raise TableError(f"slot '{printable(str(name))}': {mistake}", position)
        if name.strip() in slots:
            raise TableError(f"slot '{printable(name)}' is repeated", position)
        slots[name.strip()] = str(value).strip()
        position += len(f"{name}[{value}], ")
    if not slots:
        raise TableError("the table is empty", 0)
    return _not_too_long(Table(tuple(slots.items())))


def table_from_triples(triples: Sequence[Sequence[str]]) -> Table:
    """A table from (subject, predicate, object) triples; white space and control characters become
    spaces.

    Parts may be empty, but not a whole triple.

    Raises:
        TableError: unless there are one or more triples of strings.
    """
    slots = []
    for triple in triples:
        if not isinstance(triple, Sequence) or isinstance(triple, str) or len(triple) != 3:
            raise TableError('a triple must be ["subject", "predicate", "object"]', 0)
        if not all(isinstance(part, str) for part in triple):
            raise TableError("the parts of a triple must be text", 0)
        slots.append(tuple(" ".join(_CONTROL.sub(" ", part).split()) for part in triple))
        if not any(slots[-1]):
            raise TableError("a triple is empty", 0)
    if not slots:
        raise TableError("the table is empty", 0)
    return _not_too_long(Table(tuple(slots)))


def format_table(table: Table) -> str:
    """Write `name[The Mill], eatType[pub]`, which `parse_table` reads back.

    That form has no triples and no brackets in values: these are written as JSON, which
    `spellings.table_from_line` reads back.
    """
    if table.is_triples:
        return json.dumps(table.slots, ensure_ascii=False)
    names, values = zip(*table.slots, strict=True)
    in_name, in_value = set("".join(names)), set("".join(values))
    if in_name & set("[],") or in_value & set("[]") or names[0].startswith("{"):
        return json.dumps(dict(table.slots), ensure_ascii=False)
    return ", ".join(f"{name}[{value}]" for name, value in table.slots)


def linearize(table: Table, text_format: str = TEXT_FORMAT) -> str:
    """Spell a table for the model: `" name : The Mill | Type : pub | price : high"`.

    Raises:
        ConfigError: if this version does not know the text format.
        TableError: if the table lacks a slot that the format's template names.
    """
    _check_format(text_format)
    if text_format.startswith(TEMPLATE_FORMAT):
        return " " + fill(text_format, {} if table.is_triples else dict(table.slots)).strip()
    if table.is_triples:
        # The first has a bar in front, too.
        return "".join(" | " + " : ".join(triple) for triple in table.slots)
    slots = (f"{_PRINTED_NAMES.get(name, name)} : {value}" for name, value in table.slots)
    return " " + " | ".join(slots)


def slot_names(tables: Iterable[Table]) -> tuple[str, ...]:
    """The tables' slot names, sorted; empty for triples, and for more than 100 names."""
    found: set[str] = set()
    for table in tables:
        found.update(name for name, *_ in table.slots)
        if table.is_triples or len(found) > _MAX_NAMES:
            return ()
    return tuple(sorted(found))


def unseen_slots(table: Table, seen: Iterable[str]) -> list[str]:
    """The table's slot names that are not in `seen`; `eatType` counts as `Type`, which the model
    reads for it."""
    known = {_PRINTED_NAMES.get(name, name) for name in seen}
    return [name for *_, name, _ in table.slots if _PRINTED_NAMES.get(name, name) not in known]


def target_text(text: str, text_format: str = TEXT_FORMAT) -> str:
    """Spell a sentence as the model writes it: a space, then the text with white space collapsed.

    Raises:
        ConfigError: if this version does not know the text format.
    """
    _check_format(text_format)
    return " " + " ".join(text.split())


def _mistake_in_pair(name: object, value: object) -> str | None:
    """Why a pair cannot be a slot; None if it can."""
    if not isinstance(name, str):
        return f"a slot name must be text, not {type(name).__name__}"
    if not isinstance(value, str | int | float):
        return f"a value must be text or a number, not {type(value).__name__}"
    # Written so that NaN is refused, too.
    if not isinstance(value, str) and not abs(value) < 1e300:
        return "the number is too large or not finite"
    if not name.strip():
        return "a slot name is missing"
    if not str(value).strip():
        return "the value is empty"
    if _CONTROL.search(f"{name.strip()}{str(value).strip()}"):
        return "control character in it"
    return None


def _parse_slot(text: str, at: int) -> tuple[str, str, int]:
    """Parse the slot at position `at`: its name, its value, the position after its `]`."""
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
    """The first position of any of `characters` from `at` on, or the text's length."""
    found = (text.find(character, at) for character in characters)
    return min((position for position in found if position >= 0), default=len(text))


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _not_too_long(table: Table) -> Table:
    if len(format_table(table)) > MAX_TABLE_CHARS:
        raise TableError(f"the table is longer than {MAX_TABLE_CHARS:,} characters", 0)
    return table


def _check_format(text_format: str) -> None:
    if text_format.startswith(TEMPLATE_FORMAT):
        template_fields(text_format)
    elif text_format != TEXT_FORMAT:
        raise ConfigError(
            f"unknown text format '{printable(str(text_format))}'; known: {TEXT_FORMAT}"
        )


def _error(what: str, text: str, position: int) -> TableError:
    before = escape(text[max(0, position - _CONTEXT) : position])[-_CONTEXT:]
    after = escape(text[position : position + _CONTEXT])[:_CONTEXT]
    return TableError(f"{what} at character {position}, in '{before}{after}'", position)
