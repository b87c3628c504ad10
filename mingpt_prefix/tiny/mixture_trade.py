"""Domains of the mixture: travel, trade, sport and technology."""

from __future__ import annotations

from . import mixture_values as v
from .mixture_slots import Domain, slot

_DEVICES = (
    "laptop", "camera", "lamp", "bicycle", "vacuum cleaner", "printer", "radio", "watch", "tent",
    "sewing machine", "drill", "keyboard", "rucksack", "umbrella", "microscope",
)  # fmt: skip
_TRADES = (
    "textiles",
    "software",
    "steel",
    "toys",
    "solar panels",
    "insurance",
    "paper",
    "medicine",
)
_TONGUES = ("Python", "Rust", "Haskell", "Go", "Lua", "Fortran", "OCaml", "Zig", "Julia")
_LICENCES = ("MIT", "Apache", "GPL", "BSD", "Mozilla")
_ROADS = ("Street", "Lane", "Avenue", "Quay")

PRODUCT = Domain(
    ("product", "item", "article"),
    slot("product", v.model),
    (
        slot("category", _DEVICES, "^{}", "is sold as a(n) {}"),
        slot("maker", v.company, "is made by {}", "is a product of {}", "+made by {}", "+from {}",
             "=maker"),
        slot("cost", v.money, "costs {}", "sells for {}", "can be bought for {}", "+priced at {}",
             "#cost"),
        slot("colour", v.COLOURS, "~{}", "comes in {}", "is available in {}", "+in {}"),
        slot("weight", v.measure("grams", 50, 4000), "weighs {}", "#weight"),
        slot("warranty", v.measure("months", 6, 60), "is covered for {}", "#warranty"),
        slot("stock", {
            "in stock": ("can be delivered at once", "is in stock"),
            "sold out": ("is sold out", "cannot be ordered at the moment"),
            "discontinued": ("is no longer made", "has been discontinued"),
        }),
        slot("waterproof", {
            "true": ("is waterproof", "can get wet without harm", "~waterproof"),
            "false": ("must not get wet", "is not waterproof"),
        }),
        slot("battery", v.duration, "runs for {} on one charge", "has a battery that lasts {}"),
    ),
)  # fmt: skip

MATCH = Domain(
    ("match", "football match", "fixture"),
    slot("match", v.code),
    (
        slot("home side", v.club, "was hosted by {}", "saw {} play at home", "=home side"),
        slot("guests", v.club, "brought in {} as the guests", "saw {} as the visiting side",
             "=visiting side"),
        slot("score", v.score, "ended {}", "finished {}", "=final score"),
        slot("attendance", v.count, "drew {} spectators", "was watched by {} people",
             "+watched by {} people"),
        slot("scorer", v.person, "was decided by {}", "saw a goal by {}", "=scorer"),
        slot("referee", v.person, "was refereed by {}", "had {} as referee", "+refereed by {}",
             "=referee"),
        slot("played on", v.date, "was played on {}", "took place on {}", "+played on {}"),
        slot("extra time", {
            "true": ("went into extra time", "needed extra time"),
            "false": ("was over in normal time", "needed no extra time"),
        }),
        slot("red cards", {
            "none": ("saw no player sent off", "passed without a red card"),
            "one": ("saw one player sent off", "had a single red card"),
            "several": ("saw several players sent off", "had more than one red card"),
        }),
    ),
)  # fmt: skip

FLIGHT = Domain(
    ("flight",),
    slot("flight", v.code),
    (
        slot("origin", v.place, "leaves from {}", "takes off in {}", "+from {}", "=origin"),
        slot("destination", v.place, "goes to {}", "lands in {}", "+to {}", "+bound for {}",
             "=destination"),
        slot("departure", v.clock, "departs at {}", "takes off at {}", "=departure time"),
        slot("airline", v.company, "is operated by {}", "is run by {}", "+operated by {}",
             "=airline"),
        slot("gate", v.code, "boards at gate {}", "uses gate {}", "=gate"),
        slot("duration", v.measure("minutes", 35, 900), "takes {}", "lasts {}", "#flying time"),
        slot("fare", v.money, "costs {} one way", "is sold for {}", "#fare"),
        slot("status", {
            "on time": ("is on time", "is expected to be punctual"),
            "delayed": ("is delayed", "will leave later than planned", "~delayed"),
            "cancelled": ("has been cancelled", "will not leave", "~cancelled"),
        }),
        slot("direct", {
            "true": ("makes no stop on the way", "is direct", "~direct"),
            "false": ("stops on the way", "is not direct"),
        }),
    ),
)  # fmt: skip

TRAIN = Domain(
    ("train", "service"),
    slot("train", v.code),
    (
        slot("departs from", v.place, "starts in {}", "sets off from {}", "+from {}"),
        slot("arrives at", v.place, "goes as far as {}", "ends its journey in {}", "+to {}"),
        slot("leaving", v.clock, "leaves at {}", "pulls out at {}", "+leaving at {}"),
        slot("arriving", v.clock, "gets in at {}", "arrives at {}", "=arrival time"),
        slot("platform", v.few, "uses platform {}", "stands at platform {}", "=platform"),
        slot("stops", v.few, "calls at {} stations", "makes {} stops", "+with {} stops"),
        slot("ticket", v.money, "costs {}", "can be taken for {}", "=ticket cost"),
        slot("wifi", {
            "available": ("offers wifi", "has wifi on board", "+with wifi on board"),
            "unavailable": ("has no wifi", "runs without wifi", "+without wifi"),
        }),
        slot("bicycles", {
            "allowed": ("takes bicycles", "lets passengers bring bicycles"),
            "forbidden": ("does not take bicycles", "has no room for bicycles"),
        }),
    ),
)  # fmt: skip

COMPANY = Domain(
    ("company", "firm", "business"),
    slot("company", v.company),
    (
        slot("founder", v.person, "was founded by {}", "was started by {}", "+founded by {}",
             "=founder"),
        slot("founded", v.year, "was set up in {}", "has existed since {}", "+set up in {}"),
        slot("headquarters", v.place, "is based in {}", "has its head office in {}", "+based in {}",
             "=home town"),
        slot("industry", _TRADES, "deals in {}", "makes its living from {}", "+dealing in {}"),
        slot("staff", v.count, "employs {} people", "has {} workers", "+with {} workers"),
        slot("revenue", v.fortune, "takes in {} a year", "#turnover"),
        slot("chief", v.person, "is led by {}", "is headed by {}", "+led by {}", "=chief"),
        slot("listed", {
            "true": ("is listed on the stock market", "can be bought as shares", "~listed"),
            "false": ("is in private hands", "is not on the stock market", "~private"),
        }),
    ),
)  # fmt: skip

SOFTWARE = Domain(
    ("package", "library", "tool"),
    slot("package", v.package),
    (
        slot("version", v.version, "is at version {}", "has reached version {}", "=latest version"),
        slot("language", _TONGUES, "is written in {}", "was coded in {}", "+written in {}"),
        slot("licence", _LICENCES, "comes under the {} licence", "uses the {} licence",
             "+under the {} licence"),
        slot("maintainer", v.person, "is maintained by {}", "is looked after by {}",
             "+maintained by {}", "=maintainer"),
        slot("task", ("parsing dates", "drawing maps", "sorting mail", "reading sensors",
                      "checking grammar", "planning routes", "compressing images"),
             "is used for {}", "helps with {}", "+for {}", "=purpose"),
        slot("downloads", v.count, "was downloaded {} times", "counts {} downloads"),
        slot("size", v.measure("KB", 4, 9000), "takes up {}", "#size"),
        slot("tested", {
            "true": ("is fully tested", "comes with tests", "+with tests"),
            "false": ("has no tests", "is untested", "+without tests"),
        }),
    ),
)  # fmt: skip

SHIP = Domain(
    ("ship", "vessel"),
    slot("ship", v.title),
    (
        slot("class", ("ferry", "tanker", "sailing ship", "icebreaker", "trawler", "tug", "yacht"),
             "^{}", "is in use as a(n) {}"),
        slot("captain", v.person, "is commanded by {}", "sails under {}", "+commanded by {}",
             "=captain"),
        slot("home port", v.place, "is registered in {}", "has {} as its home port",
             "+registered in {}", "=home port"),
        slot("launched", v.year, "was launched in {}", "has been afloat since {}",
             "+launched in {}"),
        slot("crew", v.few, "has a crew of {}", "needs {} sailors", "+with a crew of {}"),
        slot("top speed", v.measure("knots", 6, 45), "does {}", "can sail at {}", "#top speed"),
        slot("cargo", ("grain", "timber", "cars", "coal", "wool", "machinery", "salt"),
             "carries {}", "is loaded with {}", "+loaded with {}", "=cargo"),
        slot("seaworthy", {
            "true": ("is fit for the open sea", "is seaworthy", "~seaworthy"),
            "false": ("must stay in port", "is not seaworthy"),
        }),
    ),
)  # fmt: skip

FLAT = Domain(
    ("flat", "apartment"),
    slot("flat", lambda rng: f"{v.whole(rng, 1, 120)} {v.word(rng)} {v.pick(rng, _ROADS)}"),
    (
        slot("rooms", v.SMALL, "has {} rooms", "is divided into {} rooms", "+with {} rooms"),
        slot("rent", v.measure("euros a month", 300, 3000), "costs {}", "is let for {}", "#rent"),
        slot("landlord", v.person, "belongs to {}", "is owned by {}", "+owned by {}", "=landlord"),
        slot("floor", ("ground", "first", "second", "third", "top"), "is on the {} floor",
             "+on the {} floor"),
        slot("size", v.measure("square metres", 18, 260), "measures {}", "#size"),
        slot("free from", v.date, "is free from {}", "can be moved into from {}", "+free from {}"),
        slot("furnished", {
            "true": ("comes with furniture", "is furnished", "~furnished"),
            "false": ("is let without furniture", "is empty of furniture", "~unfurnished"),
        }),
        slot("pets", {
            "allowed": ("may be shared with pets", "is open to tenants with animals"),
            "forbidden": ("is not for tenants with animals", "is closed to pets"),
        }),
        slot("balcony", {
            "true": ("has a balcony", "+with a balcony"),
            "false": ("has no balcony", "+without a balcony"),
        }),
    ),
)  # fmt: skip

TRADE = (PRODUCT, MATCH, FLIGHT, TRAIN, COMPANY, SOFTWARE, SHIP, FLAT)
