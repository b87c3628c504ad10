"""Which tokens may not come next: rules of transformers' `generate`, for rows of ragged prompts.

    rules = Decoding(no_repeat_ngram_size=3, min_new_tokens=5)
    bans = Bans(prompts, rules, eos, vocab_size, device)
    logits = bans(cache.logits, numbers, new)

What follows a prompt repeats no run of n tokens, of the prompt or its own (an end token in the
prompt counts as any other); and the end token does not come before a minimum of others.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mingpt_prefix.config import Decoding


class Bans:
    """The rules of `decoding` for these prompts; `eos` outside the vocabulary is never banned."""

    def __init__(
        self,
        prompts: Sequence[list[int]],
        decoding: Decoding,
        eos: int,
        vocab_size: int,
        device: torch.device,
    ):
        self.ngram, self.eos, self.vocab_size = decoding.no_repeat_ngram_size, eos, vocab_size
        self.least = decoding.min_new_tokens if 0 <= eos < vocab_size else 0
        width = max(map(len, prompts))
        # Padded in front by what is no token: padding and then m tokens comes once in a row, at
        # its beginning, and so repeats nothing.
        padded = [[vocab_size] * (width - len(ids)) + ids for ids in prompts]
        self.prompts = torch.tensor(padded, device=device)

    def __call__(self, scores: Tensor, numbers: Tensor, new: Tensor) -> Tensor:
        """Scores (B, V), with -inf for what may not follow prompt number (B,) and `new` (B, N)."""
        if not self.ngram and new.shape[1] >= self.least:
            return scores
        # The last column is of no token: the place for what is not to be banned.
        banned = scores.new_zeros(len(scores), self.vocab_size + 1, dtype=torch.bool)
        if new.shape[1] < self.least:
            banned[:, self.eos] = True
        if self.ngram:
            said = torch.cat([self.prompts[numbers], new], 1)
            banned.scatter_(1, self._repeating(said), True)
        return scores.masked_fill(banned[:, :-1], -math.inf)

    def _repeating(self, said: Tensor) -> Tensor:
        """(B, W): the tokens that would repeat one of W n-grams of `said` (B, S), V for others."""
        if said.shape[1] < self.ngram:
            return said[:, :0]
        ngrams = said.unfold(1, self.ngram, 1)  # (B, W, n)
        begun = said[:, None, said.shape[1] + 1 - self.ngram :]  # (B, 1, n - 1)
        return torch.where((ngrams[..., :-1] == begun).all(-1), ngrams[..., -1], self.vocab_size)
