"""The mixture the embedded model is pretrained on: tables of many domains and texts about them.

    python -m mingpt_prefix.tiny.mixture --documents 150000 --seed 0 --out mixture.txt

writes documents separated by a line `<|endoftext|>`. What they teach is general: to copy values
out of a table and to say every slot that is there and no other. Domains, values, wording and the
way tables are written are all foreign to the sample data set (`make_sample.py`), on which prefixes
are tried.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random

from .mixture_coined import Separators, coin
from .mixture_culture import CULTURE
from .mixture_invented import invent
from .mixture_nature import NATURE
from .mixture_slots import Domain
from .mixture_text import Fact, describe, join
from .mixture_trade import TRADE
from .mixture_values import Author, person, pick, place, title, word

END = "<|endoftext|>"
DOMAINS: tuple[Domain, ...] = CULTURE + NATURE + TRADE

Rows = Sequence[tuple[str, str]]

FORMATS: dict[str, Callable[[Rows], str]] = {
    "semicolons": lambda rows: "; ".join(f"{key}: {value}" for key, value in rows),
    "assignments": lambda rows: "\n".join(f"{key} = {value}" for key, value in rows),
    "tags": lambda rows: " ".join(f"<{key}> {value} </{key}>" for key, value in rows),
    "arrows": lambda rows: ", ".join(f"{key} -> {value}" for key, value in rows),
    "pairs": lambda rows: ", ".join(f"({key}, {value})" for key, value in rows),
    "json": lambda rows: json.dumps(dict(rows), ensure_ascii=False),
    "markdown": lambda rows: "\n".join(f"| {key} | {value} |" for key, value in rows),
    "sentences": lambda rows: " ".join(f"{key} is {value}." for key, value in rows),
    "bullets": lambda rows: "\n".join(f"- {key}: {value}" for key, value in rows),
    "lines": lambda rows: "\n".join(f"{key}: {value}" for key, value in rows),
    "slashes": lambda rows: " / ".join(f"{key}={value}" for key, value in rows),
    "braces": lambda rows: " ".join(f"{key}{{{value}}}" for key, value in rows),
    "quotes": lambda rows: ", ".join(f"'{key}' '{value}'" for key, value in rows),
    "dashes": lambda rows: " ; ".join(f"{key} - {value}" for key, value in rows),
}
LABELS = ("Data: ", "Facts - ", "Table:\n", "Record: ", "Given: ", "Entry. ", "INPUT ", "# Facts\n")
SEPARATORS = (
    "\n", "\n\n", " => ", "\nText: ", "\nIn words: ", "\nDescription: ", " ## ", "\n---\n",
    "\nOutput: ", "\nSummary:\n", " >>> ",
)  # fmt: skip
_SIZES = (3, 3, 4, 4, 4, 5, 5, 5, 6, 6, 7, 8)


def _camel(name: str) -> str:
    first, *others = name.split(" ")
    return first + "".join(other.capitalize() for other in others)


SPELLINGS: tuple[Callable[[str], str], ...] = (
    lambda name: name,
    lambda name: name.replace(" ", "_"),
    str.title,
    str.capitalize,
    _camel,
    str.upper,
)


class Style:
    """How one document writes its tables: format, label and spelling of the slots' names."""

    def __init__(self, rng: Random, free: bool = False) -> None:
        free = free and rng.random() < 0.6
        self.format = Separators(rng) if free else FORMATS[pick(rng, tuple(FORMATS))]
        self.spell = SPELLINGS[0] if free and rng.random() < 0.75 else pick(rng, SPELLINGS)
        self.label = pick(rng, LABELS) if rng.random() < 0.35 else ""

    def write(self, rows: Rows) -> str:
        return self.label + self.format([(self.spell(name), value) for name, value in rows])


def draw_facts(
    domain: Domain, rng: Random, is_orderly: bool, nameless: float
) -> tuple[str | None, list[Fact]]:
    """The key of a table of the domain, None in a share of them, and facts on some other slots, in
    the domain's order or in any."""
    key = None if rng.random() < nameless else domain.key.draw(rng)
    size = min(pick(rng, _SIZES) - (key is not None), len(domain.slots))
    chosen = rng.sample(domain.slots, size)
    if is_orderly:
        chosen.sort(key=domain.slots.index)
    return key, [(slot, slot.draw(rng)) for slot in chosen]


def draw_pair(domain: Domain, rng: Random, author: Author | None = None) -> tuple[Rows, str]:
    """A table of the domain, its rows in random or the author's order, and a text that says it."""
    is_orderly = author is not None and author.is_orderly
    key, facts = draw_facts(domain, rng, is_orderly, nameless=0.05)
    rows = [(slot.name, value) for slot, value in facts]
    if key is not None:
        at = 0 if is_orderly or rng.random() < 0.5 else int(rng.random() * (len(rows) + 1))
        rows.insert(at, (domain.key.name, key))
    return rows, describe(domain, key, facts, author or rng)


def draw_domain(rng: Random, coined: float = 0.0) -> Domain:
    """A domain that is written out, one made up of known slots, or, `coined` of them, all new."""
    if coined and rng.random() < coined:
        return coin(rng)
    return invent(rng) if rng.random() < 0.25 else pick(rng, DOMAINS)


def _copying(rng: Random) -> str:
    """A list said again, or one slot of a table looked up."""
    draw = rng.random()
    if draw < 0.4:
        source = pick(rng, (person, place, title, word))
        items = [source(rng) for _ in range(2 + int(rng.random() * 5))]
        said = pick(rng, ("Repeat: {} => {}", "List: {}\nThe list again: {}", "{}\nCopy: {}"))
        return said.format(", ".join(items), ", ".join(items))
    if draw < 0.6:
        items = [person(rng) for _ in range(2 + int(rng.random() * 4))]
        shown = pick(rng, ("\n", "; ", ", ")).join(items)
        return f"{shown}{pick(rng, SEPARATORS)}The people are {join(items, rng)}."
    rows, _ = draw_pair(draw_domain(rng), rng)
    name, value = pick(rng, rows)
    style = Style(rng)
    return f"{style.write(rows)}\n{style.spell(name)}? {value}"


def documents(count: int, seed: int, longest_run: int = 1, coined: float = 0.0) -> Iterator[str]:
    """`count` draws, each yielding its documents: one, or tables, each with its text after it.

    A table in a document of its own mostly starts with a space, and so does its text: after the
    end-of-text token both ways to begin are common. Up to `longest_run` tables of one domain and
    style follow each other, then by one author: what comes first shows how to go on. `coined`: the
    share of domains that are coined for their document, whose tables may be written in any way.
    """
    rng = Random(seed)
    for _ in range(count):
        kind = rng.random()
        if kind < 0.05:
            yield _copying(rng)
            continue
        domain, style = draw_domain(rng, coined), Style(rng, free=coined > 0)
        author = Author(rng) if longest_run > 1 else None
        if kind < 0.55:
            run = 1 if author is None else 1 + int(rng.random() * longest_run)
            drawn = [draw_pair(domain, rng, author) for _ in range(run)]
            space = " " if rng.random() < 0.7 else ""
            for rows, text in drawn:
                yield space + style.write(rows)
                yield space + text
        elif kind < 0.6:
            rows, text = draw_pair(domain, rng, author)
            yield (
                text
                + pick(rng, ("\n", "\n\n", " => ", "\nAs a table: ", "\n---\n"))
                + style.write(rows)
            )
        else:
            separator, pairs = pick(rng, SEPARATORS), 1
            if kind > 0.85:
                pairs = 2 if rng.random() < 0.6 else 3
            drawn = [draw_pair(domain, rng, author) for _ in range(pairs)]
            yield "\n\n".join(style.write(rows) + separator + text for rows, text in drawn)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write the embedded model's pretraining text.")
    parser.add_argument("--documents", type=int, default=150_000, help="how many draws")
    parser.add_argument("--longest-run", type=int, default=1, help="of tables in one style")
    parser.add_argument("--coined", type=float, default=0.0, help="share of domains all new")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    with options.out.open("w", encoding="utf-8", newline="\n") as file:
        drawn = documents(options.documents, options.seed, options.longest_run, options.coined)
        for document in drawn:
            file.write(f"{document}\n{END}\n")


if __name__ == "__main__":
    main()
