"""Answers as `/v1/completions` tells them: texts up to a stop, and log-probabilities of tokens."""

import codecs
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from mingpt_prefix.generation.sampling import Scored
from mingpt_prefix.serve.batching import log_probabilities
from mingpt_prefix.serve.requests import Query


@dataclass(frozen=True)
class Text:
    """An answer up to a stop, as text and as tokens with the text of each."""

    text: str
    ids: list[int]
    pieces: list[str]
    finish_reason: str


def text_of(query: Query, scored: Scored, stops: Sequence[str]) -> Text:
    """What an answer says up to the first of `stops`."""
    encoding = query.served.pipeline.tokenizer.encoding
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    has_ended = query.has_ended(scored.ids)
    pieces = [decoder.decode(encoding.decode_single_token_bytes(i)) for i in scored.ids]
    if pieces and has_ended:
        pieces[-1] += decoder.decode(b"", True)
    text = "".join(pieces)
    if (end := stop_at(text, stops)) is None:
        return Text(text, scored.ids, pieces, "stop" if has_ended else "length")
    n_kept = sum(start < end for start in starts(pieces))
    return Text(text[:end], scored.ids[:n_kept], pieces[:n_kept], "stop")


def starts(pieces: Sequence[str]) -> list[int]:
    """Where each piece begins in their text."""
    return list(itertools.accumulate(map(len, pieces[:-1]), initial=0)) if pieces else []


def stop_at(text: str, stops: Sequence[str]) -> int | None:
    """Where the first of `stops` begins."""
    return min((at for stop in stops if (at := text.find(stop)) >= 0), default=None)


def chances(query: Query, text: Text, count: int) -> dict:
    """The log-probability of each of a text's tokens, and of the `count` likeliest in its place."""
    own, likeliest = [], []
    if text.ids:
        pipeline = query.served.pipeline
        where = (pipeline.prefix, query.prefix_from)
        shares = log_probabilities(pipeline.model, query.prompt, text.ids, *where)
        own = [float(row[token]) for token, row in zip(text.ids, shares, strict=True)]
        for row, token in zip(shares, text.ids, strict=True):
            ids = [*row.topk(count).indices.tolist(), token]
            likeliest.append({pipeline.tokenizer.decode([i]): float(row[i]) for i in ids})
    said = {"tokens": text.pieces, "token_logprobs": own, "top_logprobs": likeliest}
    return {**said, "text_offset": starts(text.pieces)}


def held_back(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of `text` may begin a stop."""
    begun = (n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n]))
    return max(begun, default=0)
