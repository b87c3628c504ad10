"""The model's inputs: packed sequences without padding, and prefix rows.

B sequences are concatenated into T tokens, and N prefixes into R rows. Only this module decides
positions, which tokens predict a target, and the order of a run's batches, which is a function of
(seed, epoch).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from mingpt_prefix.kernels import Layout


@dataclass(frozen=True)
class PrefixKV:
    """Key/value rows of N prefixes for every layer.

    kv (L, 2, R, H, D): keys, then values, of all prefixes, concatenated.
    starts (N+1,) int32: the row offset of each prefix, and the end of the last.
    """

    kv: Tensor
    starts: Tensor

    @classmethod
    def from_tensor(cls, kv: Tensor) -> "PrefixKV":
        """One prefix of P rows from kv (L, 2, P, H, D); keeps the autograd graph.

        Raises:
            ValueError: if kv has another shape.
        """
        if kv.ndim != 5 or kv.shape[1] != 2:
            raise ValueError(f"kv: expected shape (L, 2, P, H, D), got {tuple(kv.shape)}")
        # Created on the device: a copy to a GPU would make the host wait.
        return cls(kv, torch.arange(2, dtype=torch.int32, device=kv.device) * kv.shape[2])

    @classmethod
    def pack(cls, prefixes: Sequence["PrefixKV | Tensor"]) -> "PrefixKV":
        """Concatenate prefixes of any lengths; keeps the autograd graph.

        Raises:
            ValueError: if there are none.
        """
        if not prefixes:
            raise ValueError("prefixes: expected at least one")
        parts = [p if isinstance(p, PrefixKV) else cls.from_tensor(p) for p in prefixes]
        sizes = torch.cat([p.starts.diff() for p in parts])
        return cls(torch.cat([p.kv for p in parts], dim=2), _offsets(sizes))

    def __repr__(self) -> str:
        n_layer, _, rows, n_head, head_dim = self.kv.shape
        many = "" if len(self.starts) == 2 else f"{len(self.starts) - 1} prefixes, "
        return f"PrefixKV({many}{rows} rows, {n_layer} layers, {n_head} heads of {head_dim})"

    @property
    def lengths(self) -> Tensor:
        """Rows of each prefix, (N,) int32."""
        return self.starts.diff()

    def to(self, *args, **kwargs) -> "PrefixKV":
        kv = self.kv.to(*args, **kwargs)
        return PrefixKV(kv, self.starts.to(kv.device))


@dataclass(frozen=True)
class PackedBatch:
    """B sequences in T tokens, with M targets.

    tokens, positions (T,); target_index (M,): the tokens whose outputs predict target_tokens (M,).
    """

    tokens: Tensor
    positions: Tensor
    layout: Layout
    target_index: Tensor
    target_tokens: Tensor

    @property
    def n_targets(self) -> int:
        return len(self.target_tokens)

    def with_tail(self, n_tokens: int) -> "PackedBatch":
        """The same batch padded at its end to `n_tokens` tokens; the padding has no effect.

        Raises ValueError if the batch has more tokens.
        """
        if (more := n_tokens - len(self.tokens)) < 0:
            raise ValueError(f"n_tokens: {n_tokens} for {len(self.tokens)} tokens")
        tokens, positions = (F.pad(each, (0, more)) for each in (self.tokens, self.positions))
        return replace(self, tokens=tokens, positions=positions)

    def to(self, device) -> "PackedBatch":
        tokens, positions, index, targets = (
            t.to(device, non_blocking=True)
            for t in (self.tokens, self.positions, self.target_index, self.target_tokens)
        )
        return PackedBatch(tokens, positions, self.layout.to(device), index, targets)


@dataclass(frozen=True)
class Encoded:
    """One example as tokens: in `ids` (T_b,) int, the first `prompt_length` are the prompt, and the
    rest are targets.

    `offset` is added to the positions; `where` names the source in error messages. Raises
    ValueError for an empty prompt: nothing would predict the first target.
    """

    ids: Tensor
    prompt_length: int
    offset: int = 0
    where: str = ""

    def __post_init__(self):
        if not 1 <= self.prompt_length <= len(self.ids):
            raise ValueError(f"prompt_length: {self.prompt_length} of {len(self.ids)} tokens")

    @property
    def n_targets(self) -> int:
        return len(self.ids) - self.prompt_length


def _offsets(sizes: Tensor) -> Tensor:
    return torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]).to(torch.int32)


def make_layout(
    lengths: Sequence[int],
    prefix_ids: Tensor | Sequence[int] | None = None,
    prefix_from: Tensor | Sequence[int] | None = None,
) -> Layout:
    """The layout of sequences with these lengths.

    `prefix_ids` None means no prefix; `prefix_from` None, the start of each sequence. Raises
    ValueError unless each has one value per sequence.
    """

    def each(name, values, default):
        if values is None:
            return torch.full((len(lengths),), default, dtype=torch.int32)
        values = torch.as_tensor(values, dtype=torch.int32)
        if values.shape != (len(lengths),):
            raise ValueError(f"{name}: shape {tuple(values.shape)} for {len(lengths)} sequences")
        return values

    starts = _offsets(torch.tensor(lengths, dtype=torch.int64))
    ids, first = each("prefix_ids", prefix_ids, -1), each("prefix_from", prefix_from, 0)
    return Layout(starts, ids, first, max(lengths, default=0))


def make_positions(layout: Layout, prefix_lengths: Tensor | None = None) -> Tensor:
    """Positions (T,) int64: a sequence's token i has position i, plus the rows of its prefix.

    `prefix_lengths` (N,): the rows of each prefix, if they take up positions, as in the paper's
    code and in PEFT; None if they do not (an infix, a called prefix, no prefix).
    """
    lengths = layout.cu_seqlens.diff()
    shift = torch.zeros_like(lengths)
    if prefix_lengths is not None:
        own = prefix_lengths[layout.prefix_ids.clamp(min=0).long()]
        shift = torch.where(layout.prefix_ids >= 0, own, 0)
    index = torch.arange(int(layout.cu_seqlens[-1]), device=lengths.device)
    return index + (shift - layout.cu_seqlens[:-1]).repeat_interleave(lengths.long())


def pack(
    examples: Sequence[Encoded],
    prefix_length: int | None = None,
    placement: str = "prefix",
    prefix_ids: Sequence[int] | None = None,
) -> PackedBatch:
    """Concatenate examples that see prefixes of `prefix_length` rows each, or none.

    `prefix_ids` None means prefix 0 for all. An infix is seen from the prompt's last token on, and
    takes up no positions, so its length may be omitted if `prefix_ids` are given.

    Raises:
        ValueError: if there are no examples.
    """
    if not examples:
        raise ValueError("examples: expected at least one")
    lengths = [len(e.ids) for e in examples]
    ids = prefix_ids
    if ids is None and prefix_length is not None:
        ids = [0] * len(examples)
    first = [e.prompt_length - 1 for e in examples] if placement == "infix" else None
    layout = make_layout(lengths, ids, first)
    in_front = prefix_length is not None and placement == "prefix"
    rows = torch.full((max(ids) + 1,), prefix_length) if in_front else None
    positions = make_positions(layout, rows)
    if any(e.offset for e in examples):
        positions += torch.tensor([e.offset for e in examples]).repeat_interleave(
            torch.tensor(lengths)
        )
    tokens = torch.cat([e.ids for e in examples]).long()
    starts = layout.cu_seqlens[:-1].tolist()
    each = zip(starts, examples, strict=True)
    index = torch.cat([torch.arange(s + e.prompt_length - 1, s + len(e.ids) - 1) for s, e in each])
    return PackedBatch(tokens, positions, layout, index, tokens[index + 1])


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """The order of `n` examples in an epoch: a permutation (n,) given by (n, seed, epoch)."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(n, generator=generator)


def batches(n: int, batch_size: int, seed: int, first_step: int = 0) -> Iterator[list[int]]:
    """Batches of indices below `n`, epoch after epoch without end, from `first_step` on.

    The last batch of an epoch may be short.
    """
    per_epoch = -(-n // batch_size)
    step = first_step
    while True:
        epoch, within = divmod(step, per_epoch)
        order = epoch_order(n, seed, epoch).tolist()
        for start in range(within * batch_size, n, batch_size):
            yield order[start : start + batch_size]
            step += 1
