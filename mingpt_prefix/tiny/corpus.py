"""The text that the embedded model is pretrained on, besides English: tables and their texts.

    for document in documents(Random(0), words): ...

Things of six families (places, people, works, products, land, events), in tables of many formats,
put into words by authors with preferences (`sentences.py`, `wordings.toml`); texts without tables;
and lists to be copied, reversed and looked up. The task that prefixes are tried on is not among
them: no table describes a place to eat or drink, and none has the format that a prefix is given.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from random import Random

from mingpt_prefix.tiny import make_sample
from mingpt_prefix.tiny.names import WORDINGS, Names
from mingpt_prefix.tiny.sentences import FORMS, Author, Fact, Thing, describe

Rows = Sequence[tuple[str, str]]
_SIZES = (2, 3, 3, 4, 4, 5, 5, 6, 6, 7)  # slots of a table, beside its name and kind
_POSSESSIVES = {"it": "its", "she": "her", "he": "his"}
_STYLES: dict[str, list] = WORDINGS["styles"]
_GIVEN = [" : ", " | "]  # of the format in which a prefix is given tables
_SAMPLE_SLOTS = "food|area|near|eat type|price range|customer rating|family friendly".split("|")
_SPELLINGS = (str, str, str, str.title, str.capitalize, str.upper, lambda n: n.replace(" ", "_"))


class Domain:
    """A family, some of its kinds, and the slots that its tables choose from."""

    def __init__(self, rng: Random, names: Names, family: str | None = None) -> None:
        self.rng, self.names = rng, names
        self.name = family or rng.choice(tuple(WORDINGS["family"]))
        self.family = WORDINGS["family"][self.name]
        kinds = self.family["kinds"]
        self.kinds = rng.sample(kinds, min(len(kinds), rng.choice((1, 3, 6, 99))))
        own = [slot for slot in WORDINGS["slot"] if self.name in slot["of"]]
        chosen = rng.sample(own, min(len(own), rng.randint(5, 10)))
        self.name_slot = rng.choice(("name", "name", "title", "label", "called", self.name))
        self.kind_slot = rng.choice(("kind", "category", "what", "sort", "class"))
        by_name = {self._name_of(slot): slot for slot in chosen}
        self.slots = [i for i in by_name.items() if i[0] not in (self.name_slot, self.kind_slot)]
        self.truths = rng.choice((("yes", "no"), ("yes", "no"), ("true", "false"), ("Yes", "No")))
        self.is_orderly, self.kind_share = rng.random() < 0.75, rng.choice((0.5, 0.8, 1.0))
        self.she_share = rng.random()

    def _name_of(self, slot: dict) -> str:
        if slot["names"] != "any":
            return self.rng.choice(slot["names"])
        name = " ".join(self.names.plain() for _ in range(self.rng.choice((1, 1, 2))))
        return self._name_of(slot) if name in _SAMPLE_SLOTS else name

    def draw(self, order: dict[str, float] | None = None) -> tuple[Rows, Thing]:
        """A table's rows, and the thing it is about. `order` keeps an author's order of facts."""
        rng, family = self.rng, self.family
        chosen = rng.sample(self.slots, min(rng.choice(_SIZES), len(self.slots)))
        if self.is_orderly:
            chosen.sort(key=self.slots.index)
        pronoun = family["pronoun"] or ("she" if rng.random() < self.she_share else "he")
        facts = [self._fact(name, slot, _POSSESSIVES[pronoun]) for name, slot in chosen]
        name = self.names.draw(self.name)[0]
        kind = rng.choice(self.kinds) if rng.random() < self.kind_share else None
        rows = [(self.name_slot, name), *([(self.kind_slot, kind)] if kind else [])]
        rows += [(fact.slot, fact.shown) for fact in facts]
        if not self.is_orderly and rng.random() < 0.7:
            rng.shuffle(rows)
        if order is not None:
            facts.sort(key=lambda fact: order.setdefault(fact.slot, rng.random()))
        noun = kind or rng.choice(family["nouns"])
        return rows, Thing(name, noun, pronoun, tuple(family["links"]), family["seek"], facts)

    def _fact(self, name: str, slot: dict, its: str) -> Fact:
        rng, words, forms = self.rng, {}, slot
        if "table" in slot:
            value = rng.choice(tuple(slot["table"]))
            said, forms = (value,), slot["table"][value]
            if slot.get("bool"):
                value = self.truths[value == "no"]
        elif "values" in slot:
            value = rng.choice(slot["values"])
            words = {word: values[value] for word, values in slot.get("words", {}).items()}
            if not words and rng.random() < 0.2:
                value = " ".join(self.names.plain() for _ in range(rng.choice((1, 2))))
            said = (value,)
        else:
            drawn = self.names.draw(slot["source"]) if "source" in slot else None
            said = drawn or [self.names.fill(slot["pattern"])]
            value = said[0]
        words |= {"v": rng.choice(said), "who": rng.choice(self.family["who"])}
        words |= {"slot": name, "its": its}
        ways = {form: forms[form] for form in FORMS if form in forms}
        said = {form: tuple(way.format(**words) for way in ways[form]) for form in ways}
        return Fact(name, value, said)


class Style:
    """A table format, and what separates a table from its text (`between`; None: document end)."""

    def __init__(self, rng: Random, always_ends: bool = False) -> None:
        self.row = rng.choice(_STYLES["rows"])
        is_free = rng.random() < 0.4
        while is_free or self.row[1::2] == _GIVEN:
            self.row = ["", rng.choice(_STYLES["marks"]), "", rng.choice(_STYLES["marks"])]
            is_free = self.row[1] == self.row[3]
        self.spell = rng.choice(_SPELLINGS)
        self.label = rng.choice(_STYLES["labels"]) if rng.random() < 0.25 else ""
        self.space = " " if always_ends or rng.random() < 0.6 else ""
        self.between = None if always_ends or rng.random() < 0.5 else rng.choice(_STYLES["breaks"])

    def write(self, rows: Rows) -> str:
        start, middle, end, mark = self.row
        return self.label + mark.join(f"{start}{self.spell(n)}{middle}{v}{end}" for n, v in rows)


class Describing:
    """A domain and authors who describe its tables: draws pairs of table and text.

    `most`: as in `Names`; the names of new tables are made of any words.
    """

    def __init__(self, rng: Random, words: Sequence[str], authors: int = 1, most: int = 0) -> None:
        self.rng, self.domain, self.most = rng, Domain(rng, Names(rng, words)), most
        self.authors = [(Author(rng), self._orders()) for _ in range(authors)]

    def _orders(self) -> list[dict[str, float] | None]:
        """The orders in which an author states facts: the table's, or one or several of its own.
        With several, the last fact stated does not tell which one comes next."""
        if self.rng.random() < 0.2:
            return [None]
        return [{} for _ in range(self.rng.choice((1, 3, 6, 30)))]

    def draw(self, is_new: bool = False) -> tuple[Rows, str]:
        self.domain.names.most = 0 if is_new else self.most
        author, orders = self.rng.choice(self.authors)
        rows, thing = self.domain.draw(self.rng.choice(orders))
        return rows, describe(thing, author)


def documents(rng: Random, words: Sequence[str]) -> list[str]:
    """One draw: a document, or several that belong together."""
    draw = rng.random()
    if draw < 0.14:
        return [_copying(rng, Names(rng, words))]
    if draw < 0.26:
        task = Describing(rng, words, rng.choice((1, 2)))
        return [rng.choice((" ", "\n")).join(task.draw()[1] for _ in range(rng.randint(1, 5)))]
    task, style = Describing(rng, words), Style(rng)
    drawn = (task.draw() for _ in range(rng.randint(1, 8)))
    pairs = [(style.write(rows), text) for rows, text in drawn]
    if style.between is None:
        return [style.space + part for pair in pairs for part in pair]
    if rng.random() < 0.06:
        pairs = [(text, table) for table, text in pairs]
    return ["\n\n".join(first + style.between + second for first, second in pairs)]


def _copying(rng: Random, names: Names) -> str:
    """Lists to be repeated or reversed, and values to be looked up."""
    kind = rng.choice(("place", "person", "work", "any"))
    how = rng.choice(("again", "again", "reverse", "look up", "look up", "first"))
    mark = rng.choice((", ", "; ", "\n", " | ", " / "))
    sign = rng.choice((" => ", "\nAgain: ", "\n", " -- ", " ~ "))
    lines = []
    for _ in range(rng.randint(1, 4)):
        items = [names.draw(kind)[0] for _ in range(rng.randint(2, 6))]
        if how == "look up":
            keys, at = [names.plain() for _ in items], rng.randrange(len(items))
            pairs = zip(keys, items, strict=True)
            shown = mark.join(f"{key} {sign.strip() or '-'} {item}" for key, item in pairs)
            lines.append(f"{shown}\n{keys[at]}? {items[at]}")
        else:
            said = {"again": items, "reverse": items[::-1], "first": items[:1]}[how]
            lines.append(mark.join(items) + sign + mark.join(said))
    return "\n".join(lines)


_WORD = re.compile(r"[\w'&£$€-]+")
_NAME_WORD = re.compile(r"[^\W_]+")  # so that "the Dragon's" and "_the Dragon_" have "Dragon"


class Overlap:
    """Finds in a text any of `names`, or eight words in a row that `texts` have too."""

    def __init__(self, texts: Iterable[str], names: Iterable[str]) -> None:
        self.names = {tuple(_NAME_WORD.findall(name)) for name in names}
        self.longest = max(map(len, self.names))
        self.runs = {run for text in texts for run in _runs(_WORD.findall(text.lower()), 8)}

    def is_in(self, text: str) -> bool:
        words = _NAME_WORD.findall(text)
        if any(run in self.names for n in range(1, self.longest + 1) for run in _runs(words, n)):
            return True
        return any(run in self.runs for run in _runs(_WORD.findall(text.lower()), 8))


def _runs(words: Sequence[str], length: int) -> Iterator[tuple[str, ...]]:
    return zip(*(words[at:] for at in range(length)), strict=False)


def overlap_with_sample() -> Overlap:
    """What must not be in the text that the base is trained on."""
    made = [item for split in make_sample.make().values() for item in split]
    names = [value for table, _ in made for slot, value in table if slot in ("name", "near")]
    return Overlap([text for _, texts in made for text in texts], names)


def everyday_words(text: str) -> list[str]:
    """The 12,000 most common lower-case words of `text`, except the 150 most common."""
    counts = Counter(re.findall(r"(?<![\w'])[a-z]{3,12}(?![\w'])", text))
    return sorted(word for word, _ in counts.most_common(12_000)[150:])
