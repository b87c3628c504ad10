"""Names, dates and figures for the tables that the embedded model is pretrained on.

    Names(Random(0), words).draw("place")       # ["Quistel & Thorn"]

wordings.toml lists what they are made of: everyday English words, halves of two, real names from
Faker, invented words and random letters. A model cannot guess them, so it has to copy them.
"""

from __future__ import annotations

import re
import string
import tomllib
from collections.abc import Callable, Hashable, Sequence
from functools import cache
from pathlib import Path
from random import Random

with Path(__file__).with_name("wordings.toml").open("rb") as _file:
    WORDINGS = tomllib.load(_file)
_PARTS = {name: part.split() for name, part in WORDINGS["names"].items() if isinstance(part, str)}
_FRAMES: dict[str, list[str]] = WORDINGS["names"]["frames"]
_FIELD = re.compile(r"\{(.*?)\}")
_ACCENTS = str.maketrans("aeiouncs", "áéíöüñçš")
_FEW = 3  # frames of each kind, if `most` is set
_SOURCES = ("words", "words", "real", "real", "spliced", "invented", "letters")


@cache
def _real() -> dict[str, tuple[str, ...]]:
    """Names of each kind from Faker, in Latin letters."""
    from faker import Faker

    faker = Faker(_PARTS["locales"], use_weighting=False)
    faker.seed_instance(0)
    draws = {
        "first": faker.first_name,
        "last": faker.last_name,
        "cities": faker.city,
        "companies": faker.company,
        "streets": faker.street_name,
        "countries": faker["en_GB"].country,
    }
    return {kind: tuple(sorted({draw() for _ in range(3000)})) for kind, draw in draws.items()}


class Names:
    """`words` are everyday English ones. Each instance prefers one source of words.

    `most`: how many different words each place in a frame can have (0: any number).
    """

    def __init__(self, rng: Random, words: Sequence[str], most: int = 0) -> None:
        self.rng, self.words, self.most = rng, words, most
        self.kept: dict[Hashable, list[str]] = {}
        self.lean = rng.choice(("words", "real", "spliced", "invented", "all", "all"))

    def draw(self, kind: str) -> list[str]:
        """A value by a frame of this kind: as a table shows it, then other ways to say it."""
        frame = self._kept(kind, lambda: self.rng.choice(_FRAMES[kind]), _FEW)
        return self.fill(frame).split("|")

    def fill(self, frame: str) -> str:
        """`frame` with a name, word or number for each of its fields (see wordings.toml)."""
        low = self.rng.randint(2, 95)
        high = low + self.rng.choice((2, 3, 5, 10, 15))
        same = {"low": str(low), "high": str(high), "sign": self.rng.choice(_PARTS["signs"])}
        return _FIELD.sub(lambda f: same.get(f[1]) or self._part(f[1], (frame, f.start())), frame)

    def _part(self, field: str, place: Hashable) -> str:
        if field in _FRAMES:
            return self.draw(field)[0]
        if field[:1].isdigit():
            return str(self.rng.randint(*map(int, field.split("-"))))
        if options := _PARTS.get(field) or _real().get(field):
            return self._kept(place, lambda: self.rng.choice(options), self.most)
        return self._kept(place, self.plain if field else self.word, self.most)

    def _kept(self, place: Hashable, draw: Callable[[], str], most: int) -> str:
        if not self.most:
            return draw()
        kept = self.kept.setdefault(place, [])
        if len(kept) < most:
            kept.append(draw())
        return self.rng.choice(kept)

    def word(self) -> str:
        """One capitalised word of a name."""
        source = self.lean
        if source == "all" or self.rng.random() < 0.15:
            source = self.rng.choice(_SOURCES)
        if source == "words":
            return self.plain().capitalize()
        if source == "real":
            return self.rng.choice(_real()[self.rng.choice(("first", "last"))])
        if source == "spliced":  # the beginning of one word and the end of another
            first, last = self.plain(), self.plain()
            return (first[: (len(first) + 1) // 2] + last[len(last) // 2 :]).capitalize()
        if source == "invented":
            return self._invented().capitalize()
        return "".join(self.rng.choices(string.ascii_lowercase, k=self.rng.randint(3, 8))).title()

    def plain(self) -> str:
        return self.rng.choice(self.words)

    def _invented(self) -> str:
        rng, made = self.rng, ""
        for _ in range(rng.choice((1, 2, 2, 2, 3))):
            made += rng.choice(_PARTS["onsets"]) + rng.choice(_PARTS["vowels"])
            made += rng.choice(_PARTS["codas"]) if rng.random() < 0.55 else ""
        if rng.random() < 0.1:
            made = made.replace(letter := rng.choice(made), letter.translate(_ACCENTS), 1)
        return made
