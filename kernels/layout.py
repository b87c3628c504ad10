"""The layout of a packed batch."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Where B packed sequences lie, which prefix each sees, and from which token on.

    cu_seqlens (B+1,): the token offset of each sequence, and the end of the last.
    prefix_ids (B,): the prefix each sequence sees, -1 for none.
    prefix_from (B,): the first of the sequence's tokens whose query sees the prefix.
    max_seq_len: at least the longest sequence's length.
    """

    cu_seqlens: Tensor
    prefix_ids: Tensor
    prefix_from: Tensor
    max_seq_len: int

    def to(self, device) -> "Layout":
        tensors = (t.to(device) for t in (self.cu_seqlens, self.prefix_ids, self.prefix_from))
        return Layout(*tensors, self.max_seq_len)
