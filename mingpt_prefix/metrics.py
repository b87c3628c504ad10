"""How near hypotheses come to their references, as the official E2E script scores them.

    bleu(["The Mill is a pub."], [["The Mill is a cheap pub.", "A pub: The Mill."]])  # a fraction

BLEU (Papineni et al. 2002) up to 4-grams over the whole corpus, on lower-cased mteval-v13a tokens.
"""

import math
import re
from collections.abc import Sequence

from mingpt_prefix.errors import DataError

_ENTITIES = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))
# mteval-v13a's rules for Western languages, in their order.
_SPLITS = (
    (re.compile(r"([{-~\[-` -&(-+:-@/])"), r" \1 "),
    (re.compile(r"([^0-9])([.,])"), r"\1 \2 "),  # a period or comma stays only between digits
    (re.compile(r"([.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)
_ORDERS = (1, 2, 3, 4)
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


def bleu(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Corpus BLEU in [0, 1] of one hypothesis an item against that item's references.

    Raises:
        DataError: for no items, an item without references, or hypotheses and items of different
            numbers.
    """
    # Imported here: nltk takes a second, and not every command scores.
    from nltk.translate.bleu_score import brevity_penalty, closest_ref_length, modified_precision

    _check_counts(hypotheses, references)
    matches, totals = dict.fromkeys(_ORDERS, 0), dict.fromkeys(_ORDERS, 0)
    nearest = 0
    for hypothesis, item in zip(hypotheses, references, strict=True):
        tokens, item_tokens = mteval_tokens(hypothesis), [mteval_tokens(text) for text in item]
        nearest += closest_ref_length(item_tokens, len(tokens))
        for n in _ORDERS:
            matches[n] += modified_precision(item_tokens, tokens, n).numerator
            # As the official script counts: below 0 for a hypothesis of less than n - 1 tokens.
            totals[n] += len(tokens) - n + 1
    if not matches[1]:
        return 0.0
    logs = (
        math.log(max(matches[n], _NO_MATCH) / max(totals[n], _NO_NGRAM)) / len(_ORDERS)
        for n in _ORDERS
    )
    return min(1.0, brevity_penalty(nearest, totals[1]) * math.exp(math.fsum(logs)))


def _check_counts(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if len(hypotheses) != len(references):
        raise DataError(f"{len(hypotheses)} hypotheses for {len(references)} items of references")
    if not hypotheses:
        raise DataError("no hypotheses to score")
    for number, item in enumerate(references, 1):
        if not item:
            raise DataError(f"item {number} has no references")
