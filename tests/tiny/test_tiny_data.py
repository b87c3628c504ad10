"""The sample data set, what is wrong with a text about it, and the base's text, which must not give
it away."""

from __future__ import annotations

import base64
import csv
import lzma
import re
from collections import Counter
from itertools import combinations
from pathlib import Path
from random import Random

import pytest

from mingpt_prefix import tiny
from mingpt_prefix.data.text import documents as read_documents
from mingpt_prefix.data.tokenizer import load_tokenizer
from mingpt_prefix.evaluation.faults import SAMPLE as WORDINGS_OF_SAMPLE
from mingpt_prefix.evaluation.faults import SLOTS, Fault, faults, slot_errors, slots_said
from mingpt_prefix.tiny import corpus, make, make_sample
from mingpt_prefix.tiny.names import WORDINGS, Names
from mingpt_prefix.tiny.sentences import Author, describe

SAMPLE = Path(make_sample.__file__).with_name("sample")
WORDS = "lantern meadow copper violin thunder parcel silver window garden whistle".split()
TABLE = (
    ("name", "Ottoline's Parlour"),
    ("eatType", "pub"),
    ("food", "Indian"),
    ("priceRange", "£20-25"),
    ("area", "old town"),
    ("near", "Yew Wharf"),
)
TEXT = (
    "Ottoline's Parlour is a pub serving Indian food in the old town near Yew Wharf. Prices are"
    " between £20 and £25."
)

Splits = dict[str, list[tuple[make_sample.Table, list[str]]]]


@pytest.fixture(scope="module")
def splits() -> Splits:
    return make_sample.make()


def favourite(table: make_sample.Table) -> str:
    """The text that takes the first wording throughout."""
    return make_sample.reference(table, lambda options, key="": options[0])


def tokens(text: str) -> list[str]:
    """Lower-cased tokens as mteval-13a cuts them."""
    text = re.sub(r"([\{-\~\[-\` -\&\(-\+\:-\@\/])", r" \1 ", text.lower())
    text = re.sub(r"([^0-9])([\.,])", r"\1 \2 ", text)
    text = re.sub(r"([\.,])([^0-9])", r" \1 \2", text)
    return re.sub(r"([0-9])(-)", r"\1 \2 ", text).split()


def test_sample_files_regenerate_byte_for_byte(tmp_path: Path) -> None:
    make_sample.save(tmp_path)
    for file in make_sample.FILES.values():
        assert (tmp_path / file).read_bytes() == (SAMPLE / file).read_bytes()
    assert sum(path.stat().st_size for path in SAMPLE.glob("*.csv")) <= 1_300_000


def test_sample_files_hold_every_row(splits: Splits) -> None:
    for split, file in make_sample.FILES.items():
        with (SAMPLE / file).open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        expected = make_sample.TABLES[split] * make_sample.REFERENCES
        assert len(rows) == expected == sum(len(texts) for _, texts in splits[split])
        assert len({row["mr"] for row in rows}) == make_sample.TABLES[split]
        assert not any("The Mill" in row["mr"] for row in rows)


def test_tables_have_three_to_eight_slots_in_order(splits: Splits) -> None:
    for items in splits.values():
        for table, _ in items:
            used = [slot for slot, _ in table]
            assert used[0] == "name" and 3 <= len(used) <= 8
            assert used == [slot for slot in SLOTS if slot in used]


def words_of(items: list, slot: str) -> set[str]:
    values = [dict(table)[slot] for table, _ in items if slot in dict(table)]
    return {word for value in values for word in re.findall(r"\w+", value)} - {"The", "s", "O"}


def test_splits_are_disjoint(splits: Splits) -> None:
    def gather(split: str, what) -> set:
        return {found for table, _ in splits[split] if (found := what(table)) is not None}

    known = gather("train", lambda table: tuple(slot for slot, _ in table))
    for other in ("dev", "test", "test-known"):
        for what in (
            lambda table: dict(table)["name"],
            lambda table: dict(table).get("near"),
            make_sample.values_of,
        ):
            assert gather("train", what).isdisjoint(gather(other, what))
        kinds = [tuple(slot for slot, _ in table) for table, _ in splits[other]]
        assert sum(kind not in known for kind in kinds) >= len(kinds) // 5


def test_names_to_test_on_are_of_new_words_or_of_known_ones(splits: Splits) -> None:
    train = words_of(splits["train"], "name") | words_of(splits["train"], "near")
    for slot in ("name", "near"):
        for split in ("dev", "test"):
            assert words_of(splits[split], slot).isdisjoint(train)
        assert words_of(splits["test-known"], slot) <= train
    names = [dict(table)["name"] for table, _ in splits["test"]]
    assert {1, 2, 3} <= {len(name.split()) for name in names}
    assert all(any(letter in name for name in names) for letter in "&'ZQJkYÅ")


@pytest.mark.parametrize("split", ["train", "test"])
def test_references_agree_as_much_as_people_do(splits: Splits, split: str) -> None:
    bleu = pytest.importorskip("nltk.translate.bleu_score").corpus_bleu
    cut = [[tokens(text) for text in texts] for _, texts in splits[split]]
    others = [
        [t for j, t in enumerate(texts) if j != i] for texts in cut for i in range(len(texts))
    ]
    left_out = bleu(others, [text for texts in cut for text in texts])
    favourites = [tokens(favourite(table)) for table, _ in splits[split]]
    assert 0.58 <= left_out <= 0.70
    assert bleu(cut, favourites) > max(0.65, left_out + 0.04)


def test_every_reference_is_free_of_faults(splits: Splits) -> None:
    for items in splits.values():
        for table, texts in items:
            for text in [*texts, favourite(table)]:
                assert faults(table, text) == [], (table, text)


def test_every_changed_value_is_omitted_and_invented(splits: Splits) -> None:
    rng = Random(0)
    for table, texts in splits["test"]:
        for at, (slot, value) in enumerate(table):
            if slot in ("name", "near"):
                other = next(v for t, _ in splits["train"] for s, v in t if s == slot)
            else:
                others = [v for v in WORDINGS_OF_SAMPLE["slots"][slot]["values"] if v != value]
                other = rng.choice(others)
            changed = (*table[:at], (slot, other), *table[at + 1 :])
            found = faults(changed, texts[0])
            assert Fault("omitted", slot) in found, (changed, texts[0])
            if slot not in ("name", "near"):
                assert Fault("invented", slot) in found, (changed, texts[0])
            assert slot in slot_errors(changed, texts[0])


def test_every_slot_taken_out_of_the_table_is_invented(splits: Splits) -> None:
    for table, texts in splits["test"]:
        for at, (slot, _) in enumerate(table):
            if slot != "name":
                left = (*table[:at], *table[at + 1 :])
                assert Fault("invented", slot) in faults(left, texts[0]), (left, texts[0])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (TEXT, []),
        (TEXT.replace("Ottoline's Parlour", "Ottoline's P Karlour"),
         [("omitted", "name"), ("garbled", "p"), ("garbled", "karlour")]),
        (TEXT.replace("near Yew Wharf", "near Yew Wh"), [("omitted", "near"), ("garbled", "wh")]),
        (TEXT.replace("near Yew Wharf", "near Ottoline's Parlour"), [("omitted", "near")]),
        (TEXT + " It is in the old town.", [("repeated", "area")]),
        (TEXT + " It is in the city centre.", [("invented", "area")]),
        (TEXT + " It is highly rated.", [("invented", "customer rating")]),
        (TEXT + " The pub is near Yew Wharf.", [("repeated", "near")]),
        (TEXT.replace("between £20 and £25", "over £30"),
         [("omitted", "priceRange"), ("invented", "priceRange")]),
        (TEXT.replace(" pub", " place"), [("omitted", "eatType")]),
        (TEXT + " The Copper Kettle is a place.", [("invented", "name")]),
        (TEXT.replace("Parlour is", "Parlour Kitchen is"), [("invented", "name")]),
        (TEXT.replace("Ottoline's Parlour", "Ottoline's Parlour Ottoline's Parlour"),
         [("repeated", "name")]),
        ("Old " + TEXT, [("invented", "name")]),
        (TEXT.replace("Yew Wharf", "Yew Wharf Station"), [("invented", "name")]),
        (TEXT + " The pub is near Juniper Hall.", [("invented", "near")]),
        (TEXT + " Guests give it 4 out of 5.", [("invented", "customer rating")]),
        (TEXT + " Meals cost less than £50.", [("invented", "priceRange")]),
        (TEXT.replace("between £20 and £25", "£20-25.50"),
         [("omitted", "priceRange"), ("invented", "priceRange")]),
        (TEXT + " It is a bistro.", [("invented", "eatType")]),
        (TEXT + " eatType pub.", [("garbled", "eattype")]),
        (TEXT + " It isn't expensive.", [("invented", "priceRange")]),
        ("", [("omitted", slot) for slot, _ in TABLE]),
    ],
)  # fmt: skip
def test_faults_of_each_kind(text: str, found: list[tuple[str, str]]) -> None:
    assert faults(TABLE, text) == found
    omitted = {what for kind, what in found if kind == "omitted"}
    assert slots_said(TABLE, text) == [slot for slot, _ in TABLE if slot not in omitted]


def test_a_value_of_another_slot_is_said_as_it_stands() -> None:
    table = (("author", "Iris Vane"), ("year", "1931"))
    assert slots_said(table, "A book by Iris Vane, of 193 pages.") == ["author"]


def test_a_place_nearby_that_the_table_lacks_is_invented() -> None:
    assert faults(TABLE[:-1], TEXT)[0] == ("invented", "near")


def test_names_that_mean_something_elsewhere() -> None:
    table = (("name", "The Cheap Suburb"), ("near", "Cheap Pub Hall"))
    assert slot_errors(table, "The Cheap Suburb is a place near Cheap Pub Hall.") == []
    swapped = "Cheap Pub Hall is a place near The Cheap Suburb."
    assert slot_errors(table, swapped) == ["name", "near"]


@pytest.fixture(scope="module")
def documents() -> list[str]:
    rng = Random(0)
    return [document for _ in range(1500) for document in corpus.documents(rng, WORDS)]


def test_the_text_is_deterministic_and_varied(documents: list[str]) -> None:
    again, other = Random(0), Random(1)
    assert documents[:3] == [d for _ in range(20) for d in corpus.documents(again, WORDS)][:3]
    assert documents[:3] != [d for _ in range(20) for d in corpus.documents(other, WORDS)][:3]
    assert len(set(documents)) > 0.95 * len(documents)


def test_a_text_says_every_fact_of_its_table_once() -> None:
    rng = Random(3)
    for _ in range(1500):
        domain = corpus.Domain(rng, Names(rng, WORDS))
        rows, thing = domain.draw()
        text = describe(thing, Author(rng))
        plain = re.sub(r"\ban\b", "a", text.lower())
        assert thing.name.lower() in text.lower() and thing.kind in text
        assert dict(rows)[domain.name_slot] == thing.name
        for fact in thing.facts:
            said = {each for form in fact.forms.values() for each in form}
            said = {re.sub(r"\ban\b", "a", each.lower()) for each in said}
            assert any(each in plain for each in said), (fact, text)
        told = sum(plain.count(fact.shown.lower()) for fact in thing.facts if len(fact.shown) > 9)
        assert told <= sum(len(fact.shown) > 9 for fact in thing.facts) + 1, text
        assert text[0] == text[0].upper() and text.endswith(".") and "  " not in text


def test_an_author_says_facts_in_one_order_or_in_many() -> None:
    found = Counter()
    for seed in range(60):
        task = corpus.Describing(Random(seed), WORDS)
        ((_, orders),) = task.authors
        drawn = [task.domain.draw(task.rng.choice(orders)) for _ in range(80)]
        said = [[fact.slot for fact in thing.facts] for _, thing in drawn]
        before = {pair for slots in said for pair in combinations(slots, 2)}
        changes = any(pair[::-1] in before for pair in before)
        is_of_table = orders == [None]
        assert is_of_table or changes == (len(orders) > 1), seed
        found[is_of_table, changes] += 1
    assert len(found) == 4, found


def test_names_are_of_few_words_but_those_of_new_tables() -> None:
    task = corpus.Describing(Random(0), WORDS, most=4)
    task.domain = corpus.Domain(task.rng, task.domain.names, "place")
    slot = task.domain.name_slot
    known, new = (
        {dict(task.draw(is_new)[0])[slot] for _ in range(300)} for is_new in (False, True)
    )
    assert len(known) <= 3 * 4**2 and len(new) > 4 * len(known)
    assert {dict(task.draw()[0])[slot] for _ in range(300)} <= known


def test_wordings_are_complete() -> None:
    families = WORDINGS["family"]
    kinds = [kind for family in families.values() for kind in family["kinds"]]
    assert len(families) == 6 and len(set(kinds)) >= 90
    for slot in WORDINGS["slot"]:
        assert set(slot["of"]) <= set(families)
        for forms in slot.get("table", {"": slot}).values():
            assert {"verb", "at"} & set(forms), slot["names"]


def test_the_form_in_which_tables_are_given_is_not_shown() -> None:
    drawing = Random(0)
    lists = [corpus._copying(drawing, Names(drawing, WORDS)) for _ in range(3000)]
    assert any(" | " in each for each in lists) and not any(" : " in each for each in lists)
    rng = Random(0)
    rows = {tuple(corpus.Style(rng).row) for _ in range(5000)}
    assert not [row for row in rows if row[1::2] == (" : ", " | ")]
    assert {" : ", ": "} <= {row[1] for row in rows} and " | " in {row[3] for row in rows}


def eight_words(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"[\w'&£$€-]+", text.lower())
    return {tuple(words[at : at + 8]) for at in range(len(words) - 7)}


def test_the_base_text_shares_nothing_with_the_sample(splits: Splits, tmp_path, monkeypatch):
    """No name and no eight words in a row; what would share them is left out."""
    table, texts = max(splits["test"], key=lambda item: len(item[0]))
    name = dict(table)["name"]
    english = tmp_path / "english.txt"
    plain = "The river rose in the night, and nobody on the farm heard it come."
    prose = (Path(make.__file__).parents[2] / "bench" / "prose.txt").read_text(encoding="utf-8")
    lines = [plain, *prose.split("\n"), f"Once {texts[0]}", f"We met at {name} and talked."]
    lines += [f"_{name}_'s roof had gone.", f"It was {name}'s.", f"'{name}-like,' they thought."]
    words = texts[0].split()
    wrapped = "\n".join(" ".join(words[at : at + 5]) for at in range(0, len(words), 5))
    pages = ["\n".join(lines), f"A page on {name}.", wrapped]
    english.write_text("".join(f"{page}\n<|endoftext|>\n" for page in pages))
    colliding = iter([[f"Seen: {name}."], ["a table", f"Again, {texts[0]}"]])
    draw = corpus.documents
    monkeypatch.setattr(corpus, "documents", lambda *a: next(colliding, None) or draw(*a))
    monkeypatch.setattr(make, "TABLE_BYTES", 600_000)
    make.write_text([english], tmp_path / "text.txt.xz")
    written = list(read_documents(tmp_path / "text.txt.xz"))
    assert next(colliding, None) is None
    assert written[0].split("\n")[0] == plain and written[0].count("\n") > 3
    assert sum(len(document) for document in written) > 550_000
    text = "\n".join(written)
    sample = [item for items in splits.values() for item in items]
    runs = {run for _, texts in sample for each in texts for run in eight_words(each)}
    assert len(runs) > 30_000 and not any(eight_words(document) & runs for document in written)
    open_values = {value for t, _ in sample for slot, value in t if slot in ("name", "near")}
    for value in open_values:
        assert not re.search(rf"(?<![^\W_]){re.escape(value)}(?![^\W_])", text), value
    assert not [table for table, _ in sample if make_sample.meaning(table) in text]


def test_no_table_of_the_base_text_has_slots_of_the_sample_but_the_name(splits: Splits) -> None:
    """So no table and no slot set is the same, however slots are spelled."""

    def plain(slot: str) -> str:
        return slot.lower().replace(" ", "").replace("_", "")

    slots = {plain(slot) for items in splits.values() for table, _ in items for slot, _ in table}
    assert len(slots) == 8
    rng, found = Random(0), set()
    words = [*WORDS, *"food area near price range customer rating family friendly".split()]
    for _ in range(2000):
        domain = corpus.Domain(rng, Names(rng, words))
        found |= {plain(slot) for slot, _ in domain.draw()[0]}
    assert found & slots == {"name"} and "silver" in found
    # The words for the sample's slots are not used either, except "price".
    shown = {"name", "type", "food", "price", "customer rating", "area", "family friendly", "near"}
    listed = (slot["names"] for slot in WORDINGS["slot"] if slot["names"] != "any")
    used = {each.lower() for names in listed for each in names}
    used |= {corpus.Domain(rng, Names(rng, WORDS)).kind_slot for _ in range(200)}
    assert used & shown <= {"price"}


def test_english_ends_inside_a_document_that_is_too_long(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(make, "ENGLISH_BYTES", 100)
    (tmp_path / "english.txt").write_text("A line.\n" * 40)
    (document,) = make._english([tmp_path / "english.txt"], corpus.Overlap([], ["Salt & Honey"]))
    assert document == ("A line.\n" * 40)[:100] + "\n<|endoftext|>\n"


def test_overlap_knows_names_and_runs() -> None:
    overlap = corpus.Overlap(["one two three four five six seven eight nine"], ["Salt & Honey"])
    assert overlap.is_in("They ate at Salt & Honey.")
    assert overlap.is_in("Zero One two Three four five six seven eight.")
    assert not overlap.is_in("salt & honey, two three four five six seven eight ten")


def test_the_vocabulary_is_byte_level_bpe_with_currency_signs(tmp_path: Path) -> None:
    text = tmp_path / "text.txt.xz"
    with lzma.open(text, "wt", encoding="utf-8") as file:
        file.write("The meal costs £20. The menu costs £25.\n<|endoftext|>\n" * 20)
    lines = make.learn_vocabulary(text, 300).splitlines()
    ranks = {base64.b64decode(line.split()[0]): int(line.split()[1]) for line in lines}
    assert list(ranks.values()) == list(range(len(lines))) and len(lines) <= 299
    assert [bytes([byte]) for byte in range(256)] == list(ranks)[:256] and b" costs" in ranks
    assert {f" {sign}".encode() for sign in "£€¥"} <= set(ranks)
    shipped = load_tokenizer("tiny-1024")
    assert [len(shipped.encode(f" {sign}")) for sign in "£$"] == [1, 1]
    assert shipped.decode(shipped.encode("Zoë's – £20 & ½")) == "Zoë's – £20 & ½"


def test_the_recipe_stays_short() -> None:
    files = [file for file in Path(tiny.__file__).parent.glob("*.py") if file.stem != "make_sample"]
    assert len(files) > 4
    assert sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files) < 800
