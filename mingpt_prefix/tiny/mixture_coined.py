"""Domains of the mixture that live for one document: slots, values and wordings, all at random.

Nothing about them can be known beforehand. How a slot is said, and which word stands for a value,
only the tables before it in the document tell, as a prefix tells it to a frozen model.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from functools import cache
from random import Random

from mingpt_prefix import tiny
from mingpt_prefix.data.tokenizer import load_tokenizer

from . import mixture_values as v
from .mixture_slots import Domain, Slot, slot

_OPEN = (v.person, v.place, v.title, v.word, v.company, v.model, v.money, v.count, v.date, v.year)
_PREPOSITIONS = ("in", "on", "at", "by", "for", "from", "to", "of", "with", "after", "over")
# W stands for a random word or the slot's own name, P for a preposition.
_VERBS = (
    "W {}", "is W {}", "is W P {}", "is P {}", "W P {}", "has {} W", "was W P {}", "has a W of {}",
    "has a(n) {} W", "Ws {}", "can be W P {}", "W W {}", "is {}", "Ws {} P W",
)  # fmt: skip
_MODIFIERS = ("+W {}", "+P {}", "+W P {}", "+with {} W", "+with a W of {}", "+that W {}", "+W W {}")
_NAMED = ("={}", "#{}")
_FIXED = ("W", "is W", "has W", "Ws W", "was W", "is W P W", "is a W", "can W")
_OPPOSED = (
    ("is W", "is not W"), ("Ws W", "does not W W"), ("has W", "has no W"), ("can W", "cannot W"),
    ("is W W", "is not W W"), ("is for W", "is not for W"), ("is a W W", "is no W W"),
    ("W is W", "W is not W"),
)  # fmt: skip
_BINARY = (("true", "false"), ("on", "off"), ("y", "n"), ("+", "-"), ("1", "0"))
_HOLE = re.compile(r"[WP]")


@cache
def words() -> tuple[str, ...]:
    """Lower-case words that are tokens of the vocabulary and stand nowhere in the sample data."""
    sample: set[str] = set()
    for path in tiny.SAMPLE.glob("*.csv"):
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.reader(file):
                sample.update(re.findall("[a-z]+", " ".join(row).lower()))
    encoding = load_tokenizer("tiny").encoding
    tokens = (encoding.decode([rank]) for rank in range(encoding.n_vocab - 1))
    return tuple(
        token[1:]
        for token in tokens
        if re.fullmatch(" [a-z]{4,}", token) and token[1:] not in sample
    )


def term(rng: Random) -> str:
    """A word, a compound, or an invented word: of one token or of several."""
    draw = rng.random()
    if draw < 0.6:
        return v.pick(rng, words())
    if draw < 0.75:
        return v.pick(rng, words()) + v.pick(rng, words())
    return v.syllables(rng)


def _terms(rng: Random) -> str:
    return term(rng) if rng.random() < 0.75 else f"{term(rng)} {term(rng)}"


def _worded(rng: Random, form: str, name: str) -> str:
    """`form` with its holes filled; every other hole names the slot itself."""

    def fill(hole: re.Match[str]) -> str:
        if hole[0] == "P":
            return v.pick(rng, _PREPOSITIONS)
        return name if rng.random() < 0.5 else term(rng)

    return _HOLE.sub(fill, form)


def _value(rng: Random) -> str:
    """A value of a closed list."""
    draw = rng.random()
    if draw < 0.5:
        return term(rng)
    if draw < 0.7:
        return _terms(rng)
    if draw < 0.8:
        return term(rng).capitalize()
    number, other = v.whole(rng, 1, 60), v.whole(rng, 1, 60)
    sign = v.pick(rng, ("", "", "$", "€", "%", "#"))
    return v.pick(
        rng,
        (
            f"{number} {term(rng)} {other}",
            f"{sign}{number}-{other}",
            f"{term(rng)} {term(rng)} {sign}{number}",
            f"{number} {term(rng)}",
        ),
    )


def _copied(rng: Random, name: str) -> Slot:
    """A slot whose values are said as they stand."""
    source = v.pick(rng, _OPEN)
    if rng.random() < 0.6:
        source = tuple({_value(rng) for _ in range(v.whole(rng, 2, 7))})
        source = tuple(sorted(source))
    forms = [_worded(rng, v.pick(rng, _VERBS), name) for _ in range(v.whole(rng, 1, 3))]
    if rng.random() < 0.6:
        forms.append(_worded(rng, v.pick(rng, _MODIFIERS), name))
    if rng.random() < 0.3:
        forms.append(v.pick(rng, _NAMED).format(name))
    if rng.random() < 0.25:
        forms.append(v.pick(rng, ("~{}", "^{}")))
    return slot(name, source, *forms)


def _reworded(rng: Random, name: str) -> Slot:
    """A slot whose values are said in words of their own."""
    if rng.random() < 0.5:
        yes, no = v.pick(rng, _BINARY) if rng.random() < 0.5 else (term(rng), term(rng))
        said: dict[str, list[str]] = {yes: [], no: []}
        for _ in range(v.whole(rng, 1, 3)):
            state, words_rng = v.pick(rng, _OPPOSED), rng.getrandbits(32)
            # The same seed gives both the same words, as far as they go.
            said[yes].append(_worded(Random(words_rng), state[0], name))
            said[no].append(_worded(Random(words_rng), state[1], name))
        return slot(name, said)
    values = sorted({_value(rng) for _ in range(v.whole(rng, 2, 4))})
    frame = v.pick(rng, _FIXED)
    return slot(name, {value: [_worded(rng, frame, value)] for value in values})


def coin(rng: Random) -> Domain:
    """A domain of one or two nouns, a key slot, and four to eight others."""
    chosen: dict[str, Slot] = {}
    count = v.whole(rng, 4, 8)
    while len(chosen) < count:
        name = _terms(rng)
        make = _reworded if rng.random() < 0.25 else _copied
        chosen.setdefault(name, make(rng, name))
    nouns = tuple(term(rng) for _ in range(v.whole(rng, 1, 2)))
    return Domain(nouns, slot(term(rng), v.pick(rng, _OPEN[:6])), tuple(chosen.values()))


MARKS = (":", "=", "->", "-", "~", ">", "/", "::", "=>", "*", "_", "is", "as", "?", "<-", ":=")
BREAKS = (",", ";", "|", "/", "\n", "+", "&", ".", "//", "*", "||", ";;", "#", "~", "--", "and")
_WRAPPED = ("()", "<>", "{}", "''", '""', "``")


class Separators:
    """A way to write tables, drawn at random: marks, breaks, spaces, and maybe brackets.

    The colon and the bar never come together, as they do in what prefixes are tried on.
    """

    def __init__(self, rng: Random) -> None:
        mark, between = ":", "|"
        while mark == between or (mark, between) == (":", "|"):
            mark, between = v.pick(rng, MARKS), v.pick(rng, BREAKS)
        left, right = v.pick(rng, ((" ", " "), (" ", " "), ("", " "), ("", "")))
        if mark.isalpha():
            left = right = " "
        self.mark = left + mark + right
        self.between = between
        if between != "\n":
            self.between = v.pick(rng, (" ", "") if not between.isalpha() else (" ",)) + between
            self.between += " "
        self.wrapped = v.pick(rng, _WRAPPED) if rng.random() < 0.25 else ""
        self.whole = rng.random() < 0.5

    def __call__(self, rows: Sequence[tuple[str, str]]) -> str:
        first, last = self.wrapped[:1], self.wrapped[1:]
        if self.whole:
            return self.between.join(f"{first}{k}{self.mark}{x}{last}" for k, x in rows)
        return self.between.join(f"{k}{self.mark}{first}{x}{last}" for k, x in rows)
