"""Where the sequences of a packed batch lie, and what each sees."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """B packed sequences, which prefix each sees, and from which of its tokens on.

    cu_seqlens (B+1,): the token offset of each sequence, and the end of the last.
    prefix_ids (B,): the prefix each sees, -1 for none.
    prefix_from (B,): the first of its tokens whose query sees the prefix.
    max_seq_len: the length of the longest sequence, or more.
    """

    cu_seqlens: Tensor
    prefix_ids: Tensor
    prefix_from: Tensor
    max_seq_len: int

    def to(self, device) -> "Layout":
        tensors = (t.to(device) for t in (self.cu_seqlens, self.prefix_ids, self.prefix_from))
        return Layout(*tensors, self.max_seq_len)
