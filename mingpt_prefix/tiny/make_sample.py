"""Makes the sample data set: invented restaurants, in the format of E2E's CSV files.

    save(Path("mingpt_prefix/tiny/sample"))

writes the same bytes every time. The words of names and of places nearby in dev and test do not
occur in training; in test-known they do, though not the names. Combinations of values are new in
all three, and some sets of slots are kept for them.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from random import Random

from mingpt_prefix.evaluation.faults import SAMPLE, SLOTS
from mingpt_prefix.tiny.sentences import Choose, Fact, Thing, describe

Table = tuple[tuple[str, str], ...]

FILES = {
    "train": "trainset.csv",
    "dev": "devset.csv",
    "test": "testset_w_refs.csv",
    "test-known": "testset_known_w_refs.csv",
}
TABLES = {"train": 384, "dev": 48, "test": 100, "test-known": 100}
REFERENCES = 8
HELD_OUT_SETS = {"dev": 6, "test": 12}
SKEW = 0.74  # weight of a wording, relative to the one before it
_SIZES = {3: 6, 4: 18, 5: 28, 6: 26, 7: 15, 8: 7}  # slots of a table, and how often


def names(split: str) -> list[str]:
    """All names of places to eat made of a split's words, in a fixed order."""
    words = {kind: listed.split() for kind, listed in SAMPLE[split].items()}
    things, ends = words["things"], ["", *(f" {room}" for room in words["rooms"])]
    found = [f"The {quality} {thing}" for quality in words["qualities"] for thing in things]
    found += [f"{one} & {other}" for one, other in combinations(words["pairs"], 2)]
    found += [f"{host}'s{end}" for host in words["hosts"] for end in ends]
    alone = [] if split == "train" else [*(f"The {thing}" for thing in things), *words["qualities"]]
    return found + alone


def places(split: str) -> list[str]:
    """All names of places nearby made of a split's words."""
    trees, spots = (SAMPLE[split][kind].split() for kind in ("trees", "spots"))
    return [f"{tree} {spot}" for tree in trees for spot in spots]


def values_of(table: Table) -> Table:
    """The table without the two open slots: what must differ between training and the rest."""
    return tuple((slot, value) for slot, value in table if slot not in ("name", "near"))


def make(counts: Mapping[str, int] = TABLES) -> dict[str, list[tuple[Table, list[str]]]]:
    """The splits, with `counts` tables each, and their references."""
    rng = Random(2021)
    tables = _tables(rng, counts)
    return {split: [(table, references(table, rng)) for table in tables[split]] for split in FILES}


def _tables(rng: Random, counts: Mapping[str, int]) -> dict[str, list[Table]]:
    """Tables of all splits; training first, so that the others can avoid its values."""
    others = (chosen for size in range(2, len(SLOTS)) for chosen in combinations(SLOTS[1:], size))
    sets = [("name", *chosen) for chosen in others]
    own = [chosen for chosen in sets if 4 <= len(chosen) <= 6]
    held = rng.sample(own, sum(HELD_OUT_SETS.values()))
    kept = {"dev": held[: HELD_OUT_SETS["dev"]], "test": held[HELD_OUT_SETS["dev"] :]}
    kept["test-known"] = kept["test"]
    common = [chosen for chosen in sets if chosen not in held]
    by_size = {size: [chosen for chosen in common if len(chosen) == size] for size in _SIZES}
    pools = {split: (names(split), places(split)) for split in ("train", "dev", "test")}
    for pool in pools["train"]:
        rng.shuffle(pool)
    pools["test-known"] = pools["train"][0][-90:], pools["train"][1][-16:]
    pools["train"] = pools["train"][0][:-90], pools["train"][1][:-16]
    seen: set[Table] = set()
    made: dict[str, list[Table]] = {}
    for split, count in counts.items():
        made[split], taken = [], set(seen)
        while len(made[split]) < count:
            if split in kept and rng.random() < 0.3:
                chosen = rng.choice(kept[split])
            else:
                chosen = rng.choice(by_size[rng.choices(list(_SIZES), _SIZES.values())[0]])
            table = tuple((slot, _value(slot, pools[split], rng)) for slot in chosen)
            # Two sets of the same values are one table twice, but for short ones in training.
            if values_of(table) not in taken or (split == "train" and len(chosen) < 5):
                made[split].append(table)
                taken.add(values_of(table))
        seen |= taken if split == "train" else set()
    return made


def _value(slot: str, pool: tuple[list[str], list[str]], rng: Random) -> str:
    if slot in ("name", "near"):
        return rng.choice(pool[slot == "near"])
    return rng.choice(list(SAMPLE["slots"][slot]["values"]))


def references(table: Table, rng: Random, count: int = REFERENCES) -> list[str]:
    """`count` different references, most of them with the first wordings listed."""

    def choose(options: Sequence[str], key: str = "") -> str:
        return rng.choices(options, [SKEW**place for place in range(len(options))])[0]

    found: dict[str, None] = {}
    while len(found) < count:
        found[reference(table, choose)] = None
    return list(found)


def reference(table: Table, choose: Choose) -> str:
    """A text about `table`; `choose` picks from options listed by preference."""
    values = dict(table)
    order = choose(tuple(SAMPLE["orders"]), "order").split(", ")
    facts = [_fact(slot, values[slot], choose) for slot in order if slot in values]
    noun = values.get("eatType") or choose(SAMPLE["nouns"], "noun")
    thing = Thing(values["name"], noun, "it", tuple(SAMPLE["links"]), True, facts)
    return describe(thing, choose)


def _fact(slot: str, value: str, choose: Choose) -> Fact:
    own = SAMPLE["slots"][slot]
    has_figure = any(letter.isdigit() for letter in value)
    forms = own["figures"] if has_figure and "figures" in own else own.get("forms")
    forms = own["table"][value] if "table" in own else forms
    said = choose(tuple(own.get("said", {}).get(value, (value,))), slot)
    words = {word: values.get(value, value) for word, values in own.get("words", {}).items()}
    filled = {form: tuple(each.format(v=said, **words) for each in forms[form]) for form in forms}
    return Fact(slot, value, filled)


def meaning(table: Table) -> str:
    """The table as E2E writes it."""
    return ", ".join(f"{slot}[{value}]" for slot, value in table)


def save(folder: Path) -> None:
    """Write the files into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, items in make().items():
        with (folder / FILES[split]).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("mr", "ref"))
            for table, texts in items:
                writer.writerows((meaning(table), text) for text in texts)
