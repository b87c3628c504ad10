"""Domains of the mixture: nature, weather and the map."""

from __future__ import annotations

from . import mixture_values as v
from .mixture_slots import Domain, slot

_HABITATS = (
    "forests",
    "swamps",
    "grassland",
    "coral reefs",
    "caves",
    "dry hills",
    "tundra",
    "marshes",
)
_KINDS = ("fox", "owl", "toad", "bat", "deer", "seal")

RIVER = Domain(
    ("river", "stream"),
    slot("river", v.word),
    (
        slot("source", v.place, "rises in {}", "springs from {}", "begins at {}", "+rising in {}",
             "=source"),
        slot("mouth", v.place, "flows into the sea at {}", "ends at {}", "=mouth"),
        slot("length", v.measure("km", 8, 5000), "is {} long", "runs for {}", "#length"),
        slot("country", v.word, "crosses {}", "lies in {}", "+in {}", "=country"),
        slot("bridges", v.few, "is crossed by {} bridges", "can be crossed on {} bridges"),
        slot("tributary", v.word, "is fed by the {}", "takes in the {}", "+fed by the {}",
             "=main tributary"),
        slot("navigable", {
            "true": ("can be used by ships", "is deep enough for ships", "+open to ships"),
            "false": ("is closed to ships", "is too shallow for ships", "+too shallow for ships"),
        }),
        slot("flow", ("swift", "lazy", "winding", "muddy", "shallow"), "~{}", "is known to be {}"),
    ),
)  # fmt: skip

MOUNTAIN = Domain(
    ("mountain", "peak", "summit"),
    slot("peak", lambda rng: f"{v.pick(rng, ('Mount', 'Monte', 'Peak', 'Great'))} {v.word(rng)}"),
    (
        slot("elevation", v.measure("m", 600, 8700), "is {} high", "rises to {}", "#height"),
        slot("range", v.word, "belongs to the {} range", "is part of the {} range",
             "+of the {} range"),
        slot("first ascent", v.year, "was first climbed in {}", "+first climbed in {}"),
        slot("first climber", v.person, "was conquered by {}", "was first reached by {}",
             "+conquered by {}"),
        slot("volcano", {
            "true": ("is a volcano", "was formed by lava"),
            "false": ("is not a volcano", "has nothing to do with volcanoes"),
        }),
        slot("snow", {
            "permanent": ("is white with snow all year", "never loses its snow"),
            "seasonal": ("carries snow in winter only", "is free of snow in summer"),
            "none": ("never sees any snow", "has no snow at all", "+without any snow"),
        }),
        slot("nearest town", v.place, "towers over {}", "overlooks {}", "=nearest town"),
        slot("rock", ("granite", "basalt", "limestone", "slate", "sandstone"), "consists of {}",
             "is made of {}", "+made of {}"),
    ),
)  # fmt: skip

PLANT = Domain(
    ("plant", "flower", "shrub"),
    slot("plant", v.word),
    (
        slot("family", v.word, "belongs to the {} family", "+of the {} family", "=family"),
        slot("blossom", v.COLOURS, "has {} blossoms", "blooms in {}", "+with {} blossoms"),
        slot("flowering", v.MONTHS, "flowers in {}", "opens its buds in {}", "+flowering in {}"),
        slot("height", v.measure("cm", 3, 400), "grows to {}", "reaches {}", "#height"),
        slot("soil", ("sandy", "chalky", "moist", "acid", "stony"), "prefers {} soil",
             "needs {} ground", "+growing on {} soil"),
        slot("poisonous", {
            "true": ("is poisonous", "should never be eaten", "~poisonous"),
            "false": ("is harmless", "contains no poison", "~harmless"),
        }),
        slot("sun", {
            "full": ("wants plenty of sun", "likes to stand in full sunlight"),
            "partial": ("likes half shade", "is happy with a little sun"),
            "none": ("thrives in the shade", "needs no sun"),
        }),
        slot("native to", v.place, "comes from {}", "is native to {}", "+native to {}", "=home"),
    ),
)  # fmt: skip

ANIMAL = Domain(
    ("animal", "species", "creature"),
    slot("species", lambda rng: f"{v.word(rng)} {v.pick(rng, _KINDS)}"),
    (
        slot("habitat", _HABITATS, "lives in {}", "is found in {}", "+living in {}"),
        slot("diet", ("insects", "grass", "fish", "berries", "seeds", "small birds", "roots"),
             "feeds on {}", "eats {}", "lives on {}"),
        slot("weight", v.measure("kg", 1, 900), "weighs {}", "#weight"),
        slot("lifespan", v.measure("years", 2, 80), "lives for {}", "#lifespan"),
        slot("nocturnal", {
            "true": ("is active at night", "sleeps during the day", "~nocturnal"),
            "false": ("sleeps at night", "is active by day"),
        }),
        slot("endangered", {
            "true": ("is in danger of dying out", "is threatened", "~threatened"),
            "false": ("is not threatened", "is in no danger of dying out"),
        }),
        slot("young", v.SMALL, "has {} young at a time", "gives birth to {} young"),
        slot("coat", v.COLOURS, "has a(n) {} coat", "+with a(n) {} coat"),
        slot("described by", v.person, "was first described by {}", "was discovered by {}",
             "+first described by {}", "=discoverer"),
    ),
)  # fmt: skip

PLANET = Domain(
    ("planet", "world"),
    slot("planet", lambda rng: v.word(rng) if rng.random() < 0.6 else v.model(rng)),
    (
        slot("star", v.word, "orbits {}", "circles the star {}", "+orbiting {}", "=star"),
        slot("moons", {
            "none": ("has no moon", "is without a moon", "+without any moons"),
            "one": ("has a single moon", "+with a single moon"),
            "two": ("has two moons", "+with two moons", "is circled by two moons"),
            "many": ("has a great many moons", "+with many moons"),
        }),
        slot("diameter", v.measure("km", 900, 150000), "is {} across", "#diameter"),
        slot("year length", v.measure("days", 3, 9000), "needs {} for one orbit",
             "goes round once in {}", "=year length"),
        slot("surface", ("rocky", "icy", "gaseous", "dusty", "molten"), "~{}", "is {} all over"),
        slot("rings", {
            "true": ("has rings", "is surrounded by rings", "~ringed"),
            "false": ("has no rings", "lacks rings", "+without rings"),
        }),
        slot("discovered", v.year, "was discovered in {}", "was first seen in {}",
             "+discovered in {}"),
        slot("discoverer", v.person, "was found by {}", "was spotted by {}", "+found by {}",
             "=discoverer"),
    ),
)  # fmt: skip

WEATHER = Domain(
    ("town", "village"),
    slot("place", v.place),
    (
        slot("day", v.DAYS, "gets this weather on {}", "has this outlook for {}"),
        slot("maximum", v.celsius, "reaches {} at most", "warms up to {}", "sees a top of {}"),
        slot("minimum", v.celsius, "cools down to {}", "drops to {} at night"),
        slot("rain", {
            "none": ("stays dry", "has no rain", "sees no rain at all"),
            "light": ("gets a little rain", "has light showers"),
            "heavy": ("gets heavy rain", "is soaked by a downpour"),
            "chance": ("may see some rain", "could get a shower"),
        }),
        slot("wind", ("north", "south", "east", "west", "north-west", "south-east"),
             "gets wind from the {}", "has a(n) {} wind", "is exposed to a(n) {} wind"),
        slot("wind speed", v.measure("km/h", 3, 120), "has gusts of {}", "sees gusts of up to {}"),
        slot("sky", {
            "clear": ("has a clear sky", "enjoys a cloudless sky"),
            "overcast": ("lies under thick cloud", "sees nothing but cloud"),
            "mixed": ("sees both sun and cloud", "has sunny spells between clouds"),
        }),
        slot("humidity", v.percent, "has {} humidity", "records {} humidity", "#humidity"),
        slot("warning", {
            "true": ("has a storm warning in force", "is under a storm warning"),
            "false": ("has no storm warning", "is under no warning"),
        }),
        slot("sunrise", v.clock, "sees the sun rise at {}", "has sunrise at {}"),
    ),
)  # fmt: skip

BUILDING = Domain(
    ("building", "tower"),
    slot("building", lambda rng: f"{v.word(rng)} {v.pick(rng, 'Tower Hall Court Palace'.split())}"),
    (
        slot("architect", v.person, "was designed by {}", "is the work of {}", "+designed by {}",
             "=architect"),
        slot("city", v.place, "stands in {}", "can be found in {}", "+in {}", "=home city"),
        slot("floors", v.few, "has {} floors", "rises over {} storeys", "+with {} floors"),
        slot("built", v.year, "was built in {}", "was finished in {}", "+built in {}"),
        slot("material", ("brick", "concrete", "marble", "timber", "steel"), "is made of {}",
             "consists mainly of {}", "+made of {}"),
        slot("purpose", ("library", "museum", "town hall", "school", "hospital", "theatre",
             "mosque"),
             "^{}", "serves as a(n) {}", "is used as a(n) {}"),
        slot("open to visitors", {
            "true": ("is open to visitors", "can be visited", "+open to visitors"),
            "false": ("is closed to visitors", "cannot be visited", "+closed to visitors"),
        }),
        slot("lift", {
            "available": ("has a lift", "+with a lift", "can be climbed by lift"),
            "unavailable": ("has no lift", "+without a lift", "can be climbed on foot only"),
        }),
    ),
)  # fmt: skip

NATURE = (RIVER, MOUNTAIN, PLANT, ANIMAL, PLANET, WEATHER, BUILDING)
