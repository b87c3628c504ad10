"""From the facts of a table to sentences: the compositional half of the mixture.

`describe` deals the facts out to one to three sentences and builds each from a plan of its own, out
of the small forms of `mixture_slots`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random

from .mixture_slots import Domain, Slot
from .mixture_values import WOMEN, Author, pick

Fact = tuple[Slot, str]

_FRONTED = frozenset("with set built made written sung held run led born known".split())
_AN = re.compile(r"\b([Aa])\(n\) (?=(\S+))")
_SOUNDS_AN = re.compile(
    r"(?!uni|use|uti|eu|one|once)([aeiou]|hour|honest|8|11\b|18\b)", re.IGNORECASE
)
_WOMEN = frozenset(WOMEN)


def describe(domain: Domain, key: str | None, facts: Sequence[Fact], rng: Random) -> str:
    """Text of one to three sentences that says each of `facts` once, of the subject `key`.

    `facts` leave the key slot out; without a key the text speaks of "the film" and the like.
    """
    if isinstance(rng, Author) and rng.is_orderly:
        facts = sorted(facts, key=lambda fact: rng.liking(fact[0].name))
    elif rng.random() < 0.5:
        facts = sorted(facts, key=lambda _: rng.random())
    writer = _Writer(domain, key, rng)
    chunks = _deal(list(facts), rng)
    sentences = [writer.sentence(chunk, first=not index) for index, chunk in enumerate(chunks)]
    return articles(" ".join(sentences))


def articles(text: str) -> str:
    """Writes each "a(n)" as the next word asks for."""
    if "(n)" not in text:
        return text
    return _AN.sub(lambda m: m[1] + ("n " if _SOUNDS_AN.match(m[2]) else " "), text)


def _deal(facts: list[Fact], rng: Random) -> list[list[Fact]]:
    if len(facts) <= 2:
        count = 1 + (len(facts) == 2 and rng.random() < 0.2)
    elif len(facts) <= 4:
        count = pick(rng, (1, 1, 2, 2))
    else:
        count = pick(rng, (2, 2, 3)) if len(facts) < 7 else pick(rng, (2, 3, 3))
    cuts = sorted(rng.sample(range(1, len(facts)), count - 1)) if count > 1 else []
    ends = [*cuts, len(facts)]
    return [facts[start:end] for start, end in zip([0, *cuts], ends, strict=True)]


def join(parts: Sequence[str], rng: Random, last: str = "and") -> str:
    """ "a", "a and b", "a, b and c", now and then with the serial comma."""
    if len(parts) == 1:
        return parts[0]
    comma = "," if len(parts) > 2 and rng.random() < 0.2 else ""
    return f"{', '.join(parts[:-1])}{comma} {last} {parts[-1]}"


class _Writer:
    """Builds the sentences of one text."""

    def __init__(self, domain: Domain, key: str | None, rng: Random) -> None:
        self.rng, self.key, self.noun = rng, key, pick(rng, domain.nouns)
        self.who = "who" if domain.human else "which"
        self.it, self.its = "it", "its"
        if domain.human:
            woman = key is not None and key.split()[0] in _WOMEN
            self.it, self.its = ("she", "her") if woman else ("he", "his")
            if key is None:
                self.it, self.its = "they", "their"
        self.human = domain.human

    def sentence(self, facts: list[Fact], first: bool) -> str:
        body = self._nominal(facts, first) or self._verbal(facts, first)
        if self.key is not None and body.startswith(self.key):
            return body + "."
        return body[0].upper() + body[1:] + "."

    def _subject(self, first: bool) -> str:
        if first and self.key is not None:
            return f"the {self.noun} {self.key}" if self.rng.random() < 0.12 else self.key
        draw = self.rng.random()
        if draw < 0.6 and not first and self.it != "they":
            return self.it
        if draw > 0.93 and self.key is not None:
            return self.key
        return f"this {self.noun}" if draw < 0.7 else f"the {self.noun}"

    def _verb(self, fact: Fact) -> str:
        said = pick(self.rng, fact[0].say("v", fact[1])).replace("{}", fact[1])
        return said.replace(" its ", f" {self.its} ") if self.human else said

    def _modifier(self, fact: Fact) -> str | None:
        forms = fact[0].say("+", fact[1])
        return pick(self.rng, forms).replace("{}", fact[1]) if forms else None

    def _own(self, fact: Fact, owner: str | None = None) -> str | None:
        """A clause led by a role or measure of the subject; None where the slot has neither."""
        nouns = fact[0].say("=", fact[1]) + fact[0].say("#", fact[1])
        if not nouns:
            return None
        noun, draw = pick(self.rng, nouns), self.rng.random()
        if owner is not None:
            if draw < 0.35 and not owner.endswith("s"):
                return f"{owner}'s {noun} is {fact[1]}"
            return f"the {noun} of {owner} is {fact[1]}"
        return f"the {noun} is {fact[1]}" if draw < 0.25 else f"{self.its} {noun} is {fact[1]}"

    def _nominal(self, facts: list[Fact], first: bool) -> str | None:
        """A sentence that says what the subject is; None where the facts do not lend themselves."""
        rng, rest, adjectives, head = self.rng, [], [], ""
        for fact in facts:
            before, instead = fact[0].say("~", fact[1]), fact[0].say("^", fact[1])
            if instead and not head and rng.random() < 0.85:
                head = pick(rng, instead).replace("{}", fact[1])
            elif before and len(adjectives) < 2 and rng.random() < 0.8:
                adjectives.append(pick(rng, before).replace("{}", fact[1]))
            else:
                rest.append(fact)
        if not (adjectives or head or (first and self.key is not None and rng.random() < 0.3)):
            return None
        plain = " ".join([*adjectives, head or self.noun])
        modifiers = []
        while rest and len(modifiers) < 2 and rng.random() < 0.55:
            modifier = self._modifier(rest[0])
            if modifier is None:
                break
            modifiers.append(modifier)
            rest.pop(0)
        after = f" {' and '.join(modifiers)}" if modifiers else ""
        verbs = [self._verb(fact) for fact in rest]
        said = join(verbs, rng) if verbs else ""
        return self._introduce(plain, after, said, first)

    def _introduce(self, plain: str, after: str, said: str, first: bool) -> str:
        rng, draw, key = self.rng, self.rng.random(), self.key
        if first and key is not None:
            if draw < 0.1:
                return f"there is a(n) {plain} known as {key}{after}" + self._tail(said)
            if draw < 0.17:
                return f"{key} is the name of a(n) {plain}{after}" + self._tail(said)
            if said and draw < 0.35:
                return f"{key}, a(n) {plain}{after}, {said}"
            if said and draw < 0.47:
                return f"the {plain} {key}{', ' + after[1:] + ',' if after else ''} {said}"
            if said and draw < 0.53:
                called = f"{after}, {key}" if after else f" known as {key}"
                return f"a(n) {plain}{called} {said}"
        subject = key if first and key is not None else self._subject(first)
        if subject.endswith(f" {self.noun}"):
            subject = self.it if self.it != "they" else "this person"
        if said and rng.random() < 0.4:
            return f"{subject} is a(n) {plain}{after} and {said}"
        return f"{subject} is a(n) {plain}{after}" + self._tail(said)

    def _tail(self, said: str) -> str:
        if not said:
            return ""
        if self.rng.random() < 0.3:
            return f", {self.who} {said}"
        return f" {self.who if self.human else 'that'} {said}"

    def _verbal(self, facts: list[Fact], first: bool) -> str:
        """A sentence that says what the subject does or has."""
        rng, subject = self.rng, self._subject(first)
        draw = rng.random()
        if len(facts) == 1 or draw < 0.15:
            clause = self._own(facts[0], subject if first else None) if draw < 0.5 else None
            lead = clause or f"{subject} {self._verb(facts[0])}"
            if len(facts) == 1:
                return lead
            it = self.it if self.it != "they" else f"the {self.noun}"
            rest = join([self._verb(fact) for fact in facts[1:]], rng)
            return f"{lead}{pick(rng, (', and ', '; ', ', and '))}{it} {rest}"
        if draw < 0.3:
            clause = self._own(facts[-1])
            if clause:
                said = join([self._verb(fact) for fact in facts[:-1]], rng)
                return f"{subject} {said}{pick(rng, (', and ', ', while ', '; '))}{clause}"
        if draw < 0.55:
            modifier = self._modifier(facts[0])
            if modifier:
                said = join([self._verb(fact) for fact in facts[1:]], rng)
                lead = modifier.split(" ", 1)[0]
                fronted = lead.endswith("ed") or lead in _FRONTED
                if fronted and (subject == self.it or rng.random() < 0.45):
                    return f"{modifier}, {subject} {said}"
                if subject != self.it:
                    return f"{subject}, {modifier}, {said}"
        if draw < 0.7 and (subject == self.key or not self.key) and subject != self.it:
            said = join([self._verb(fact) for fact in facts[1:]], rng)
            return f"{subject}, {self.who} {self._verb(facts[0])}, {said}"
        return f"{subject} {join([self._verb(fact) for fact in facts], rng)}"
