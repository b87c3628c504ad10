"""Where the values in the mixture's tables come from.

Every source is a function of a `random.Random`. Names are mostly spelled from syllables, so that
the only way to get them right is to copy them from the table.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from random import Random
from typing import TypeVar

T = TypeVar("T")

HABIT = 0.8  # how often an author keeps to a habit

WOMEN = (
    "Anna Beatrix Clara Dagny Elena Freya Greta Hanne Ingrid Jana Karla Leonora Marta Nadia Odile "
    "Petra Rosa Signe Tilda Ursula Vera Wanda Yara Zofia Amara Bronwen Carys Delphine Esme Farida"
).split()
MEN = (
    "Anton Boris Casper Dmitri Emil Felix Gustav Henrik Ivan Jakob Karl Leon Magnus Niels Oskar "
    "Pavel Rolf Stefan Tomas Ulrich Viktor Walter Yusuf Zoltan Arvid Bertram Conrad Dario Kofi"
).split()
ADJECTIVES = (
    "Silver Hidden Broken Silent Distant Burning Frozen Crooked Painted Sleeping Wandering "
    "Last First Seventh Velvet Scarlet Violet Paper Glass Iron Restless Hollow Midnight Northern "
    "Southern Lost Borrowed Patient Quiet Endless Secret Invisible Electric Grand Little Long"
).split()
NOUNS = (
    "Compass Lighthouse Shadow Voyage Winter Summer Letter Mirror Horizon Clock Engine Feather "
    "Staircase Comet Harbour Castle Promise Stranger Map Signal Tide Ladder Machine "
    "Desert Valley Ribbon Notebook Storm Island Window Parade Bridge Daughter Pilot Witness Riddle "
    "Lantern Thunder Avalanche Circus Echo Empire Planet Question Sailor Telescope Umbrella Wolf"
).split()
COLOURS = (
    "blue", "green", "black", "white", "purple", "orange", "yellow", "grey", "turquoise", "crimson",
    "dark blue", "pale green", "bright yellow", "off-white",
)  # fmt: skip
PEOPLES = (
    "Danish", "Polish", "Welsh", "Finnish", "Kenyan", "Peruvian", "Norwegian", "Hungarian",
    "Chilean", "Egyptian", "Dutch", "Latvian", "Bolivian", "Canadian", "Irish", "Icelandic",
    "Austrian", "Swedish", "Estonian",
)  # fmt: skip
MONTHS = (
    "January February March April May June July August September October November December"
).split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
SMALL = "two three four five six seven eight nine ten eleven twelve".split()
_ONSETS = (
    "b br c ch cl d dr f fl g gr h j k kr l m n p pl qu r s sh sk st t th tr v w wh y z "
    "b d f g h k l m n p r s t v"
).split() + [""]
_VOWELS = "a e i o u a e i o u ai ea ee oa ou ia".split()
_CODAS = "n r l s m t nd rn ll ck th x sh st rd lm".split() + [""] * 14
_PLACE_ENDS = "ton ham by mouth stead worth field ford burg holm vik gate dale moor minster".split()
_FIRMS = (
    "Systems Works Industries Group Holdings Partners Labs Motors Textiles Robotics Shipping "
    "Energy "
    "Optics Instruments Logistics Publishing"
).split()


class Author:
    """Draws as `rng` does, but with habits: of the same choices it mostly picks the same one."""

    def __init__(self, rng: Random) -> None:
        self.random, self.sample = rng.random, rng.sample
        self.habit = rng.getrandbits(32)
        self.is_orderly = rng.random() < 0.6

    def liking(self, thing: object) -> int:
        """A number that is the same whenever this author meets `thing`."""
        return zlib.crc32(repr(thing).encode(), self.habit)


def pick(rng: Random | Author, items: Sequence[T]) -> T:
    """One of `items`; several times faster than `rng.choice`, which would dominate."""
    if isinstance(rng, Author) and rng.random() < HABIT:
        return items[rng.liking(items) % len(items)]
    return items[int(rng.random() * len(items))]


def whole(rng: Random, low: int, high: int) -> int:
    """A whole number from `low` to `high`, both included."""
    return low + int(rng.random() * (high - low + 1))


def syllables(rng: Random) -> str:
    """An invented word of one to three syllables, in lower case."""
    count = 1 + (rng.random() < 0.9) + (rng.random() < 0.25)
    parts = [pick(rng, _ONSETS) + pick(rng, _VOWELS) for _ in range(count)]
    return "".join(parts) + (pick(rng, _CODAS) or pick(rng, "nrlst"))


def word(rng: Random) -> str:
    """An invented proper name of one word."""
    return syllables(rng).capitalize()


def person(rng: Random) -> str:
    first = pick(rng, WOMEN if rng.random() < 0.5 else MEN)
    if rng.random() < 0.12:
        return f"{first} {pick(rng, 'ABCDEGHJKLMNPRST')}. {word(rng)}"
    return f"{first} {word(rng)}"


def place(rng: Random) -> str:
    draw = rng.random()
    if draw < 0.35:
        return word(rng) + pick(rng, _PLACE_ENDS)
    if draw < 0.5:
        return f"{pick(rng, ('Port', 'Saint', 'New', 'Upper', 'Lake', 'Fort', 'East'))} {word(rng)}"
    if draw < 0.58:
        return f"{word(rng)}-on-{word(rng)}"
    return word(rng)


def title(rng: Random) -> str:
    draw = rng.random()
    adjective, noun = pick(rng, ADJECTIVES), pick(rng, NOUNS)
    if draw < 0.3:
        return f"The {adjective} {noun}"
    if draw < 0.42:
        return f"{adjective} {noun}{'es' if noun.endswith('s') else 's'}"
    if draw < 0.54:
        return f"The {noun} of {place(rng)}"
    if draw < 0.64:
        return f"{word(rng)}'s {noun}"
    if draw < 0.72:
        return f"{noun} and {pick(rng, NOUNS)}"
    if draw < 0.8:
        return f"The {word(rng)} {noun}"
    if draw < 0.86:
        return f"{pick(rng, SMALL).capitalize()} {noun}{'es' if noun.endswith('s') else 's'}"
    if draw < 0.93:
        return word(rng)
    return f"{noun} {whole(rng, 2, 99)}"


def company(rng: Random) -> str:
    draw = rng.random()
    if draw < 0.45:
        return f"{word(rng)} {pick(rng, _FIRMS)}"
    if draw < 0.65:
        return f"{word(rng)} & {word(rng)}"
    if draw < 0.8:
        return f"{word(rng)} {word(rng)}"
    return word(rng)


def model(rng: Random) -> str:
    """A product's or machine's name, often with a number in it."""
    draw = rng.random()
    if draw < 0.4:
        return f"{word(rng)} {whole(rng, 1, 40) * 10}"
    if draw < 0.6:
        return f"{word(rng)} {pick(rng, ('Pro', 'Mini', 'Max', 'Plus', 'One', 'Air', 'II'))}"
    if draw < 0.75:
        return f"{pick(rng, 'ABDGKMQRTXZ')}{whole(rng, 10, 999)}"
    return f"{word(rng)} {pick(rng, NOUNS)}"


def package(rng: Random) -> str:
    """A software package's name, in lower case."""
    ends = ("kit", "lib", "-core", "py", "-tools", "db", "flow", "")
    return syllables(rng) + pick(rng, ends)


def code(rng: Random) -> str:
    """A flight's or train's number."""
    letters = pick(rng, "ABDEFGKLNQRSTVX") + pick(rng, "ABCEHJKLMPRSTY")
    return f"{letters}{'' if rng.random() < 0.6 else ' '}{whole(rng, 10, 9999)}"


def year(rng: Random) -> str:
    return str(whole(rng, 1820, 2024))


def date(rng: Random) -> str:
    day, month = whole(rng, 1, 28), pick(rng, MONTHS)
    return f"{day} {month} {year(rng)}" if rng.random() < 0.6 else f"{month} {day}"


def clock(rng: Random) -> str:
    return f"{whole(rng, 0, 23):02d}:{whole(rng, 0, 11) * 5:02d}"


def money(rng: Random) -> str:
    draw = rng.random()
    if draw < 0.4:
        return f"${whole(rng, 5, 990)}"
    if draw < 0.6:
        return f"{whole(rng, 5, 990)} euros"
    if draw < 0.8:
        return f"€{whole(rng, 2, 99)}.{whole(rng, 10, 99)}"
    return f"{whole(rng, 2, 90)} dollars"


def fortune(rng: Random) -> str:
    return f"{whole(rng, 2, 950)} million {pick(rng, ('dollars', 'euros'))}"


def count(rng: Random) -> str:
    """A number of things, always more than one."""
    draw = rng.random()
    if draw < 0.25:
        return pick(rng, SMALL)
    return str(whole(rng, 2, 99)) if draw < 0.6 else f"{whole(rng, 1, 40)},{whole(rng, 100, 999)}"


def few(rng: Random) -> str:
    return pick(rng, SMALL) if rng.random() < 0.4 else str(whole(rng, 2, 90))


def percent(rng: Random) -> str:
    return f"{whole(rng, 1, 99)}{pick(rng, ('%', ' %', ' percent'))}"


def measure(unit: str, low: int, high: int) -> Callable[[Random], str]:
    """A source of lengths, weights and the like: a number and its unit."""

    def draw(rng: Random) -> str:
        return f"{whole(rng, low, high)} {unit}"

    return draw


def duration(rng: Random) -> str:
    unit = pick(rng, ("minutes", "hours", "days", "weeks"))
    return f"{whole(rng, 2, 59)} {unit}"


def celsius(rng: Random) -> str:
    return f"{whole(rng, -15, 38)} degrees"


def score(rng: Random) -> str:
    return f"{whole(rng, 0, 6)}-{whole(rng, 0, 6)}"


def version(rng: Random) -> str:
    return f"{whole(rng, 0, 9)}.{whole(rng, 0, 20)}.{whole(rng, 0, 9)}"


def club(rng: Random) -> str:
    return f"{place(rng)} {pick(rng, ('United', 'Rovers', 'Athletic', 'Wanderers', 'City'))}"
