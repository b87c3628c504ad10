"""One sequence a row, token after token: the likeliest, or drawn by temperature, top-k and top-p."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mingpt_prefix.config import Decoding
from mingpt_prefix.kv_cache import KVCache

# The next token of each row (B,), by the logits (B, V), the rows' numbers in the batch (B,), and
# how many tokens came before.
Choose = Callable[[Tensor, Tensor, int], Tensor]


def choose_tokens(
    cache: KVCache, limits: Tensor, eos: int, decoding: Decoding, seeds: Sequence[int]
) -> list[list[int]]:
    """The new tokens of each row in the cache, without the end token.

    `limits` (B,): how many each may get; `seeds` (B,): of what each draws.
    """
    choose = _sampler(limits, decoding, seeds) if decoding.samples else _likeliest
    most = int(limits.max())
    new, counts = limits.new_zeros(len(limits), most), torch.zeros_like(limits)
    numbers = torch.arange(len(limits), device=limits.device)  # of the rows that are left
    for step in range(most):
        tokens = choose(cache.logits, numbers, step)
        new[numbers, step] = tokens
        counts[numbers] += tokens != eos
        going = ((tokens != eos) & (step + 1 < limits[numbers])).nonzero()[:, 0]
        if not len(going):
            break
        if len(going) < len(numbers):
            numbers, tokens = numbers[going], tokens[going]
            cache.keep(going)
        cache.step(tokens)
    return [ids[:n] for ids, n in zip(new.tolist(), counts.tolist(), strict=True)]


def _likeliest(logits: Tensor, numbers: Tensor, step: int) -> Tensor:
    return logits.argmax(-1)


def _sampler(limits: Tensor, decoding: Decoding, seeds: Sequence[int]) -> Choose:
    # Every row has a generator of its own; what it draws is independent of the other rows.
    generators = (torch.Generator().manual_seed(seed) for seed in seeds)
    draws = torch.stack([torch.rand(int(limits.max()), generator=g) for g in generators])
    draws = draws.double().to(limits.device)

    def choose(logits: Tensor, numbers: Tensor, step: int) -> Tensor:
        values, order = logits.topk(min(decoding.top_k or logits.shape[1], logits.shape[1]))
        shares = (values.double() / (decoding.temperature or 1.0)).softmax(-1)  # largest first
        if decoding.top_p is not None:
            # The likeliest tokens that together reach top_p: those with less than it before them.
            shares *= shares.cumsum(-1) - shares < decoding.top_p
        sums = shares.cumsum(-1)
        place = (sums <= draws[numbers, step, None] * sums[:, -1:]).sum(-1, keepdim=True)
        return order.gather(1, place)[:, 0]

    return choose
