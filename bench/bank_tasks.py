"""The two tasks of bank.py: the sample's restaurants, and films out of the pretraining mixture."""

import json
from pathlib import Path
from random import Random

from mingpt_prefix.data.tables import Table
from mingpt_prefix.tiny import make_sample
from mingpt_prefix.tiny.mixture_culture import FILM
from mingpt_prefix.tiny.mixture_text import describe
from mingpt_prefix.tiny.mixture_values import Author

References = list[tuple[Table, list[str]]]
_TRIES = 40


def restaurants(count: int) -> References:
    """`count` test tables of the sample data set and its kind, with their references."""
    made = make_sample.make({**make_sample.TABLES, "test": count})["test"]
    return [(Table(table), texts) for table, texts in made]


def films(count: int, seed: int, most: int = 8) -> References:
    """`count` tables of invented films, each with up to `most` texts by one author."""
    author, rng = Author(Random(5)), Random(seed)
    author.random, author.sample = rng.random, rng.sample  # the same habits, other draws
    made: dict[Table, list[str]] = {}
    while len(made) < count:
        title, chosen = FILM.key.draw(rng), rng.sample(FILM.slots, rng.randint(2, 5))
        facts = [(slot, slot.draw(rng)) for slot in sorted(chosen, key=FILM.slots.index)]
        table = Table(((FILM.key.name, title), *((slot.name, value) for slot, value in facts)))
        texts = {describe(FILM, title, facts, author): None for _ in range(_TRIES)}
        made[table] = list(texts)[:most]
    return list(made.items())


def write_films(folder: Path, train: int, dev: int) -> None:
    """train.jsonl and dev.jsonl, a line a sentence."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, count, seed in (("train", train, 1), ("dev", dev, 2)):
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for table, texts in films(count, seed):
                lines = ({"table": dict(table.slots), "text": text} for text in texts)
                file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
