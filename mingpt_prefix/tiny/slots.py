"""The sample data set's slots and their values, and whether a text says them right.

    slot_errors([("name", "The Copper Kettle"), ("priceRange", "high")], text)

names the slots whose value the text leaves out or contradicts. It knows each value by the wordings
it goes by, so it judges texts written in the sample's words; any other value is looked for as it
stands.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

SLOTS = (
    "name", "eatType", "food", "priceRange", "customer rating", "area", "familyFriendly", "near",
)  # fmt: skip

# What gives a value away, in lower case, with hyphens inside words written as spaces.
EVIDENCE: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "eatType": {
        "pub": ("pub",),
        "restaurant": ("restaurant",),
        "coffee shop": ("coffee shop",),
        "bistro": ("bistro",),
    },
    "food": {
        food: (food.lower(),)
        for food in ("Italian", "French", "Indian", "Chinese", "English", "Japanese", "Fast food")
    },
    "priceRange": {
        "cheap": ("cheap", "cheaply", "low prices", "low priced", "prices are low", "inexpensive"),
        "moderate": ("moderate", "moderately", "mid priced"),
        "high": ("high prices", "prices are high", "high priced", "high price range", "expensive",
                 "price range is high", "prices that are high"),
        "less than £20": ("less than £20", "under £20", "below £20"),
        "£20-25": ("£20-25", "£20 to £25", "between £20 and £25"),
        "more than £30": ("more than £30", "over £30", "above £30"),
    },
    "customer rating": {
        "low": ("low customer rating", "low rating", "poorly rated", "rated low", "rating is low",
                "rate it poorly", "rated poorly"),
        "average": ("average customer rating", "average rating", "rated average",
                    "rated as average", "rating is average", "rate it as average"),
        "high": ("high customer rating", "high rating", "highly rated", "rated highly",
                 "rating is high", "rate it highly"),
        "1 out of 5": ("1 out of 5",),
        "3 out of 5": ("3 out of 5",),
        "5 out of 5": ("5 out of 5",),
    },
    "area": {
        "city centre": ("city centre", "centre of the city", "heart of the city"),
        "riverside": ("riverside", "by the river", "on the river"),
        "suburb": ("suburb", "suburbs", "edge of the city"),
        "market square": ("market square",),
        "old town": ("old town", "old part of town"),
    },
    "familyFriendly": {
        "yes": ("family friendly", "child friendly", "welcomes children", "children are welcome",
                "suitable for families", "good for families", "welcomes families",
                "good place for families"),
        "no": ("not family friendly", "not child friendly", "does not welcome children",
               "children are not welcome", "not suitable for families", "not good for families",
               "adults only", "not for families", "not a place for families",
               "no place for children", "non family friendly"),
    },
}  # fmt: skip
NEARNESS = ("near", "near to", "close to", "next to", "beside", "not far from", "a short walk from",
            "round the corner from")  # fmt: skip

_NOT = re.compile(r"n['’]t\b")
_HYPHEN = re.compile(r"(?<=[a-z])-(?=[a-z])")
_SPACE = re.compile(r"\s+")


def normalise(text: str) -> str:
    """Lower case, "not" for "n't", no hyphens inside words, single spaces."""
    return _SPACE.sub(" ", _HYPHEN.sub(" ", _NOT.sub(" not", text.lower()))).strip()


def _anywhere(phrases: Sequence[str]) -> re.Pattern[str]:
    """Matches the longest phrase at the leftmost place, at word boundaries only."""
    longest = sorted(phrases, key=len, reverse=True)
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest))})(?!\w)")


_PATTERNS = {
    slot: _anywhere([phrase for phrases in values.values() for phrase in phrases])
    for slot, values in EVIDENCE.items()
}
_MEANS = {
    slot: {phrase: value for value, phrases in values.items() for phrase in phrases}
    for slot, values in EVIDENCE.items()
}
_NEAR = rf"(?<!\w)(?:{'|'.join(map(re.escape, NEARNESS))}) "


def slot_errors(table_slots: Sequence[tuple[str, str]], text: str) -> list[str]:
    """Names of the slots whose value `text` lacks or contradicts, in the table's order.

    A value is wrong where wording of another value of its slot stands in the text. The name must
    stand somewhere as the subject, and the place nearby right after a word of nearness: swapping
    the two is an error of both. Slots that are not in the table are not looked at.
    """
    rest = normalise(text)
    wrong = set()
    for slot, value in sorted(table_slots, key=lambda pair: -len(pair[1])):
        if slot not in ("name", "near"):
            continue
        said = re.escape(normalise(value))
        nearby, plain = rf"{_NEAR}{said}(?!\w)", rf"(?<!\w){said}(?!\w)"
        alone = re.sub(nearby, " ", rest)
        if not re.search(nearby if slot == "near" else plain, rest if slot == "near" else alone):
            wrong.add(slot)
        # Names may hold words that mean something elsewhere ("The Cheap Suburb").
        rest = re.sub(plain, "@", rest)
    for slot, value in table_slots:
        if slot not in ("name", "near") and not _says(slot, value, rest):
            wrong.add(slot)
    return [slot for slot, _ in table_slots if slot in wrong]


def _says(slot: str, value: str, text: str) -> bool:
    means = _MEANS.get(slot, {})
    if value not in means.values():
        return _anywhere([normalise(value)]).search(text) is not None
    found = {means[match[0]] for match in _PATTERNS[slot].finditer(text)}
    return found == {value}
