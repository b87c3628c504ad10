"""What is wrong with a text about a table of the sample data set.

    faults([("name", "The Copper Kettle"), ("priceRange", "high")], text)

Each value is known by the wordings that it goes by (`values` in tiny/sample.toml), so texts in the
sample's words can be judged; any other value is looked for as it stands.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from mingpt_prefix import tiny

SLOTS = (
    "name", "eatType", "food", "priceRange", "customer rating", "area", "familyFriendly", "near",
)  # fmt: skip
FAULTS = ("lacking", "invented", "garbled", "repeated")

SAMPLE = tomllib.loads((Path(tiny.__file__).parent / "sample.toml").read_text(encoding="utf-8"))

_NOT = re.compile(r"n['’]t\b")
_HYPHEN = re.compile(r"(?<=[a-z])-(?=[a-z])")
_SPACE = re.compile(r"\s+")
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")


class Fault(NamedTuple):
    """What is wrong: one of FAULTS, and the slot or the word that it is about."""

    kind: str
    what: str


def normalise(text: str) -> str:
    """Lower case, "not" for "n't", no hyphens inside words, single spaces."""
    return _SPACE.sub(" ", _HYPHEN.sub(" ", _NOT.sub(" not", text.lower()))).strip()


def _anywhere(phrases: Sequence[str]) -> re.Pattern[str]:
    """Matches the longest phrase at the leftmost place, at word boundaries only."""
    longest = sorted(phrases, key=len, reverse=True)
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest))})(?!\w)")


_MEANS = {
    slot: {phrase: value for value, phrases in own["values"].items() for phrase in phrases}
    for slot, own in SAMPLE["slots"].items()
    if "values" in own
}
_PATTERNS = {slot: _anywhere(list(means)) for slot, means in _MEANS.items()}
_NEAR = rf"(?<!\w)(?:{'|'.join(map(re.escape, [*SAMPLE['nearness'], 'near to', 'beside']))}) "
_NEAR_A_NAME = re.compile(_NEAR.replace(r"(?<!\w)", r"(?<!\w)(?i:", 1)[:-1] + r") (?=[A-Z])")


@cache
def known_words() -> frozenset[str]:
    """Every word of the sample's training texts, in lower case."""
    text = (tiny.SAMPLE / "trainset.csv").read_text(encoding="utf-8")
    return frozenset(word.lower() for word in _WORD.findall(text))


def faults(table: Sequence[tuple[str, str]], text: str) -> list[Fault]:
    """All that is wrong with `text` as a description of `table`.

    lacking: a slot's value is not said. A name must stand somewhere as the subject, and the place
    nearby right after a word of nearness. invented: a value is said of a slot that the table does
    not have, or another than it has. garbled: a word is in neither the table nor the training
    texts. repeated: a slot, the name and the kind of place apart, is said twice.
    """
    given, rest, found = dict(table), normalise(text), []
    told: dict[str, list[str]] = {}
    for slot in sorted({"name", "near"} & set(given), key=lambda slot: -len(given[slot])):
        value = re.escape(normalise(given[slot]))
        nearby = rf"{_NEAR}{value}(?!\w)"
        times = len(re.findall(nearby, rest))
        if slot == "name":
            times = len(re.findall(rf"(?<!\w){value}(?!\w)", re.sub(nearby, " ", rest)))
        told[slot] = [given[slot]] * (times if slot == "near" else min(times, 1))
        # Names may hold words that mean something elsewhere ("The Cheap Suburb").
        rest = re.sub(rf"(?<!\w){value}(?!\w)", "@", rest)
    for slot, means in _MEANS.items():
        told[slot] = [means[match[0]] for match in _PATTERNS[slot].finditer(rest)]
        value = given.get(slot)
        if value is not None and value not in means.values():
            told[slot] = _anywhere([normalise(value)]).findall(rest) and [value]
    for slot in SLOTS:
        value, values = given.get(slot), told.get(slot, [])
        if value is not None and value not in values:
            found.append(Fault("lacking", slot))
        if any(other != value for other in values):
            found.append(Fault("invented", slot))
        elif len(values) > 1 and slot != "eatType":
            found.append(Fault("repeated", slot))
    if "near" not in given and _NEAR_A_NAME.search(text):
        found.append(Fault("invented", "near"))
    own = {word.lower() for _, value in table for word in _WORD.findall(value)}
    words = [word.lower() for word in _WORD.findall(text)]
    garbled = dict.fromkeys(word for word in words if word not in own | known_words())
    return found + [Fault("garbled", word) for word in garbled]


def slot_errors(table: Sequence[tuple[str, str]], text: str) -> list[str]:
    """Names of the slots whose value `text` lacks or contradicts, in the table's order."""
    kinds = ("lacking", "invented")
    wrong = {fault.what for fault in faults(table, text) if fault.kind in kinds}
    return [slot for slot, _ in table if slot in wrong]
