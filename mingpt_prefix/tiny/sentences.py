"""How a table is put into words: which facts the opening states, and which ones follow it.

    text = describe(Thing("place", "The Old Mill", "museum", facts), Author(rng))

An author prefers some wordings to others, in all their texts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

# One of the options; `key` tells choices apart that have the same ones.
Choose = Callable[..., str]
FORMS = ("verb", "with", "clause", "before", "after", "at")  # see wordings.toml
_ARTICLE = re.compile(r"\ba (?=[aeiouAEIOU])(?![Uu]ni(?![mn])|[Uu]se|[Ee]u|[Oo]ne|U[kgrzA-Z])")


@dataclass(frozen=True)
class Fact:
    """A slot's value: `shown` in the table, `forms` in words (see wordings.toml)."""

    slot: str
    shown: str
    forms: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Thing:
    """What a text is about. `kind` is its noun, `links` introduce a clause about it."""

    name: str
    kind: str
    pronoun: str
    links: tuple[str, ...]
    can_be_sought: bool
    facts: Sequence[Fact]


class Author:
    """Chooses among options: always in an order of preference of its own, more or less firmly."""

    def __init__(self, rng: Random) -> None:
        self.rng, self.wavers = rng, rng.choice((0.0, 0.3, 0.5, 0.7, 0.8))
        self.orders: dict[tuple, list[str]] = {}

    def __call__(self, options: Sequence[str], key: str = "") -> str:
        order = self.orders.get((key, *options))
        if order is None:
            order = self.orders[key, *options] = self.rng.sample(options, len(options))
        return next((each for each in order if self.rng.random() >= self.wavers), order[0])


def join(parts: Sequence[str], say: Choose) -> str:
    links = (" and ", ", and ") if len(parts) > 2 else (" and ",)
    return ", ".join(parts[:-1]) + say(links) + parts[-1] if parts[1:] else parts[0]


def describe(thing: Thing, say: Choose) -> str:
    """Sentences that state every fact of `thing` once, in the order of its facts."""
    taken: dict[str, list[str]] = {"before": [], "after": [], "at": []}
    left: list[Fact] = []
    for fact in thing.facts:
        ways = [way for way in taken if way in fact.forms and len(taken[way]) < 2]
        way = say((*ways, "later"), f"way {fact.slot}") if ways else "later"
        if way == "later":
            left.append(fact)
        else:
            taken[way].append(say(fact.forms[way]))
    head, is_open = _head(thing, taken, say)
    sentences = [head + _continued(thing, left, say) if is_open and left else head]
    size = int(say(("2", "3", "1", "4"), "size"))
    while left:
        part, left[:] = left[:size], left[size:]
        sentences.append(_sentence(thing, part, len(sentences), say))
    text = ". ".join(each[:1].upper() + each[1:] for each in sentences) + "."
    return _ARTICLE.sub("an ", text)


def _head(thing: Thing, taken: Mapping[str, list[str]], say: Choose) -> tuple[str, bool]:
    """The opening, and whether it ends with the noun, so that it can go on with "with"."""
    noun = " ".join([*taken["before"], thing.kind])
    behind = "".join(f" {each}" for each in taken["after"])
    name, where = thing.name, say((" ", ", "), "wheres").join(taken["at"])
    plans = ["is", "called"]
    if where:
        plans += ["fronted", "find"] if behind else ["fronted", "find", "inserted", "the"]
    if thing.can_be_sought:
        plans.append("seek")
    plan = say(tuple(plans), "plan")
    if where and plan not in ("fronted", "find"):
        where = " " + say(("", "located ", "situated "), "located") + where
    if plan == "seek":
        advice = say(("try {}", "have a look at {}", "{} is a good choice"), "seek").format(name)
        return f"if you are looking for a {noun}{behind}{where}, {advice}", False
    if plan == "inserted":
        return f"{name},{where}, is a {noun}", True
    return {
        "is": (f"{name} is a {noun}{behind}{where}", True),
        "called": (f"there is a {noun}{behind} {say(('called', 'named'))} {name}{where}", False),
        "fronted": (f"{where}, {name} is a {noun}{behind}", True),
        "find": (f"{where} you will find {name}, a {noun}{behind}", True),
        "the": (f"the {noun} {name} is{where}", False),
    }[plan]


def _verb(fact: Fact, say: Choose) -> str:
    form = next(form for form in ("verb", "at", "before", "after") if form in fact.forms)
    said = say(fact.forms[form])
    if form == "verb":
        return said
    return f"{say(('is', 'is located', 'can be found'), 'at') if form == 'at' else 'is'} {said}"


def _continued(thing: Thing, left: list[Fact], say: Choose) -> str:
    """The continuation of the opening; its facts are removed from `left`."""
    how = say(("stop", "with", "link", "stop"), "continue")
    part: list[Fact] = []
    if how == "with":
        part = [fact for fact in left if "with" in fact.forms][:3]
        start, said = " with ", [say(fact.forms["with"]) for fact in part]
    elif how == "link":
        part = left[: int(say(("2", "1", "3"), "linked"))]
        start, said = say(thing.links), [_verb(fact, say) for fact in part]
    left[:] = [fact for fact in left if fact not in part]
    return start + join(said, say) if part else ""


def _sentence(thing: Thing, part: Sequence[Fact], number: int, say: Choose) -> str:
    subjects = (thing.pronoun, f"the {thing.kind}", thing.name)
    subject = say(subjects, "subject") if number == 1 else thing.pronoun
    verbs = [_verb(fact, say) for fact in part]
    if say(("verbs", "clauses"), "sentence") == "clauses":
        parts = zip(part, verbs, strict=True)
        return join([say(f.forms.get("clause", (f"{subject} {v}",))) for f, v in parts], say)
    has_also = number > 1 and not verbs[0].startswith(("is ", "was ", "can ", "must ", "will "))
    also = say(("", "also "), "also") if has_also else ""
    return f"{subject} {also}{join(verbs, say)}"
