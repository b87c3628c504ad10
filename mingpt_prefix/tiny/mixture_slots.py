"""What a domain of the mixture is made of: slots, and the small forms they are said in.

A form is told apart by its first character; `{}` stands for the value:

    "was built by {}"      a verb phrase, third person singular
    "+built by {}"         what may stand after a noun
    "~{}"  "^{}"           an adjective before the noun; a noun in place of the domain's own
    "=builder"             a role: "Its builder is V", "The builder of X is V"
    "#height"              a measure: "has a height of V", "with a height of V", "Its height is V"
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from .mixture_values import pick

Source = Callable[[Random], str] | Sequence[str] | Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Slot:
    """One column of a domain: its name, where values come from, and how they are said.

    A mapping as `source` gives each value wordings of its own, for values which are not copied.
    """

    name: str
    source: Source
    forms: tuple[str, ...] = ()
    by_kind: Mapping[str, Mapping[str, tuple[str, ...]]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        said = self.source if isinstance(self.source, Mapping) else {"": self.forms}
        object.__setattr__(self, "by_kind", {value: _sort(forms) for value, forms in said.items()})

    def draw(self, rng: Random) -> str:
        if callable(self.source):
            return self.source(rng)
        return pick(rng, tuple(self.source))

    def say(self, kind: str, value: str) -> tuple[str, ...]:
        """The forms of one kind ("v", "+", "~", "^", "=", "#") for `value`; maybe none."""
        kinds = self.by_kind[value if isinstance(self.source, Mapping) else ""]
        return kinds.get(kind, ())


@dataclass(frozen=True)
class Domain:
    """What one kind of table is about: its nouns, the slot that names the subject, the others."""

    nouns: tuple[str, ...]
    key: Slot
    slots: tuple[Slot, ...]
    human: bool = False


def slot(name: str, source: Source, *forms: str) -> Slot:
    """A slot, its forms in a row."""
    return Slot(name, source, forms)


def _sort(forms: Sequence[str]) -> dict[str, tuple[str, ...]]:
    kinds: dict[str, list[str]] = {}
    for form in forms:
        if form[0] in "+~^=#":
            kinds.setdefault(form[0], []).append(form[1:])
        else:
            kinds.setdefault("v", []).append(form)
    for noun in kinds.get("#", ()):
        kinds.setdefault("v", []).append(f"has a(n) {noun} of {{}}")
        kinds.setdefault("+", []).append(f"with a(n) {noun} of {{}}")
    if "v" not in kinds:
        kinds["v"] = [f"has {{}} as its {noun}" for noun in kinds.get("=", ())]
    return {kind: tuple(said) for kind, said in kinds.items()}
