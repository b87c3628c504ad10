"""The two tasks of bank.py: the sample's restaurants, and films, made as the base's tables are."""

import json
from pathlib import Path
from random import Random

from mingpt_prefix.data.tables import Table
from mingpt_prefix.tiny import make_sample
from mingpt_prefix.tiny.corpus import Domain, everyday_words
from mingpt_prefix.tiny.names import Names
from mingpt_prefix.tiny.sentences import Author, describe

References = list[tuple[Table, list[str]]]
_TRIES = 40
PROSE = Path(__file__).parents[1] / "prose.txt"


def restaurants(count: int) -> References:
    """`count` test tables of the sample data set and its kind, with their references."""
    made = make_sample.make({**make_sample.TABLES, "test": count})["test"]
    return [(Table(table), texts) for table, texts in made]


def films(count: int, seed: int, most: int = 8) -> References:
    """`count` tables of invented films, each with up to `most` texts by one author."""
    words = everyday_words(PROSE.read_text(encoding="utf-8"))
    fixed = Random(5)  # the same slots and habits; the rest is drawn by `seed`
    domain, author = Domain(fixed, Names(fixed, words), "work"), Author(fixed)
    domain.kinds, domain.kind_share = ["film"], 1.0
    domain.rng = domain.names.rng = author.rng = Random(seed)
    made: dict[Table, list[str]] = {}
    while len(made) < count:
        rows, thing = domain.draw()
        texts = {describe(thing, author): None for _ in range(_TRIES)}
        made[Table(tuple(rows))] = list(texts)[:most]
    return list(made.items())


def write_films(folder: Path, train: int, dev: int) -> None:
    """train.jsonl and dev.jsonl, a line a sentence."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, count, seed in (("train", train, 1), ("dev", dev, 2)):
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for table, texts in films(count, seed):
                lines = ({"table": dict(table.slots), "text": text} for text in texts)
                file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
