"""Batches padded to a few fixed shapes, each as one row of numbers: what a CUDA graph reads.

    bucket = Bucket.of(batch, n_seqs=10, max_seq_len=600)
    row = bucket.flatten(batch, lr, weight)          # on the host: one copy brings it to the GPU
    batch, lr, weight = bucket.unflatten(row)        # views of it, wherever it lies

Padding is empty sequences, tokens after the last sequence, and targets that count for nothing: the
loss and the gradients are those of the batch itself.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mingpt_prefix.batch import Layout, PackedBatch
from mingpt_prefix.loss import IGNORE_INDEX

_PER_OCTAVE = 4  # sizes from one power of two to the next: 12 % of padding on average
_TARGETS = 4  # numbers of targets in one of tokens
_LENGTHS = (128, 256)  # of the longest sequence, below the most that a bucket may have


def round_up(n: int) -> int:
    """The next of the few sizes that buckets have."""
    step = max(8, (1 << max(0, n - 1).bit_length()) // (2 * _PER_OCTAVE))
    return max(step, -(-n // step) * step)


def of_few_sizes(batch: PackedBatch) -> PackedBatch:
    """`batch` in one of the few numbers of tokens.

    In 16 bit on a CPU oneDNN plans a product anew for each number of rows it has not met.
    """
    return batch.with_tail(round_up(len(batch.tokens)))


@dataclass(frozen=True)
class Bucket:
    """B sequences of at most max_seq_len tokens, in T tokens, M of which predict a target."""

    n_seqs: int
    n_tokens: int
    n_targets: int
    max_seq_len: int

    @classmethod
    def of(
        cls, batch: PackedBatch, n_seqs: int, max_seq_len: int, least_tokens: int = 0
    ) -> "Bucket":
        """The smallest of at least `least_tokens` that holds `batch`, and batches like it.

        Its longest sequence follows from the batch's: a long example elsewhere changes no kernel's
        block sizes here.
        """
        n_tokens = round_up(max(len(batch.tokens), least_tokens))
        step = n_tokens // _TARGETS
        longest = next((n for n in _LENGTHS if n >= batch.layout.max_seq_len), max_seq_len)
        n_targets = max(1, -(-batch.n_targets // step)) * step
        return cls(n_seqs, n_tokens, n_targets, min(longest, max_seq_len))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of tokens, positions, target_index, target_tokens, cu_seqlens, prefix_ids, prefix_from,
        and of what is left: two float32 in the place of one int64."""
        tokens, targets, seqs = self.n_tokens, self.n_targets, self.n_seqs
        return tokens, tokens, targets, targets, seqs + 1, seqs, seqs, 1

    def flatten(self, batch: PackedBatch, lr: float, weight: float) -> Tensor:
        """`batch`, which the bucket must hold, and two numbers beside it, as int64 (N,).

        Raises ValueError where it does not hold it.
        """
        layout = batch.layout
        parts = (batch.tokens, batch.positions, batch.target_index, batch.target_tokens,
                 layout.cu_seqlens, layout.prefix_ids, layout.prefix_from)  # fmt: skip
        fill = (0, 0, 0, IGNORE_INDEX, int(layout.cu_seqlens[-1]), -1, 0)
        room = [size - len(part) for size, part in zip(self.sizes, parts, strict=False)]
        if min(room) < 0 or layout.max_seq_len > self.max_seq_len:
            raise ValueError(f"batch: {len(batch.tokens)} tokens do not fit {self}")
        padded = [
            F.pad(part.long(), (0, more), value=value)
            for part, more, value in zip(parts, room, fill, strict=True)
        ]
        return torch.cat([*padded, torch.tensor([lr, weight]).view(torch.int64)])

    def unflatten(self, row: Tensor) -> tuple[PackedBatch, Tensor, Tensor]:
        """The batch, `lr` and `weight` (scalars) that `flatten` put into `row`; nothing is read."""
        tokens, positions, index, targets, starts, ids, first, rest = row.split(self.sizes)
        layout = Layout(starts.int(), ids.int(), first.int(), self.max_seq_len)
        lr, weight = rest.view(torch.float32)
        return PackedBatch(tokens, positions, layout, index, targets), lr, weight
