"""How the sample data set's references are worded.

Every list stands in order of liking: a reference mostly takes the first wording and now and then
one further down, so that several references of one table agree about as much as people's do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

Table = Sequence[tuple[str, str]]
Choose = Callable[[Sequence[str]], str]

# Each value as a verb phrase, as what follows "with" (where it may), and as a clause of its own.
Said = tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]

_GRADE: Said = (
    ("has a(n) {v} customer rating", "is rated {how}", "has a(n) {v} rating"),
    ("a(n) {v} customer rating", "a(n) {v} rating"),
    ("the customer rating is {v}", "customers rate it {rate}", "its rating is {v}"),
)
_POINTS: Said = (
    ("has a customer rating of {v}", "is rated {v}", "has a rating of {v}",
     "is rated {v} by customers", "was given {v} by its guests", "scores {v} with its customers"),
    ("a customer rating of {v}", "a rating of {v}", "a score of {v}", "a {v} customer rating"),
    ("the customer rating is {v}", "customers rate it {v}", "guests give it {v}",
     "its guests give it {v}"),
)  # fmt: skip
_PRICE_WORD: Said = (
    ("has {v} prices", "is {how}", "is in the {v} price range", "offers {v} prices"),
    ("{v} prices", "a {v} price range", "prices that are {v}"),
    ("prices are {v}", "the price range is {v}", "its meals are {how}"),
)
_PRICE_SUM: Said = (
    ("has a price range of {v}", "has prices of {v}", "serves meals for {v}",
     "asks {v} for a meal", "offers meals for {v}"),
    ("a price range of {v}", "prices of {v}", "meals for {v}"),
    ("the price range is {v}", "prices are {v}", "meals cost {v}", "expect to pay {v}"),
)  # fmt: skip
_FAMILY: Mapping[str, Said] = {
    "yes": (
        ("is family-friendly", "welcomes children", "is suitable for families", "is child-friendly",
         "is good for families", "welcomes families", "is a good place for families"),
        (),
        ("children are welcome", "it is family-friendly", "it welcomes families"),
    ),
    "no": (
        ("is not family-friendly", "does not welcome children", "is for adults only",
         "is not suitable for families", "is not child-friendly", "is no place for children",
         "is not a place for families"),
        (),
        ("children are not welcome", "it is not family-friendly", "it is for adults only"),
    ),
}  # fmt: skip
_HOW = {"low": "poorly", "average": "as average", "high": "highly"}
_PRICED = {"cheap": "cheap", "moderate": "moderately priced", "high": "expensive"}
_SUMS = {
    "less than £20": ("less than £20", "under £20", "below £20"),
    "£20-25": ("£20-25", "between £20 and £25", "£20 to £25"),
    "more than £30": ("more than £30", "over £30", "above £30"),
}
_AREAS = {
    "city centre": ("in the city centre", "in the centre of the city", "in the heart of the city"),
    "riverside": ("in the riverside area", "by the river", "by the riverside", "on the river"),
    "suburb": ("in the suburbs", "in a suburb", "on the edge of the city"),
    "market square": ("on the market square", "at the market square", "right on the market square"),
    "old town": ("in the old town", "in the old part of town", "within the old town"),
}
_NEAR = ("near {v}", "close to {v}", "next to {v}", "not far from {v}", "a short walk from {v}",
         "round the corner from {v}")  # fmt: skip


def write(table: Table, choose: Choose) -> str:
    """One reference; `choose` takes one of a list in order of liking."""
    slots = dict(table)
    head, left = _head(slots, choose)
    tail = [slot for slot in _order(choose) if slot in left]
    text = _close(head, tail, slots, choose) if tail else f"{head}."
    return _articles(". ".join(part[:1].upper() + part[1:] for part in text.split(". ")))


def favourite(table: Table) -> str:
    """The reference that takes the first wording throughout."""
    return write(table, lambda options: options[0])


def _order(choose: Choose) -> list[str]:
    return choose(
        (
            "food|area|near|customer rating|priceRange|familyFriendly",
            "food|area|near|priceRange|customer rating|familyFriendly",
            "familyFriendly|food|priceRange|customer rating|area|near",
            "priceRange|food|familyFriendly|customer rating|area|near",
            "customer rating|familyFriendly|food|priceRange|area|near",
            "familyFriendly|customer rating|food|priceRange|area|near",
        )
    ).split("|")


def _kind(slots: Mapping[str, str], choose: Choose, left: set[str]) -> str:
    """The noun phrase: what the place is, with its food and maybe its welcome to families."""
    noun = slots.get("eatType") or choose(("place", "venue", "place to eat"))
    food = slots.get("food")
    if food is not None:
        served = "fast food" if food == "Fast food" else f"{food} food"
        adjective = "fast food" if food == "Fast food" else food
        way = choose(("before", "serving", "that serves", "left", "with", "for"))
        if way != "left":
            left.discard("food")
            noun = f"{adjective} {noun}" if way == "before" else f"{noun} {way} {served}"
    if slots.get("familyFriendly") == "yes" and choose(("later", "now")) == "now":
        left.discard("familyFriendly")
        noun = f"family-friendly {noun}"
    return noun


def _place(slots: Mapping[str, str], choose: Choose) -> str:
    parts = []
    if "area" in slots:
        parts.append(choose(_AREAS[slots["area"]]))
    if "near" in slots:
        parts.append(choose(_NEAR).format(v=slots["near"]))
    if len(parts) == 2 and choose(("area first", "near first")) == "near first":
        parts.reverse()
        return ", ".join(parts)
    return " ".join(parts)


def _head(slots: Mapping[str, str], choose: Choose) -> tuple[str, set[str]]:
    """The opening, without its full stop, and the slots it has not said."""
    left = set(slots) - {"name", "eatType"}
    name, kind = slots["name"], _kind(slots, choose, left)
    where = _place(slots, choose)
    plans = ["is", "called", "fronted", "later", "inserted", "the", "try"]
    if not where:
        plans = ["is", "called", "try"]
    elif " food" in kind.removeprefix("fast food"):
        plans.remove("the")  # "the pub serving Indian food Otto's is ..." reads badly
    plan = choose(plans)
    if plan != "later":
        left -= {"area", "near"}
    said = f" {choose(('', 'located ', 'situated '))}{where}" if where else ""
    return {
        "is": f"{name} is a(n) {kind}{said}",
        "called": f"there is a(n) {kind} called {name}{said}",
        "fronted": f"{said.strip()}, {name} is a(n) {kind}",
        "later": f"{name} is a(n) {kind}",
        "inserted": f"{name},{said}, is a(n) {kind}",
        "the": f"the {kind} {name} is{said}",
        "try": f"if you are looking for a(n) {kind}{said}, try {name}",
    }[plan], left


def _wordings(slot: str, value: str, choose: Choose) -> tuple[Said, dict[str, str]]:
    if slot == "familyFriendly":
        return _FAMILY[value], {}
    if slot == "food":
        served = "fast food" if value == "Fast food" else f"{value} food"
        return (("serves {v}", "offers {v}"), (), ("the food is {w}", "it serves {v}")), {
            "v": served, "w": value.lower() if value == "Fast food" else value
        }  # fmt: skip
    if slot == "customer rating":
        if value in _HOW:
            rate = _HOW[value]
            return _GRADE, {"v": value, "how": rate, "rate": rate}
        return _POINTS, {"v": value}
    if value in _PRICED:
        return _PRICE_WORD, {"v": value, "how": _PRICED[value]}
    return _PRICE_SUM, {"v": choose(_SUMS[value])}


def _say(slot: str, form: int, slots: Mapping[str, str], choose: Choose) -> str:
    """A slot as a verb phrase (0), after "with" (1) or as a clause (2)."""
    said, values = _wordings(slot, slots[slot], choose)
    return choose(said[form]).format(**values)


def _join(parts: Sequence[str], choose: Choose, links: Sequence[str] = (" and ",)) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + choose(links) + parts[-1]


def _close(head: str, tail: list[str], slots: Mapping[str, str], choose: Choose) -> str:
    """The opening and what it has left to say."""
    it = []
    if "area" in tail or "near" in tail:
        tail = [slot for slot in tail if slot not in ("area", "near")]
        it = [f"{choose(('it is located', 'it is', 'you can find it'))} {_place(slots, choose)}"]
    if not tail:
        return f"{head}. {it[0]}."
    plan = choose(("it", "with", "that", "clauses", "two"))
    if plan == "with" and " is a(n) " in head and "familyFriendly" not in tail[:1]:
        last = [slot for slot in tail if slot in ("familyFriendly", "food")]
        first = [slot for slot in tail if slot not in last]
        if first:
            head = f"{head} with {_join([_say(slot, 1, slots, choose) for slot in first], choose)}"
            tail = last
    subject = choose(("it", f"the {slots.get('eatType', 'place')}", slots["name"]))
    if plan == "that" and " is a(n) " in head:
        which = ", which " if " that " in head else choose((", which ", " that "))
        head += which + _join([_say(slot, 0, slots, choose) for slot in tail], choose)
    elif plan == "clauses":
        it += [_join([_say(slot, 2, slots, choose) for slot in tail], choose, (" and ", ", and "))]
    elif plan == "two" and len(tail) > 1:
        verbs = [_say(slot, 0, slots, choose) for slot in tail]
        it += [f"{subject} {verbs[0]}", f"it {choose(('', 'also '))}{_join(verbs[1:], choose)}"]
    elif tail:
        verbs = [_say(slot, 0, slots, choose) for slot in tail]
        links = (" and ", ", and it ", " and also ") if len(verbs) == 2 else (" and ",)
        it += [f"{subject} {_join(verbs, choose, links)}"]
    return ". ".join([head, *it]) + "."


def _articles(text: str) -> str:
    for vowel in "aeiouAEIOU":
        text = text.replace(f"a(n) {vowel}", f"an {vowel}")
    return text.replace("a(n) ", "a ")
