"""Makes the sample data set: invented restaurants, in the format of E2E's CSV files.

    python -m mingpt_prefix.tiny.make_sample [--out DIR]

writes trainset.csv, devset.csv and testset_w_refs.csv, the same bytes every time. Names, places and
combinations of values in the dev and test tables do not occur in training, and some sets of slots
are kept for them.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from random import Random

from .sample_text import write
from .slots import EVIDENCE, SLOTS

Table = tuple[tuple[str, str], ...]

FILES = {"train": "trainset.csv", "dev": "devset.csv", "test": "testset_w_refs.csv"}
TABLES = {"train": 384, "dev": 48, "test": 100}
REFERENCES = 8
HELD_OUT_SETS = {"dev": 6, "test": 12}
SKEW = 0.74  # how much less a wording is liked than the one before it

_QUALITIES = (
    "Copper Golden Rusty Merry Cosy Salty Smoky Jolly Blushing Dancing Old Amber Speckled Humble "
    "Hungry Laughing Wooden Mossy Plump"
).split()
_OBJECTS = (
    "Kettle Spoon Ladle Pheasant Hare Otter Badger Goose Heron Plough Thistle Acorn Teapot Skillet "
    "Pepper Olive Magpie Tankard Cauldron Larder Hearth Walnut Clover Pantry"
).split()
_HERBS = (
    "Bramble Rye Salt Thyme Ash Sage Barley Honey Clove Mint Basil Vine Oat Fennel Nettle".split()
)
_HOSTS = (
    "Otto Mabel Gino Rosalind Bruno Edith Marcel Hattie Luigi Agatha Percy Winifred Nico Dorothea "
    "Hugo Millicent Basir Cosima Alfie Tess"
).split()
_HOST_ENDS = ("", " Kitchen", " Table", " Corner")
_TREES = "Juniper Linden Hawthorn Willow Maple Alder Rowan Elder Poplar Hazel Cedar Aspen".split()
_SPOTS = "Hall House Green Park Mews Station Lodge Gardens".split()


def names() -> list[str]:
    """All names of places to eat, in a fixed order."""
    found = [f"The {quality} {thing}" for quality in _QUALITIES for thing in _OBJECTS]
    found += [f"{one} & {other}" for one, other in combinations(_HERBS, 2)]
    return found + [f"{host}'s{end}" for host in _HOSTS for end in _HOST_ENDS]


def places() -> list[str]:
    """All names of places nearby."""
    return [f"{tree} {spot}" for tree in _TREES for spot in _SPOTS]


def slot_sets() -> list[tuple[str, ...]]:
    """Every set of three to eight slots that holds the name."""
    others = SLOTS[1:]
    return [
        ("name", *chosen)
        for size in range(2, len(others) + 1)
        for chosen in combinations(others, size)
    ]


def values_of(table: Table) -> Table:
    """The table without the two open slots: what must differ between training and the rest."""
    return tuple((slot, value) for slot, value in table if slot not in ("name", "near"))


def make(counts: Mapping[str, int] = TABLES) -> dict[str, list[tuple[Table, list[str]]]]:
    """The splits: so many tables each, with their references."""
    rng = Random(2021)
    tables = _tables(rng, counts)
    return {split: [(table, _references(table, rng)) for table in tables[split]] for split in FILES}


def _tables(rng: Random, counts: Mapping[str, int]) -> dict[str, list[Table]]:
    """Tables of all splits; training first, so that the others can keep clear of it."""
    all_names, all_places, sets = names(), places(), slot_sets()
    for pool in (all_names, all_places):
        rng.shuffle(pool)
    held = rng.sample([chosen for chosen in sets if 4 <= len(chosen) <= 6], 18)
    kept = {"train": [], "dev": held[: HELD_OUT_SETS["dev"]], "test": held[HELD_OUT_SETS["dev"] :]}
    common = [chosen for chosen in sets if chosen not in held]
    sizes = {3: 6, 4: 18, 5: 28, 6: 26, 7: 15, 8: 7}
    by_size = {size: [chosen for chosen in common if len(chosen) == size] for size in sizes}
    pools = {
        "train": (all_names[:320], all_places[:64]),
        "dev": (all_names[320:360], all_places[64:74]),
        "test": (all_names[360:450], all_places[74:]),
    }
    seen: set[Table] = set()
    made: dict[str, list[Table]] = {}
    for split, count in counts.items():
        made[split], taken = [], set(seen)
        while len(made[split]) < count:
            own = kept[split]
            if own and rng.random() < 0.3:
                chosen = rng.choice(own)
            else:
                chosen = rng.choice(by_size[rng.choices(list(sizes), sizes.values())[0]])
            table = _fill(chosen, pools[split], rng)
            # Two sets of the same values are one table twice, but for short ones in training.
            if values_of(table) not in taken or (split == "train" and len(chosen) < 5):
                made[split].append(table)
                taken.add(values_of(table))
        seen |= taken if split == "train" else set()
    return made


def _fill(chosen: Sequence[str], pool: tuple[list[str], list[str]], rng: Random) -> Table:
    def value(slot: str) -> str:
        if slot == "name":
            return rng.choice(pool[0])
        return rng.choice(pool[1] if slot == "near" else list(EVIDENCE[slot]))

    return tuple((slot, value(slot)) for slot in chosen)


def _references(table: Table, rng: Random) -> list[str]:
    """References that differ from each other, most of them built on the well-liked wordings."""

    def choose(options: Sequence[str]) -> str:
        return rng.choices(options, [SKEW**place for place in range(len(options))])[0]

    found: list[str] = []
    while len(found) < REFERENCES:
        text = write(table, choose)
        if text not in found:
            found.append(text)
    return found


def meaning(table: Table) -> str:
    """The table as E2E writes it."""
    return ", ".join(f"{slot}[{value}]" for slot, value in table)


def save(folder: Path) -> None:
    """Writes the three files into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, items in make().items():
        with (folder / FILES[split]).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("mr", "ref"))
            for table, references in items:
                writer.writerows((meaning(table), text) for text in references)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write the sample data set.")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("sample"))
    save(parser.parse_args(argv).out)


if __name__ == "__main__":
    main()
