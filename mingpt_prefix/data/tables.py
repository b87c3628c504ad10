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

from mingpt_prefix.data.templates import TEMPLATE_FORMAT, TEXT_FORMAT, fill
from mingpt_prefix.errors import ConfigError, TableError, escape, printable

MAX_TABLE_CHARS = 8_000

_PRINTED_NAMES = {
    "eatType": "Type",
    "priceRange": "price",
    "familyFriendly": "family friendly",
}
_SPACE = re.compile(r"\s*")
_SLOT = re.compile(r"(?P<name>[^][,]*)(?P<opening>\[?)\s*(?P<value>[^][]*)(?P<closing>\]?)")
_END = re.compile(r"(,?\s*(\.\.\.|…)\s*)?")
_CONTEXT = 20
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
        raise TableError("the table is empty", 0)
    slots: dict[str, str] = {}
    at = _SPACE.match(text).end()
    while True:
        name, value, after = _parse_slot(text, at)
        if name in slots:
            raise _error(f"slot '{printable(name)}' is repeated", text, at)
        slots[name] = value
        at = _SPACE.match(text, after).end()
        if _END.fullmatch(text, at):
            return Table(tuple(slots.items()))
        if not text.startswith(",", at):
            is_slot = "[" in text[at:]
            what = "a comma is missing between slots" if is_slot else "text after the last slot"
            raise _error(what, text, at)
        at = _SPACE.match(text, at + 1).end()


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

    Values may be text, numbers, true or false; slots whose value is null are left out.

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
    return _table_of(slots.items())


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
    return _table_of(slots)


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
    if text_format.startswith(TEMPLATE_FORMAT):
        return " " + fill(text_format, {} if table.is_triples else dict(table.slots)).strip()
    if text_format != TEXT_FORMAT:
        raise ConfigError(f"unknown text format '{printable(text_format)}'; known: {TEXT_FORMAT}")
    if table.is_triples:
        # The first has a bar in front, too.
        return "".join(" | " + " : ".join(triple) for triple in table.slots)
    slots = (f"{_PRINTED_NAMES.get(name, name)} : {value}" for name, value in table.slots)
    return " " + " | ".join(slots)


def unseen_slots(table: Table, seen: Iterable[str]) -> list[str]:
    """The table's slot names that are not in `seen`; `eatType` and `Type`, as which the model reads
    it, count as one."""
    known = {_PRINTED_NAMES.get(name, name) for name in seen}
    return [name for *_, name, _ in table.slots if _PRINTED_NAMES.get(name, name) not in known]


def target_text(text: str) -> str:
    """Spell a sentence as the model writes it: a space, then its words, single-spaced."""
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
    slot = _SLOT.match(text, at)
    name, value = slot["name"].rstrip(), slot["value"].rstrip()
    if not name:
        raise _error("a slot name is missing", text, at)
    if not slot["opening"]:
        what = f"'[' is missing after the slot name '{printable(name)}'"
        raise _error(what, text, at + len(name))
    if not slot["closing"] and slot.end() == len(text):
        raise _error("']' is missing for the '['", text, slot.start("opening"))
    if not slot["closing"]:
        raise _error("'[' inside a value", text, slot.end())
    if not value:
        raise _error(f"the value of slot '{printable(name)}' is empty", text, slot.end("opening"))
    for start, part in ((at, name), (slot.start("value"), value)):
        if control := _CONTROL.search(part):
            raise _error("control character", text, start + control.start())
    return name, value, slot.end()


def _table_of(slots: Iterable[tuple[str, ...]]) -> Table:
    """A table of checked slots; raises TableError if there are none, or too many characters."""
    table = Table(tuple(slots))
    if not table.slots:
        raise TableError("the table is empty", 0)
    if len(format_table(table)) > MAX_TABLE_CHARS:
        raise TableError(f"the table is longer than {MAX_TABLE_CHARS:,} characters", 0)
    return table


def _error(what: str, text: str, position: int) -> TableError:
    before = escape(text[max(0, position - _CONTEXT) : position])[-_CONTEXT:]
    after = escape(text[position : position + _CONTEXT])[:_CONTEXT]
    return TableError(f"{what} at character {position}, in '{before}{after}'", position)
