"""Domains of the mixture made up on the spot: any thing, with any handful of attributes.

The written-out domains teach idiom; these teach that a slot never seen in this company is to be
said too. Slots are pooled once, and `invent` deals a few of them to a noun.
"""

from __future__ import annotations

from random import Random

from . import mixture_values as v
from .mixture_slots import Domain, Slot, Source, slot

_THINGS = (
    "statue drum kite telescope carpet violin puppet robot sledge barrel lantern clock locket "
    "mask fountain windmill tapestry globe medal saddle chest helmet sundial raft anchor loom "
    "puzzle crown satellite antenna trophy manuscript stamp coin fossil vase cabinet bell tractor "
    "elevator glider chariot engine pump crane generator submarine compass piano harp"
).split()
_KEYS = (
    "title",
    "called",
    "label",
    "known as",
    "item",
    "object",
    "entry",
    "subject",
    "thing",
    "id",
)
_AGENTS = (
    "keeper owner builder sponsor judge driver supplier editor guardian manager dealer inspector "
    "inventor donor patron engineer contact author collector curator trainer agent rival heir"
).split()
_QUALITIES = (
    slot("shape", ("round", "square", "oval", "star-shaped", "six-sided"), "~{}", "is {} in shape",
         "=shape"),
    slot("finish", ("matt", "glossy", "polished", "rough", "gilded"), "~{}", "has a(n) {} finish"),
    slot("mood", ("cheerful", "gloomy", "solemn", "playful", "calm"), "~{}",
         "gives a(n) {} impression"),
    slot("pattern", ("stripes", "dots", "spirals", "leaves", "zigzags"), "is covered with {}",
         "has a pattern of {}", "+covered with {}", "=pattern"),
    slot("material", ("oak", "bamboo", "silk", "clay", "tin", "wool", "ivory"), "is made of {}",
         "consists of {}", "+made of {}", "=material"),
    slot("motto", ("never too late", "slow and steady", "all for one", "look twice"),
         "bears the motto {}", "carries the words {}", "+with the motto {}", "=motto"),
    slot("condition", ("like new", "badly worn", "restored", "slightly damaged", "beyond repair"),
         "is {} by now", "was found to be {}", "=condition"),
    slot("power source", ("wind", "steam", "muscle power", "sunlight", "diesel", "gravity"),
         "runs on {}", "is powered by {}", "+powered by {}", "=power source"),
)  # fmt: skip
_MEASURES = {
    "width": "cm", "depth": "metres", "volume": "litres", "reach": "km", "thickness": "mm",
    "capacity": "gallons", "age": "years", "speed": "miles per hour", "wingspan": "feet",
    "voltage": "volts", "storage": "GB", "circumference": "inches", "output": "watts",
}  # fmt: skip
_DEEDS = (
    "repaired restored stolen painted carved discovered photographed lent drawn assembled "
    "imported tested copied donated buried polished catalogued sold rented transported guarded "
    "hidden insured"
).split()
_PARTS = (
    "handle wheel window string lock button drawer leg blade screw hinge jewel spring sensor "
    "valve pedal feather bolt lens rope step mast gear rivet"
).split()
_TRAITS = (
    "portable rare fragile licensed magnetic foldable washable genuine insured haunted heavy "
    "hollow reversible flammable rechargeable symmetrical collectable edible sealed "
    "registered wireless patented dangerous soundproof adjustable transparent"
).split()
_PLACES = {
    "origin": ("comes from {}", "has its origin in {}", "+from {}"),
    "depot": ("is stored in {}", "lies in a depot in {}", "+stored in {}"),
    "on show": ("is on show in {}", "can be admired in {}", "+on show in {}"),
    "last seen": ("was last seen in {}", "disappeared in {}", "+last seen in {}"),
    "sent to": ("was sent to {}", "ended up in {}", "+sent to {}"),
    "found at": ("was dug up at {}", "turned up at {}", "+dug up at {}"),
}
_OPPOSITES = (("true", "false"), ("available", "unavailable"), ("present", "absent"), ("on", "off"))


def _part(part: str) -> Slot:
    return slot(f"{part}s", {
        "none": (f"has no {part}s", f"is without any {part}s", f"+without {part}s"),
        "one": (f"has a single {part}", f"comes with one {part}", f"+with only one {part}"),
        "several": (f"has several {part}s", f"comes with more than one {part}"),
    })  # fmt: skip


def _trait(trait: str) -> Slot:
    return slot(trait, {
        "true": (f"is {trait}", f"can be called {trait}", f"~{trait}"),
        "false": (f"is not {trait}", f"cannot be called {trait}"),
    })  # fmt: skip


def _fitted(index: int, part: str) -> Slot:
    there, gone = _OPPOSITES[index % len(_OPPOSITES)]
    return slot(part, {
        there: (f"has a(n) {part}", f"is fitted with a(n) {part}", f"+with a(n) {part}"),
        gone: (f"has no {part}", f"lacks a(n) {part}", f"+without a(n) {part}"),
    })  # fmt: skip


def _deed(deed: str, source: Source, word: str, heading: str) -> Slot:
    return slot(
        f"{deed} {heading}".strip(), source, f"was {deed} {word} {{}}", f"+{deed} {word} {{}}"
    )


def _pool() -> tuple[Slot, ...]:
    slots = [slot(role, v.person, f"={role}", f"has {{}} as its {role}") for role in _AGENTS]
    slots += _QUALITIES
    slots += [slot(size, v.measure(unit, 2, 900), f"#{size}") for size, unit in _MEASURES.items()]
    slots += [_deed(deed, v.person, "by", "by") for deed in _DEEDS]
    slots += [_deed(deed, v.company, "by", "by") for deed in _DEEDS]
    slots += [_deed(deed, v.year, "in", "") for deed in _DEEDS]
    slots += [_deed(deed, v.date, "on", "on") for deed in _DEEDS]
    slots += [slot(f"{part}s", v.count, f"has {{}} {part}s", f"counts {{}} {part}s",
                   f"+with {{}} {part}s") for part in _PARTS]  # fmt: skip
    slots += [_part(part) for part in _PARTS]
    slots += [_fitted(index, part) for index, part in enumerate(_PARTS)]
    slots += [_trait(trait) for trait in _TRAITS]
    slots += [slot(label, v.place, *forms) for label, forms in _PLACES.items()]
    slots.append(slot("colour", v.COLOURS, "~{}", "is painted {}", "=colour"))
    slots.append(slot("value", v.money, "is worth {}", "+worth {}", "#value"))
    slots.append(slot("share", v.percent, "makes up {} of the collection", "#share"))
    return tuple(slots)


POOL = _pool()
_NAMES = (v.word, v.title, v.model, v.company, v.place, v.code)


def invent(rng: Random) -> Domain:
    """A domain of a noun, a key slot, and up to eight slots of the pool."""
    name = v.pick(rng, _NAMES)
    chosen: dict[str, Slot] = {}
    for _ in range(v.whole(rng, 3, 8)):
        one = v.pick(rng, POOL)
        # Slots of one stem ("sold by", "sold on") in one table would let the text say "sold" twice.
        chosen.setdefault(one.name.split(" ")[0].rstrip("s"), one)
    return Domain((v.pick(rng, _THINGS),), slot(v.pick(rng, _KEYS), name), tuple(chosen.values()))
