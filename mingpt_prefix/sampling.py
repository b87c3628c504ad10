"""Sequences token after token: the likeliest one, or drawn by temperature, top-k and top-p.

A sequence's score is the sum of its tokens' log-probabilities, the end token's among them, in the
distribution they are chosen from: after bans, temperature, top-k and top-p. So transformers'
`compute_transition_scores` gives them, normalised.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mingpt_prefix.config import Decoding
from mingpt_prefix.kv_cache import KVCache
from mingpt_prefix.logits_processors import Bans
from mingpt_prefix.outputs import Scored, Watch

# The next token of each row (B,) and its log-probability (B,), by the logits (B, V), the rows'
# numbers in the batch (B,), and how many tokens came before.
Choose = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]


def choose_tokens(
    cache: KVCache,
    limits: Tensor,
    eos: int,
    decoding: Decoding,
    bans: Bans,
    seeds: Sequence[Sequence[int]],
    watch: Watch | None = None,
) -> list[list[Scored]]:
    """The new tokens of each row in the cache, one sequence for each of its seeds.

    `limits` (B,): how many tokens a row's may get; `seeds` (B, n): of what each draws. A sequence
    ends without an end token where every token is banned.
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
    numbers = torch.arange(len(rows), device=rows.device)  # of the sequences that are left
    for step in range(most):
        logits = bans(cache.logits, rows[numbers], new[numbers, :step])
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
    # Every sequence has a generator of its own; what it draws is independent of the others.
    generators = (torch.Generator().manual_seed(seed) for seed in seeds)
    draws = torch.stack([torch.rand(most, generator=g) for g in generators]).double().to(device)

    def choose(logits: Tensor, numbers: Tensor, step: int) -> tuple[Tensor, Tensor]:
        values, order = logits.topk(min(decoding.top_k or logits.shape[1], logits.shape[1]))
        shares = (values.double() / (decoding.temperature or 1.0)).softmax(-1)  # largest first
        if decoding.top_p is not None:
            # The likeliest tokens that together reach top_p: those with less than it before them.
            shares *= shares.cumsum(-1) - shares < decoding.top_p
        sums = shares.cumsum(-1)
        place = (sums <= draws[numbers, step, None] * sums[:, -1:]).sum(-1, keepdim=True)
        share = shares.gather(1, place) / sums[:, -1:]
        return order.gather(1, place)[:, 0], share.log()[:, 0]

    return choose
