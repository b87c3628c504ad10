"""BLEU: as sacrebleu computes it, and to 4 decimals as the official E2E script does."""

import json
import os
import random
import warnings
from pathlib import Path

import pytest

from mingpt_prefix.errors import DataError
from mingpt_prefix.metrics import bleu, mteval_tokens

WORDS = (
    "The the Mill mill is a cheap pub near £20-25 café, 3.5 don't (riverside). O'Neil & -5".split()
)


def sentences(rng: random.Random, n: int, shortest: int = 3) -> list[str]:
    return [" ".join(rng.choices(WORDS, k=rng.randint(shortest, 14))) for _ in range(n)]


def sacre(hypotheses: list[str], references: list[list[str]]) -> float:
    metrics = pytest.importorskip("sacrebleu.metrics")
    most = max(map(len, references))
    # sacrebleu takes the first references of all items, then the second ones, ...
    columns = [[item[i] if i < len(item) else None for item in references] for i in range(most)]
    scorer = metrics.BLEU(lowercase=True, tokenize="13a", smooth_method="none")
    return scorer.corpus_score(hypotheses, columns).score / 100


@pytest.mark.parametrize("seed", range(8))
def test_as_sacrebleu(seed: int) -> None:
    rng = random.Random(seed)
    references = [sentences(rng, rng.randint(1, 5)) for _ in range(40)]
    # Some of each item's first reference, so that long n-grams match too.
    hypotheses = [
        f"{item[0]} {tail}" for item, tail in zip(references, sentences(rng, 40), strict=True)
    ]
    score = bleu(hypotheses, references)
    assert 0.2 < score < 0.9
    assert score == pytest.approx(sacre(hypotheses, references), abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_tokens_as_sacrebleu(seed: int) -> None:
    module = pytest.importorskip("sacrebleu.tokenizers.tokenizer_13a")
    rng, tokenizer = random.Random(seed), module.Tokenizer13a()
    characters = "abZ 09.,-&;\"'()[]{}|~@#$%^*+=<>/?!:_\\`\n\té£—"
    for _ in range(300):
        text = "".join(rng.choices(characters, k=30)) + rng.choice(
            ["&quot;", "&amp;lt;", "-\n", ""]
        )
        assert mteval_tokens(text) == tokenizer(text.lower()).split()


def test_tokens() -> None:
    text = "The Café's £20-25, 3.5-star pub (near O'Neil's)."
    expected = "the café's £20 - 25 , 3.5 - star pub ( near o'neil's ) ."
    assert mteval_tokens(text) == expected.split()
    assert mteval_tokens(" \n ") == []


def test_ends_of_the_scale() -> None:
    texts = sentences(random.Random(0), 5, shortest=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bleu(texts, [[text] for text in texts]) == 1.0
        assert bleu(["the mill is a pub"], [["The Mill  is a pub"]]) == 1.0
        assert bleu(["x y z w v"] * 5, [[text] for text in texts]) == 0.0
        assert bleu(["", ""], [["a pub"], ["a mill"]]) == 0.0
        assert bleu(["pub"], [["pub"]]) <= 1.0
        assert bleu(["the pub is there now"], [["the mill was here then"]]) < 1e-3  # no 2-gram


def test_empty_hypotheses_cost_brevity() -> None:
    rng = random.Random(1)
    texts = sentences(rng, 20, shortest=6)
    references = [[text] for text in texts]
    assert 0.5 < bleu([*texts[:18], "", " "], references) < 1.0


@pytest.mark.parametrize(
    ("hypotheses", "references", "what"),
    [
        (["a"], [["a"], ["b"]], "1 hypotheses for 2 items"),
        ([], [], "no hypotheses"),
        (["a", "b"], [["a"], []], "item 2 has no references"),
    ],
)
def test_counts_that_do_not_fit(hypotheses, references, what: str) -> None:
    with pytest.raises(DataError, match=what):
        bleu(hypotheses, references)


def golden_sets() -> list[dict]:
    """Hypotheses, references and scores of the official script, in a folder of one's own."""
    folder = os.environ.get("MINGPT_PREFIX_GOLDEN")
    if not folder:
        pytest.skip("MINGPT_PREFIX_GOLDEN names no folder of official scores")
    sets = json.loads((Path(folder) / "scores.json").read_text(encoding="utf-8"))["sets"]
    for each in sets:
        lines = (Path(folder) / each["hypotheses"]).read_text(encoding="utf-8").split("\n")
        text = (Path(folder) / each["references"]).read_text(encoding="utf-8")
        each["hypotheses"] = lines[: each["items"]]
        each["references"] = [item.split("\n") for item in text.strip("\n").split("\n\n")]
    return sets


def test_official_scores() -> None:
    found, expected = {}, {}
    for each in golden_sets():
        found[each["name"]] = round(bleu(each["hypotheses"], each["references"]), 4)
        expected[each["name"]] = each["scores"]["BLEU"]
    assert found == expected
