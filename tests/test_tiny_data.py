"""The two data generators: the sample data set, and the mixture that must not give it away."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from random import Random

import pytest

from mingpt_prefix.tiny import (
    make_sample,
    mixture,
    mixture_coined,
    mixture_values,
    sample_text,
    slots,
)
from mingpt_prefix.tiny.mixture_invented import POOL
from mingpt_prefix.tiny.mixture_slots import Domain

SAMPLE = Path(make_sample.__file__).with_name("sample")
DOCUMENTS = 2000
FUNCTION_WORDS = frozenset(
    "@ . , a the it is was has does not no and that which with of in on at to by from for as "
    "also its".split()
)


@pytest.fixture(scope="module")
def splits() -> dict[str, list[tuple[make_sample.Table, list[str]]]]:
    return make_sample.make()


@pytest.fixture(scope="module")
def documents() -> list[str]:
    return [*mixture.documents(DOCUMENTS, 0), *mixture.documents(DOCUMENTS, 0, 4, coined=0.75)]


@pytest.fixture(scope="module")
def told() -> list[tuple[Domain, mixture.Rows, str]]:
    """Domain, table and text of mixture documents, before the table is written in any format."""
    rng, drawn = Random(0), []
    for _ in range(DOCUMENTS):
        domain = mixture.draw_domain(rng, coined=0.5)
        author = mixture_values.Author(rng) if rng.random() < 0.5 else None
        drawn.append((domain, *mixture.draw_pair(domain, rng, author)))
    return drawn


def tokens(text: str) -> list[str]:
    """Lower-cased tokens as mteval-13a cuts them."""
    text = re.sub(r"([\{-\~\[-\` -\&\(-\+\:-\@\/])", r" \1 ", text.lower())
    text = re.sub(r"([^0-9])([\.,])", r"\1 \2 ", text)
    text = re.sub(r"([\.,])([^0-9])", r" \1 \2", text)
    return re.sub(r"([0-9])(-)", r"\1 \2 ", text).split()


def delexicalised(values: Iterable[str], text: str) -> list[str]:
    """Tokens of `text` with "@" for each value, the longest replaced first."""
    for value in sorted(values, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(value)}(?!\w)", "@", text, flags=re.IGNORECASE)
    return re.sub(r"\ban\b", "a", text.lower()).replace(".", " .").replace(",", " ,").split()


def patterns(words: list[str]) -> set[tuple[str, ...]]:
    """Runs of six tokens, and whole sentences."""
    sentences = " ".join(words).split(" .")
    runs = {tuple(words[start : start + 6]) for start in range(len(words) - 5)}
    return runs | {tuple(sentence.split()) for sentence in sentences}


def test_sample_files_regenerate_byte_for_byte(tmp_path: Path) -> None:
    make_sample.save(tmp_path)
    for file in make_sample.FILES.values():
        assert (tmp_path / file).read_bytes() == (SAMPLE / file).read_bytes()
    assert sum(path.stat().st_size for path in SAMPLE.glob("*.csv")) <= 1_100_000


def test_sample_files_hold_every_row(splits) -> None:
    for split, file in make_sample.FILES.items():
        with (SAMPLE / file).open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        expected = make_sample.TABLES[split] * make_sample.REFERENCES
        assert len(rows) == expected == sum(len(texts) for _, texts in splits[split])
        assert len({row["mr"] for row in rows}) == make_sample.TABLES[split]
        assert not any("The Mill" in row["mr"] for row in rows)


def test_tables_have_three_to_eight_slots_in_order(splits) -> None:
    for items in splits.values():
        for table, _ in items:
            used = [slot for slot, _ in table]
            assert used[0] == "name" and 3 <= len(used) <= 8
            assert used == [slot for slot in slots.SLOTS if slot in used]


def test_splits_are_disjoint(splits) -> None:
    def gather(split: str, what) -> set:
        return {found for table, _ in splits[split] if (found := what(table)) is not None}

    for other in ("dev", "test"):
        for what in (
            lambda table: dict(table)["name"],
            lambda table: dict(table).get("near"),
            make_sample.values_of,
        ):
            assert gather("train", what).isdisjoint(gather(other, what))
        kinds = [tuple(slot for slot, _ in table) for table, _ in splits[other]]
        known = gather("train", lambda table: tuple(slot for slot, _ in table))
        assert sum(kind not in known for kind in kinds) >= len(kinds) // 5


@pytest.mark.parametrize("split", ["train", "test"])
def test_references_agree_as_much_as_people_do(splits, split: str) -> None:
    bleu = pytest.importorskip("nltk.translate.bleu_score").corpus_bleu
    cut = [[tokens(text) for text in texts] for _, texts in splits[split]]
    others = [
        [t for j, t in enumerate(texts) if j != i] for texts in cut for i in range(len(texts))
    ]
    left_out = bleu(others, [text for texts in cut for text in texts])
    favourites = [tokens(sample_text.favourite(table)) for table, _ in splits[split]]
    assert 0.58 <= left_out <= 0.70
    assert bleu(cut, favourites) > max(0.65, left_out + 0.04)


def test_every_reference_is_free_of_slot_errors(splits) -> None:
    for items in splits.values():
        for table, texts in items:
            for text in [*texts, sample_text.favourite(table)]:
                assert slots.slot_errors(table, text) == [], (table, text)


def test_slot_errors_finds_every_changed_value(splits) -> None:
    for table, texts in splits["test"]:
        for at, (slot, value) in enumerate(table):
            others = [
                other
                for other in slots.EVIDENCE.get(slot, ("The Mill", "Elm Row"))
                if other != value
            ]
            for other in others:
                changed = [*table[:at], (slot, other), *table[at + 1 :]]
                assert slot in slots.slot_errors(changed, texts[0]), (changed, texts[0])


def test_slot_errors_finds_missing_and_swapped_values() -> None:
    table = [
        ("name", "Juniper & Rye"), ("priceRange", "high"), ("customer rating", "low"),
        ("familyFriendly", "yes"), ("near", "Cheap Pub Hall"),
    ]  # fmt: skip
    good = "Juniper & Rye near Cheap Pub Hall has high prices, a low rating and welcomes children."
    assert slots.slot_errors(table, good) == []
    assert slots.slot_errors(table, "Juniper & Rye is near Cheap Pub Hall.") == [
        "priceRange", "customer rating", "familyFriendly",
    ]  # fmt: skip
    for right, wrong, slot in (
        ("high prices", "low prices", "priceRange"),
        ("high prices", "high-priced meals and low prices", "priceRange"),
        ("low rating", "high rating", "customer rating"),
        ("welcomes children", "isn't family-friendly", "familyFriendly"),
    ):
        assert slots.slot_errors(table, good.replace(right, wrong)) == [slot]
    swapped = (
        "Cheap Pub Hall near Juniper & Rye has high prices, a low rating and welcomes families."
    )
    assert slots.slot_errors(table, swapped) == ["name", "near"]


def test_mixture_is_deterministic(documents: list[str]) -> None:
    assert documents[:300] == list(islice(mixture.documents(DOCUMENTS, seed=0), 300))
    assert documents[:20] != list(islice(mixture.documents(DOCUMENTS, seed=1), 20))
    coined = list(islice(mixture.documents(DOCUMENTS, 0, 4, coined=0.75), 300))
    assert coined == list(islice(mixture.documents(DOCUMENTS, 0, 4, coined=0.75), 300))
    assert set(coined) <= set(documents)


def test_mixture_shows_no_downstream_format(documents: list[str]) -> None:
    for document in documents:
        assert not re.search(r"\w\[[^\]\n]*\]", document), document
        assert not re.search(r"\w : \w[^|\n]* \| ", document), document


def test_mixture_says_what_the_table_holds(told) -> None:
    for domain, rows, text in told:
        assert "{" not in text and "(n)" not in text and ".." not in text
        sources = {slot.name: slot.source for slot in (domain.key, *domain.slots)}
        for name, value in rows:
            assert isinstance(sources[name], Mapping) or value in text, (rows, text)


def test_coined_domains_use_no_word_of_the_sample(splits) -> None:
    words = set(mixture_coined.words())
    said = {
        word
        for items in splits.values()
        for table, texts in items
        for text in (make_sample.meaning(table), *texts)
        for word in re.findall("[a-z]+", text.lower())
    }
    assert len(words) > 1000 and words.isdisjoint(said)
    rng = Random(0)
    first, second = mixture_coined.coin(rng), mixture_coined.coin(rng)
    assert {s.name for s in first.slots}.isdisjoint(s.name for s in second.slots)


def test_coined_formats_are_many_and_never_the_downstream_one() -> None:
    rng = Random(0)
    rows = (("alpha", "one"), ("beta", "two"))
    written = {mixture_coined.Separators(rng)(rows) for _ in range(3000)}
    assert len(written) > 1000
    assert not [text for text in written if re.search(r"a ?: ?[^|:=]+\| ", text)]


def test_mixture_shares_no_slots_or_values_with_the_sample() -> None:
    assert len(mixture.DOMAINS) >= 20 and len(mixture.FORMATS) >= 8
    sample_slots = {name.lower() for name in slots.SLOTS}
    sample_values = {
        value.lower()
        for slot, values in slots.EVIDENCE.items() if slot != "familyFriendly"
        for value in values
    } | {"yes", "no"}  # fmt: skip
    used = [*POOL, *(s for d in mixture.DOMAINS for s in (d.key, *d.slots))]
    for slot in used:
        assert slot.name.lower() not in sample_slots
        if not callable(slot.source):
            assert sample_values.isdisjoint(value.lower() for value in slot.source), slot.name
    words = {word for name in make_sample.names() + make_sample.places() for word in name.split()}
    words |= {word.removesuffix("'s") for word in words}
    for closed in ("ADJECTIVES", "NOUNS", "WOMEN", "MEN"):
        assert words.isdisjoint(getattr(mixture_values, closed)), closed


def test_mixture_shares_no_wording_with_the_sample(splits, told) -> None:
    """No six tokens in a row, and no sentence, but those of grammar alone ("@, and it has a @")."""
    runs: set[tuple[str, ...]] = set()
    for items in splits.values():
        for table, texts in items:
            values = [value for slot, value in table if slot != "familyFriendly"]
            for text in texts:
                runs |= patterns(delexicalised(values, text))
    assert ("there", "is", "a", "@", "called", "@") in runs
    for _, rows, text in told:
        values = [value for _, value in rows if value not in ("true", "false")]
        shared = patterns(delexicalised(values, text)) & runs
        assert all(FUNCTION_WORDS.issuperset(run) for run in shared), (shared, text)
