"""Beam search over a batch of prompts, as transformers' `generate` defines it.

A sequence's score is the sum of its tokens' log-probabilities. A finished one's is divided by its
number of new tokens, including the end token, to the power of the length penalty. A prompt is done
when its best running sequence, divided likewise, scores below the worst of its n finished ones
(transformers' early_stopping=False).
"""

import math

import torch
from torch import Tensor

from mingpt_prefix.config import Decoding
from mingpt_prefix.generation.kv_cache import KVCache
from mingpt_prefix.generation.sampling import LogitsProcessor, Scored, Watch

# Lower than any sequence's score, and the number transformers uses, so that sums round alike.
_NEVER = -1e9


class Beams:
    """The n running and the n best finished sequences of R prompts, up to N new tokens each.

    running, done (R, n, N): their tokens; scores (R, n): of the running ones; done_scores (R, n):
    of the finished ones, best first; done_lengths (R, n): 0 if fewer than n are finished. `limits`
    (R,): each prompt's maximum of new tokens.
    """

    def __init__(self, beams: int, limits: Tensor, eos: int, length_penalty: float):
        self.limits, self.eos, self.length_penalty = limits, eos, length_penalty
        self.running = limits.new_zeros(len(limits), beams, int(limits.max()))
        self.scores = torch.full((len(limits), beams), _NEVER, device=limits.device)
        self.done = self.running.clone()
        # A negative penalty multiplies scores, which may then be below any finite number.
        self.never = _NEVER if length_penalty >= 0 else -math.inf
        self.done_scores = torch.full_like(self.scores, self.never)
        self.done_lengths = limits.new_zeros(len(limits), beams)
        self.scores[:, 0] = 0.0  # all beams start alike: only the first is extended

    def advance(self, log_probs: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Append token number `step` (from 0) to every running sequence.

        `log_probs` (R * n, V): of the tokens that may follow. Returns the parent of each new
        running sequence (R, n), and which prompts (R,) are not done.
        """
        (n_prompts, beams), vocab_size = self.scores.shape, log_probs.shape[1]
        totals = log_probs.view(n_prompts, beams, vocab_size) + self.scores[:, :, None]
        # At most one end token follows each beam, so that n of the 2n best can go on.
        totals, best = totals.flatten(1).topk(2 * beams)  # (R, 2n)
        parents, tokens = best // vocab_size, best % vocab_size
        sequences = _select(self.running, parents)
        sequences[:, :, step] = tokens
        ends = (tokens == self.eos) | (step + 1 >= self.limits[:, None])
        self._finish(sequences[:, :beams], totals[:, :beams], ends[:, :beams], step + 1)
        totals = totals + ends * _NEVER
        going = totals.topk(beams)[1]
        self.scores, self.running = totals.gather(1, going), _select(sequences, going)
        reach = self.scores[:, :1] / (step + 1) ** self.length_penalty
        worst = torch.where(self.done_lengths > 0, self.done_scores[:, -1:], self.never)
        improves = (reach > worst).any(1)
        return parents.gather(1, going), improves & (step + 1 < self.limits)

    def _finish(self, sequences: Tensor, totals: Tensor, ends: Tensor, length: int) -> None:
        """Add those of the sequences (R, n, N) that end to the finished ones."""
        ends = ends & (totals > -math.inf)  # what is banned ends nothing
        scores = (totals / length**self.length_penalty).masked_fill(~ends, self.never)
        self.done_scores, best = torch.cat([self.done_scores, scores], 1).topk(len(ends[0]))
        self.done = _select(torch.cat([self.done, sequences], 1), best)
        self.done_lengths = torch.cat([self.done_lengths, ends * length], 1).gather(1, best)

    def best(self, prompts: Tensor, wanted: int) -> list[list[Scored]]:
        """The best finished sequences of the current prompts with these indices."""
        names = ("done", "done_lengths", "done_scores")
        found = (getattr(self, name)[prompts, :wanted].flatten(0, 1).tolist() for name in names)
        sequences = []
        for ids, length, score in zip(*found, strict=True):
            ids = ids[:length]
            sequences.append(Scored(ids[: ids.index(self.eos)] if self.eos in ids else ids, score))
        return [sequences[i : i + wanted] for i in range(0, len(sequences), wanted)]

    def keep(self, prompts: Tensor) -> None:
        """Keep only the current prompts with these indices."""
        for name in ("limits", "running", "scores", "done", "done_scores", "done_lengths"):
            setattr(self, name, getattr(self, name)[prompts])


def _select(sequences: Tensor, index: Tensor) -> Tensor:
    """The sequences (R, m, N) at index (R, k), as (R, k, N)."""
    return sequences.take_along_dim(index[:, :, None], 1)


def search_beams(
    cache: KVCache,
    limits: Tensor,
    eos: int,
    decoding: Decoding,
    rules: LogitsProcessor,
    watch: Watch | None = None,
) -> list[list[Scored]]:
    """The best sequences of each prompt in the cache, best first, without their end tokens.

    The other tokens' probabilities are not renormalised after `rules` bans some.
    """
    beams, wanted = decoding.beams, decoding.num_return_sequences
    numbers = torch.arange(len(limits), device=limits.device)  # of the prompts that are not done
    results: list[list[Scored]] = [[] for _ in limits]
    cache.keep(numbers.repeat_interleave(beams))
    state = Beams(beams, limits, eos, decoding.length_penalty)
    for step in range(int(limits.max())):
        if watch is not None:
            watch([], [], [])
        so_far = state.running[:, :, :step].flatten(0, 1)
        log_probs = rules(cache.logits.log_softmax(-1), numbers.repeat_interleave(beams), so_far)
        parents, going = state.advance(log_probs, step)
        over, going = (~going).nonzero()[:, 0], going.nonzero()[:, 0]
        for number, sequences in zip(numbers[over].tolist(), state.best(over, wanted), strict=True):
            results[number] = sequences
        if not len(going):
            break
        cache.keep((going[:, None] * beams + parents[going]).flatten())
        numbers = numbers[going]
        state.keep(going)
        cache.step(state.running[:, :, step].flatten())
    return results
