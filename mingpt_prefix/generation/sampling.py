"""Greedy decoding, and sampling with temperature, top-k and top-p.

A sequence's score is the sum of its tokens' log-probabilities, including the end token's, in the
distribution they are chosen from: after `LogitsProcessor`, temperature, top-k and top-p. These are
the normalised scores of transformers' `compute_transition_scores`.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mingpt_prefix.config import Decoding
from mingpt_prefix.generation.kv_cache import KVCache

# Called after every step with the indices of the prompts that got a token, the tokens, and their
# log-probabilities; by beam search with empty lists, for nothing is final before its end. An
# exception that it raises ends decoding.
Watch = Callable[[list[int], list[int], list[float]], None]
# From logits (B, V), the rows' numbers in the batch (B,) and the step: the next token of each row
# (B,), and its log-probability (B,).
Choose = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]


class Scored(NamedTuple):
    """New ids without the end token, and their score: higher is better.

    It is the sum of the log-probabilities, including the end token's; beam search divides it by
    their number to the power of the length penalty.
    """

    ids: list[int]
    score: float


class LogitsProcessor:
    """Bans tokens by the rules of transformers' `generate`, for ragged prompts.

    No n-gram of the prompt or the new tokens may repeat (an end token in the prompt counts as any
    other), and the end token may not come before the minimum of new tokens. An `eos` outside the
    vocabulary is never banned; the ids of `padding` always are.
    """

    def __init__(
        self,
        prompts: Sequence[list[int]],
        decoding: Decoding,
        eos: int,
        vocab_size: int,
        device: torch.device,
        padding: range,
    ):
        self.padding = padding
        self.ngram, self.eos, self.vocab_size = decoding.no_repeat_ngram_size, eos, vocab_size
        self.least = decoding.min_new_tokens if 0 <= eos < vocab_size else 0
        width = max(map(len, prompts))
        # Left padding with an id that is no token: an n-gram that includes some occurs once in a
        # row, at its start, and so repeats nothing.
        padded = [[vocab_size] * (width - len(ids)) + ids for ids in prompts]
        self.prompts = torch.tensor(padded, device=device)

    def __call__(self, scores: Tensor, numbers: Tensor, new: Tensor) -> Tensor:
        """Scores (B, V), -inf for tokens banned after prompts `numbers` (B,) and `new` (B, N)."""
        if not self.ngram and new.shape[1] >= self.least and not self.padding:
            return scores
        # The last column stands for no token: n-grams that ban nothing write there.
        banned = scores.new_zeros(len(scores), self.vocab_size + 1, dtype=torch.bool)
        if new.shape[1] < self.least:
            banned[:, self.eos] = True
        banned[:, self.padding.start : self.padding.stop] = True
        if self.ngram:
            ids = torch.cat([self.prompts[numbers], new], 1)
            banned.scatter_(1, self._repeating(ids), True)
        return scores.masked_fill(banned[:, :-1], -math.inf)

    def _repeating(self, ids: Tensor) -> Tensor:
        """(B, W): the tokens that would repeat one of the W n-grams of `ids` (B, S); V for none."""
        if ids.shape[1] < self.ngram:
            return ids[:, :0]
        ngrams = ids.unfold(1, self.ngram, 1)  # (B, W, n)
        begun = ids[:, None, ids.shape[1] + 1 - self.ngram :]  # (B, 1, n - 1)
        return torch.where((ngrams[..., :-1] == begun).all(-1), ngrams[..., -1], self.vocab_size)


def choose_tokens(
    cache: KVCache,
    limits: Tensor,
    eos: int,
    decoding: Decoding,
    rules: LogitsProcessor,
    seeds: Sequence[Sequence[int]],
    watch: Watch | None = None,
) -> list[list[Scored]]:
    """The new tokens of each row in the cache, one sequence per seed.

    `limits` (B,): each row's maximum of new tokens; `seeds` (B, n). A sequence ends without an end
    token if every token is banned.
    """
    per_row, most = len(seeds[0]), int(limits.max())
    rows = torch.arange(len(limits), device=limits.device).repeat_interleave(per_row)
    limits = limits[rows]
    if per_row > 1:
        cache.keep(rows)
    choose = _likeliest
    if decoding.samples:
        choose = _sampler(
            [seed for of_row in seeds for seed in of_row], most, decoding, rows.device
        )
    new, counts = limits.new_zeros(len(rows), most), torch.zeros_like(limits)
    scores = torch.zeros_like(limits, dtype=torch.double)
    numbers = torch.arange(len(rows), device=rows.device)  # of the sequences that are not done
    for step in range(most):
        logits = rules(cache.logits, rows[numbers], new[numbers, :step])
        tokens, shares = choose(logits, numbers, step)
        possible = logits.gather(1, tokens[:, None])[:, 0] > -math.inf
        new[numbers, step] = tokens
        scores[numbers] += torch.where(possible, shares, 0.0)
        if watch is not None:
            watch(rows[numbers].tolist(), tokens.tolist(), shares.tolist())
        more = possible & (tokens != eos)
        counts[numbers] += more
        going = (more & (step + 1 < limits[numbers])).nonzero()[:, 0]
        if not len(going):
            break
        if len(going) < len(numbers):
            numbers, tokens = numbers[going], tokens[going]
            cache.keep(going)
        cache.step(tokens)
    found = zip(new.tolist(), counts.tolist(), scores.tolist(), strict=True)
    sequences = [Scored(ids[:n], score) for ids, n, score in found]
    return [sequences[i : i + per_row] for i in range(0, len(sequences), per_row)]


def _likeliest(logits: Tensor, numbers: Tensor, step: int) -> tuple[Tensor, Tensor]:
    tokens = logits.argmax(-1)
    return tokens, logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]


def _sampler(seeds: Sequence[int], most: int, decoding: Decoding, device: torch.device) -> Choose:
    # One generator per sequence, so that its draws do not depend on the others.
    generators = (torch.Generator().manual_seed(seed) for seed in seeds)
    draws = torch.stack([torch.rand(most, generator=g) for g in generators]).double().to(device)
    temperature = 1.0 if decoding.temperature is None else decoding.temperature

    def choose(logits: Tensor, numbers: Tensor, step: int) -> tuple[Tensor, Tensor]:
        values, order = logits.topk(min(decoding.top_k or logits.shape[1], logits.shape[1]))
        # Subtract the largest, which is first, so that no temperature is too low to divide by.
        values = values.double()
        shares = ((values - values[:, :1]) / temperature).softmax(-1)
        if decoding.top_p is not None:
            # Keep a token if those before it do not reach top_p.
            shares *= shares.cumsum(-1) - shares < decoding.top_p
        sums = shares.cumsum(-1)
        place = (sums <= draws[numbers, step, None] * sums[:, -1:]).sum(-1, keepdim=True)
        share = shares.gather(1, place) / sums[:, -1:]
        return order.gather(1, place)[:, 0], share.log()[:, 0]

    return choose
