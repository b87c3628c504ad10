"""Domains of the mixture: people and what they make."""

from __future__ import annotations

from . import mixture_values as v
from .mixture_slots import Domain, slot

_JOBS = (
    "painter", "violinist", "engineer", "botanist", "goalkeeper", "journalist", "surgeon",
    "architect",
    "sculptor", "pilot", "poet", "cyclist", "astronomer", "judge", "carpenter", "translator",
)  # fmt: skip
_GENRES = ("romantic", "historical", "animated", "silent", "experimental", "satirical", "musical")
_STYLES = ("folk", "jazz", "electronic", "choral", "blues", "punk", "ambient", "soul", "baroque")
_TONGUES = (
    "Danish",
    "Swahili",
    "Polish",
    "Latin",
    "Welsh",
    "Dutch",
    "Basque",
    "Quechua",
    "Finnish",
)

PERSON = Domain(
    ("person",),
    slot("person", v.person),
    (
        slot("occupation", _JOBS, "^{}", "works as a(n) {}", "=occupation"),
        slot("nationality", v.PEOPLES, "~{}", "comes from a(n) {} family"),
        slot("birthplace", v.place, "was born in {}", "grew up in {}", "+from {}", "+born in {}"),
        slot("birth date", v.date, "was born on {}", "+born on {}", "=date of birth"),
        slot("employer", v.company, "works for {}", "is employed by {}", "+employed by {}"),
        slot("spouse", v.person, "is married to {}", "+married to {}"),
        slot("hobby", ("chess", "sailing", "pottery", "bird watching", "archery", "baking"),
             "enjoys {}", "spends every weekend on {}", "is fond of {}", "=favourite hobby"),
        slot("award winner", {
            "true": ("has won an award", "is an award winner", "+with an award to show"),
            "false": ("has never won an award", "is still without an award"),
        }),
        slot("alive", {
            "true": ("is still alive", "is alive today"),
            "false": ("is no longer alive", "has since died"),
        }),
        slot("height", v.measure("cm", 150, 205), "is {} tall", "stands {} tall", "=height"),
    ),
    human=True,
)  # fmt: skip

FILM = Domain(
    ("film", "movie", "picture"),
    slot("title", v.title),
    (
        slot("director", v.person, "was directed by {}", "was made by {}", "+directed by {}",
             "+made by {}", "=director"),
        slot("year", v.year, "came out in {}", "was first shown in {}", "+released in {}",
             "+from {}"),
        slot("genre", _GENRES, "~{}", "is {} in style", "+in the {} genre"),
        slot("running time", v.measure("minutes", 61, 199), "lasts {}", "runs for {}",
             "#running time"),
        slot("lead", v.person, "stars {}", "features {} in the main role", "+starring {}", "=star"),
        slot("setting", v.place, "is set in {}", "takes place in {}", "+set in {}"),
        slot("budget", v.fortune, "cost {} to make", "was made for {}", "+made for {}", "#budget"),
        slot("awarded", {
            "true": ("won an award", "took home a prize", "has an award to its credit"),
            "false": ("did not win any award", "went home without a prize", "+without any awards"),
        }),
        slot("in colour", {
            "true": ("was shot in colour", "is in full colour", "+shot in colour"),
            "false": ("is in black and white", "was shot without colour", "+in black and white"),
        }),
    ),
)  # fmt: skip

BOOK = Domain(
    ("book", "novel"),
    slot("book", v.title),
    (
        slot("author", v.person, "was written by {}", "is by {}", "+by {}", "+written by {}",
             "=author"),
        slot("publisher", v.company, "was published by {}", "was brought out by {}",
             "+published by {}", "=publisher"),
        slot("pages", v.measure("pages", 80, 900), "has {}", "fills {}", "is {} long", "+of {}"),
        slot("language", _TONGUES, "is written in {}", "can be read in {}", "+written in {}",
             "=language"),
        slot("published", v.year, "appeared in {}", "was first printed in {}",
             "+first printed in {}"),
        slot("binding", ("hardback", "paperback", "leather-bound"), "~{}",
             "comes as a(n) {} edition"),
        slot("hero", v.word, "tells the story of {}", "is about a(n) sailor called {}",
             "follows the adventures of {}", "+about {}"),
        slot("in print", {
            "true": ("is still in print", "can still be bought new", "+still in print"),
            "false": ("is out of print", "is no longer printed", "+no longer in print"),
        }),
        slot("sequel", v.title, "was followed by {}", "is continued in {}", "=sequel"),
    ),
)  # fmt: skip

SONG = Domain(
    ("song", "track", "single"),
    slot("song", v.title),
    (
        slot("singer", v.person, "is sung by {}", "was recorded by {}", "+sung by {}", "+by {}",
             "=singer"),
        slot("album", v.title, "appears on the album {}", "is taken from {}", "+from the album {}"),
        slot("style", _STYLES, "~{}", "belongs to {} music"),
        slot("length", v.measure("seconds", 90, 480), "lasts {}", "goes on for {}", "#length"),
        slot("label", v.company, "was put out by {}", "came out on {}", "+put out by {}", "=label"),
        slot("chart position", v.SMALL, "reached number {}", "climbed to number {} in the charts"),
        slot("writer", v.person, "was composed by {}", "was penned by {}", "+composed by {}",
             "=songwriter"),
        slot("instrumental", {
            "true": ("has no words", "is purely instrumental", "+without any words"),
            "false": ("has lyrics", "comes with words to sing along to", "+with lyrics"),
        }),
    ),
)  # fmt: skip

CONCERT = Domain(
    ("concert", "show", "gig"),
    slot("event", v.title),
    (
        slot("performer", v.person, "is given by {}", "features {}", "+given by {}", "+by {}",
             "=performer"),
        slot("venue", v.place, "takes place in {}", "will be held in {}", "+held in {}", "=venue"),
        slot("date", v.date, "is on {}", "happens on {}", "+on {}", "=date"),
        slot("doors open", v.clock, "opens its doors at {}", "lets people in from {}",
             "=opening time"),
        slot("ticket", v.money, "costs {} to attend", "charges {} a ticket", "=ticket cost"),
        slot("music", _STYLES, "~{}", "presents {} music"),
        slot("status", {
            "sold out": ("has no tickets left", "is completely booked", "+with no tickets left"),
            "available": ("still has tickets left", "can still be booked",
            "+with some tickets left"),
            "cancelled": ("will not take place after all", "has been called off"),
        }),
        slot("seating", {
            "true": ("offers seats to everyone", "has seats for all", "+with seats for all"),
            "false": ("is standing only", "offers no seats", "+without any seats"),
        }),
    ),
)  # fmt: skip

PAINTING = Domain(
    ("painting", "canvas", "work of art"),
    slot("work", v.title),
    (
        slot("artist", v.person, "was painted by {}", "is the work of {}", "+painted by {}",
             "+by {}",
             "=artist"),
        slot("technique", ("oil", "watercolour", "tempera", "ink", "acrylic"), "was done in {}",
             "is executed in {}", "+done in {}", "=technique"),
        slot("museum", v.company, "hangs in the {} collection", "is kept by {}", "+kept by {}"),
        slot("completed", v.year, "was completed in {}", "dates from {}", "+completed in {}"),
        slot("subject", ("a harbour at dawn", "two sisters", "an old windmill", "a bowl of pears",
                         "a sleeping dog", "a battle at sea", "the artist's mother"),
             "shows {}", "depicts {}", "+showing {}", "=subject"),
        slot("width", v.measure("cm", 20, 400), "is {} wide", "measures {} across", "#width"),
        slot("estimate", v.fortune, "is thought to be worth {}", "is valued at {}",
             "+valued at {}"),
        slot("signed", {
            "true": ("bears a signature", "is signed", "+with a signature"),
            "false": ("was never signed", "bears no signature", "+without a signature"),
        }),
    ),
)  # fmt: skip

GAME = Domain(
    ("chess game", "game of chess"),
    slot("game", v.code),
    (
        slot("white", v.person, "saw {} play the white pieces", "gave {} the white side"),
        slot("black", v.person, "had {} playing black", "gave the black pieces to {}"),
        slot("opening", ("Caro-Kann", "King's Gambit", "Sicilian", "Dutch Defence",
             "Queen's Gambit"),
             "began with the {}", "opened as a(n) {}", "=opening"),
        slot("moves", v.measure("moves", 12, 120), "took {}", "was over after {}", "+of {}"),
        slot("result", {
            "1-0": ("was won by white", "ended in a win for white"),
            "0-1": ("was won by black", "ended in a win for black"),
            "1/2-1/2": ("ended in a draw", "was drawn", "had no winner"),
        }),
        slot("played in", v.place, "was played in {}", "took place in {}", "+played in {}"),
        slot("round", v.SMALL, "belonged to round {}", "was part of round {}", "+from round {}"),
    ),
)  # fmt: skip

COURSE = Domain(
    ("course", "class"),
    slot("course", v.title),
    (
        slot("teacher", v.person, "is taught by {}", "is led by {}", "+taught by {}", "=teacher"),
        slot("topic", ("algebra", "ancient history", "marine biology", "statistics", "pottery",
                       "robotics", "creative writing", "linguistics", "first aid"),
             "deals with {}", "introduces students to {}", "+on {}", "+about {}", "=topic"),
        slot("room", v.code, "meets in room {}", "is held in room {}", "+held in room {}", "=room"),
        slot("day", v.DAYS, "meets every {}", "takes place on {}s", "+held on {}s"),
        slot("weeks", v.measure("weeks", 2, 30), "lasts {}", "goes on for {}", "#length"),
        slot("fee", v.money, "costs {}", "asks for {}", "#fee"),
        slot("exam", {
            "true": ("ends with an exam", "has a final exam", "+with a final exam"),
            "false": ("has no exam", "is free of exams", "+without an exam"),
        }),
        slot("level", ("beginner", "intermediate", "advanced"), "~{}", "is meant for {} students"),
        slot("places", v.few, "has room for {} students", "admits {} people"),
    ),
)  # fmt: skip

CULTURE = (PERSON, FILM, BOOK, SONG, CONCERT, PAINTING, GAME, COURSE)
