"""How near hypotheses come to their references, as the official E2E script scores them.

    score(["The Mill is a pub."], [["The Mill is a cheap pub.", "A pub: The Mill."]])
    python -m mingpt_prefix.metrics HYPOTHESES REFERENCES [--json]

BLEU (Papineni et al. 2002) up to 4-grams and NIST (Doddington 2002) up to 5-grams, over the whole
corpus, on lower-cased mteval-v13a tokens; METEOR, ROUGE-L and CIDEr are in caption_metrics.py. The
files are the official script's: a hypothesis a line; the references of one item on lines of their
own, and an empty line between items.
"""

import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

from mingpt_prefix.errors import ConfigError, DataError, printable, shown
from mingpt_prefix.metrics.caption_metrics import CAPTION_METRICS, caption_scores

METRICS = ("bleu", "nist", *CAPTION_METRICS)
_ENTITIES = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))
# mteval-v13a's rules for Western languages, in their order.
_SPLITS = (
    (re.compile(r"([{-~\[-` -&(-+:-@/])"), r" \1 "),
    (re.compile(r"([^0-9])([.,])"), r"\1 \2 "),  # a period or comma stays only between digits
    (re.compile(r"([.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)
_ORDERS = (1, 2, 3, 4)
_NIST_ORDERS = 5
_NIST_BETA = math.log(0.5) / math.log(1.5) ** 2  # two thirds of the length cost half the score
# What the official script counts instead of no match, and instead of no n-gram at all.
_NO_MATCH, _NO_NGRAM = 1e-15, 1e-9


def mteval_tokens(text: str) -> list[str]:
    """The lower-cased tokens of `text` by the rules of NIST's mteval-v13a."""
    text = text.lower().replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, character in _ENTITIES:
        text = text.replace(entity, character)
    text = f" {text} "
    for pattern, replacement in _SPLITS:
        text = pattern.sub(replacement, text)
    return text.split()


def score(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    metrics: Sequence[str] = METRICS,
) -> dict[str, float]:
    """The named metrics of one hypothesis an item against that item's references.

    BLEU, METEOR and ROUGE-L are fractions, as in the official script; NIST and CIDEr have no such
    upper bound.

    Raises:
        ConfigError: for an unknown metric, or where what METEOR, ROUGE-L and CIDEr need is missing.
        DataError: for no items, an item without references, hypotheses and items of different
            numbers, or a score that is not finite.
    """
    for name in metrics:
        if name not in METRICS:
            known = ", ".join(METRICS)
            raise ConfigError(f"unknown metric '{printable(str(name))}'; known: {known}")
    _check_counts(hypotheses, references)
    own = {"bleu": bleu, "nist": nist}
    found = {name: own[name](hypotheses, references) for name in metrics if name in own}
    rest = [name for name in metrics if name not in own]
    if rest:
        found |= caption_scores(hypotheses, references, rest)
    if wrong := [f"{name} is {value}" for name, value in found.items() if not math.isfinite(value)]:
        raise DataError(f"no score: {', '.join(wrong)}")
    return {name: found[name] for name in metrics}


def bleu(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Corpus BLEU in [0, 1] of one hypothesis an item against that item's references.

    Raises:
        DataError: for no items, an item without references, or hypotheses and items of different
            numbers.
    """
    # Imported here: nltk takes a second, and not every command scores.
    with _some_home():
        from nltk.translate.bleu_score import (
            brevity_penalty,
            closest_ref_length,
            modified_precision,
        )

    _check_counts(hypotheses, references)
    matches, lengths, nearest = dict.fromkeys(_ORDERS, 0), [], 0
    for hypothesis, item in zip(hypotheses, references, strict=True):
        tokens, item_tokens = _said(hypothesis), [mteval_tokens(text) for text in item]
        lengths.append(len(tokens))
        nearest += closest_ref_length(item_tokens, len(tokens))
        for n in _ORDERS:
            matches[n] += modified_precision(item_tokens, tokens, n).numerator
    if not matches[1]:
        return 0.0
    totals = _totals(lengths, matches)
    logs = (
        math.log(max(matches[n], _NO_MATCH) / max(totals[n], _NO_NGRAM)) / len(_ORDERS)
        for n in _ORDERS
    )
    return min(1.0, brevity_penalty(nearest, totals[1]) * math.exp(math.fsum(logs)))


@contextmanager
def _some_home() -> Iterator[None]:
    """A home folder for nltk's downloader, whose import fails where a user has none."""
    is_missing = os.path.expanduser("~") == "~"
    if is_missing:
        os.environ["HOME"] = os.devnull
    try:
        yield
    finally:
        if is_missing:
            del os.environ["HOME"]


def nist(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Corpus NIST of one hypothesis an item against that item's references.

    An n-gram's information is log2 of how often its first n - 1 tokens stand in all references over
    how often it does itself; matches are clipped to the most that one reference of the item has.

    Raises:
        DataError: as `bleu`.
    """
    _check_counts(hypotheses, references)
    cut = [[mteval_tokens(text) for text in item] for item in references]
    known = Counter(gram for item in cut for tokens in item for gram in _ngrams(tokens))
    known[()] = sum(len(tokens) for item in cut for tokens in item)
    orders = range(1, _NIST_ORDERS + 1)
    gained, matches = dict.fromkeys(orders, 0.0), dict.fromkeys(orders, 0)
    lengths, expected = [], 0.0
    for text, item in zip(hypotheses, cut, strict=True):
        tokens, most = _said(text), Counter()
        for reference in item:
            most |= Counter(_ngrams(reference))
        for gram, times in (Counter(_ngrams(tokens)) & most).items():
            gained[len(gram)] += times * math.log2(known[gram[:-1]] / known[gram])
            matches[len(gram)] += times
        lengths.append(len(tokens))
        expected += sum(map(len, item)) / len(item)
    ratio = min(1.0, sum(lengths) / expected) if expected else 1.0
    penalty = math.exp(_NIST_BETA * math.log(ratio) ** 2)
    totals = _totals(lengths, matches)
    return penalty * math.fsum(gained[n] / totals[n] for n in orders if totals[n])


def _totals(lengths: Sequence[int], matches: Mapping[int, int]) -> dict[int, int]:
    """How many n-grams hypotheses of so many tokens have, by n.

    The official script counts k - n + 1 in k tokens, also when that is negative. If it thereby
    counts fewer n-grams than match, such a sentence has none, as in sacrebleu.
    """
    official = {n: sum(k - n + 1 for k in lengths) for n in matches}
    if all(official[n] >= matches[n] for n in matches):
        return official
    return {n: sum(max(0, k - n + 1) for k in lengths) for n in matches}


def _said(hypothesis: str) -> list[str]:
    """Its tokens; to the official script an empty line is one token, which nothing matches."""
    return mteval_tokens(hypothesis) or [""]


def _ngrams(tokens: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for n in range(1, _NIST_ORDERS + 1):
        for start in range(len(tokens) - n + 1):
            yield tuple(tokens[start : start + n])


def _check_counts(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if len(hypotheses) != len(references):
        what = f"{len(hypotheses)} hypotheses for {len(references)} items of references"
        raise DataError(f"{what}; in a file an empty line stands between two items' references")
    if not hypotheses:
        raise DataError("no hypotheses to score")
    for number, item in enumerate(references, 1):
        if not item:
            raise DataError(f"item {number} has no references")


def read_hypotheses(path: Path) -> list[str]:
    """The lines of a file; an empty one is an empty hypothesis.

    Raises:
        DataError: when the file is missing or not UTF-8.
    """
    lines = _read(path).split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def read_references(path: Path) -> list[list[str]]:
    """The items of a file, each its references: lines up to the next empty or blank one.

    Raises:
        DataError: when the file is missing or not UTF-8.
    """
    groups = groupby(_read(path).split("\n"), key=lambda line: bool(line.strip()))
    return [list(lines) for has_text, lines in groups if has_text]


def _read(path: Path) -> str:
    name = shown(path)
    try:
        return path.read_text(encoding="utf-8-sig")  # with or without a byte order mark
    except OSError as error:
        raise DataError(f"{name}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: byte 0x{error.object[error.start]:02x} is not UTF-8") from None
