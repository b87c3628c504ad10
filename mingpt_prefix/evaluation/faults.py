"""What is wrong with a text about a table of the sample data set.

    faults([("name", "The Copper Kettle"), ("priceRange", "high")], text)

Each value is known by the wordings that it goes by (`values` in tiny/sample.toml), so texts in the
sample's words can be judged; any other value is looked for as it stands.
"""

from __future__ import annotations

import csv
import re
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from mingpt_prefix import tiny

SLOTS = (
    "name", "eatType", "food", "priceRange", "customer rating", "area", "familyFriendly", "near",
)  # fmt: skip
FAULTS = ("omitted", "invented", "garbled", "repeated")

SAMPLE = tomllib.loads((Path(tiny.__file__).parent / "sample.toml").read_text(encoding="utf-8"))

_NOT = re.compile(r"n['’]t\b")
_HYPHEN = re.compile(r"(?<=[a-z])-(?=[a-z])")
_SPACE = re.compile(r"\s+")
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_NEGATED = re.compile(r"\bnot (?:really |very |so )?$")
_END = r"(?!\w|[.,–-]\d)"  # of a phrase; a figure does not go on behind it


class Fault(NamedTuple):
    """What is wrong: one of FAULTS, and the slot or the word that it is about."""

    kind: str
    what: str


def plain(text: str) -> str:
    """ "not" for "n't", no hyphens inside words, single spaces."""
    return _SPACE.sub(" ", _HYPHEN.sub(" ", _NOT.sub(" not", text))).strip()


def _anywhere(phrases: Sequence[str]) -> re.Pattern[str]:
    """Matches the longest phrase at the leftmost place, at word boundaries only."""
    longest = sorted(phrases, key=len, reverse=True)
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest))}){_END}", re.IGNORECASE)


_MEANS = {
    slot: {phrase: value for value, phrases in own["values"].items() for phrase in phrases}
    for slot, own in SAMPLE["slots"].items()
    if "values" in own
}
_PATTERNS = {slot: _anywhere(list(means)) for slot, means in _MEANS.items()}
_NEAR = rf"(?<!\w)(?:{'|'.join(map(re.escape, [*SAMPLE['nearness'], 'near to', 'beside']))}) "
_NEARNESS = re.compile(_NEAR, re.IGNORECASE)
_BEHIND_NEAR = re.compile(rf"{_NEAR}(?:The )?$", re.IGNORECASE)
_NAME_WORDS = {
    word
    for split in ("train", "dev", "test")
    for listed in SAMPLE[split].values()
    for word in listed.split()
}


@cache
def known_words() -> frozenset[str]:
    """Every word of the sample's training texts, in lower case."""
    with (tiny.SAMPLE / "trainset.csv").open(encoding="utf-8", newline="") as file:
        texts = [plain(row["ref"]).lower() for row in csv.DictReader(file)]
    return frozenset(word for text in texts for word in _WORD.findall(text))


def faults(table: Sequence[tuple[str, str]], text: str) -> list[Fault]:
    """All that is wrong with `text` as a description of `table`.

    omitted: a slot's value is not said. A name must stand somewhere as the subject, and the place
    nearby right after a word of nearness. invented: a value, a figure or a name is said that the
    table does not have. garbled: a word is in neither the table nor the training texts. repeated: a
    slot, the name and the kind of place apart, is said twice, or a name right after itself.
    """
    given = dict(table)
    told, rest, left = _told(given, text)
    found = [Fault("repeated", "name")] if "@ @" in rest else []
    for slot in SLOTS:
        value, values = given.get(slot), told.get(slot, [])
        if value is not None and value not in values:
            found.append(Fault("omitted", slot))
        if any(other != value for other in values):
            found.append(Fault("invented", slot))
        elif len(values) > 1 and slot != "eatType":
            found.append(Fault("repeated", slot))
    if figure := re.search(r"£?\d", left):
        is_price = figure[0].startswith("£")
        found.append(Fault("invented", "priceRange" if is_price else "customer rating"))
    own_words = {word for _, value in table for word in _WORD.findall(plain(value))}
    found += [Fault("invented", slot) for slot in _other_names(rest, own_words)]
    known = known_words() | {word.lower() for word in own_words | _NAME_WORDS}
    words = dict.fromkeys(word.lower() for word in _WORD.findall(rest))
    found += [Fault("garbled", word) for word in words if word not in known]
    return list(dict.fromkeys(found))


def slots_said(table: Sequence[tuple[str, str]], text: str) -> list[str]:
    """Names of the slots whose value `text` says, in the table's order; of a slot that the sample
    does not have, the value is looked for as it stands."""
    told, plain_text = _told(dict(table), text)[0], plain(text)

    def is_said(slot: str, value: str) -> bool:
        if slot in SLOTS:
            return value in told.get(slot, [])
        return _anywhere([plain(value)]).search(plain_text) is not None

    return [slot for slot, value in table if is_said(slot, value)]


def _told(given: Mapping[str, str], text: str) -> tuple[dict[str, list[str]], str, str]:
    """The values that `text` says of each of SLOTS; `text` plain and without names; and what is
    left of it without those values."""
    rest, told = _without_names(given, plain(text))
    left = rest
    for slot, means in _MEANS.items():
        told[slot] = []
        for match in _PATTERNS[slot].finditer(rest):
            is_negated = _NEGATED.search(rest[: match.start()])
            told[slot].append("not " * bool(is_negated) + means[match[0].lower()])
        left = _PATTERNS[slot].sub("", left)
        if (value := given.get(slot)) is not None and value not in means.values():
            own = _anywhere([plain(value)])
            told[slot] = own.findall(left) and [value]
            left = own.sub("", left)
    return told, rest, left


def _without_names(given: Mapping[str, str], text: str) -> tuple[str, dict[str, list[str]]]:
    """`text` with "@" for the name and the place nearby, which may hold words that mean something
    elsewhere ("The Cheap Suburb"), and how often each is said, as a list of its value."""
    told: dict[str, list[str]] = {}
    slots = [slot for slot in ("name", "near") if slot in given]
    for slot in sorted(slots, key=lambda slot: -len(given[slot])):
        own = _anywhere([plain(given[slot])])
        nearby = re.compile(_NEAR + own.pattern, re.IGNORECASE)
        times = len(nearby.findall(text))
        if slot == "name":
            times = min(1, len(own.findall(nearby.sub(" ", text))))
        told[slot] = [given[slot]] * times
        text = own.sub("@", text)
    return text, told


def _other_names(text: str, own_words: set[str]) -> list[str]:
    """ "name" or "near" for each name in `text` that is not the table's: a capital letter inside a
    sentence, or a word of the sample's names at its beginning."""
    found, foods = [], set(SAMPLE["slots"]["food"]["values"])
    end = 0
    for match in _WORD.finditer(text):
        word, before = match[0], text[: match.start()]
        is_first = not before or before.endswith((". ", "! ", "? "))
        stem = re.sub(r"['’]s$", "", word)
        may_be = stem in _NAME_WORDS and not _NEARNESS.match(text, match.start())  # "Close to"
        is_name = word[0].isupper() and (not is_first or may_be)
        is_word = word.lower() in known_words() or stem in _NAME_WORDS  # else it is garbled
        if is_name and is_word and word not in foods | own_words:
            goes_on = end and text[end : match.start()] in (" ", " & ")
            if not goes_on:
                found.append("near" if _BEHIND_NEAR.search(before) else "name")
            end = match.end()
    return found


def slot_errors(table: Sequence[tuple[str, str]], text: str) -> list[str]:
    """Names of the slots whose value `text` lacks or contradicts, in the table's order."""
    kinds = ("omitted", "invented")
    wrong = {fault.what for fault in faults(table, text) if fault.kind in kinds}
    return [slot for slot, _ in table if slot in wrong]
