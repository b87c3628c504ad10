"""Attention over packed sequences with prefix rows; imported as ``mingpt_prefix.kernels``.

`prefix_attention` is one call for one layer. A model that calls it for many layers of the same
batch prepares what depends on the batch's shape alone once, by `bind`, and calls the result for
each layer.
"""

from collections.abc import Callable

from torch import Tensor

from mingpt_prefix.kernels.reference import PaddedPlan, decode_attention, prefix_attention

BACKENDS = ("reference",)

Attention = Callable[[Tensor, Tensor], Tensor]


def bind(
    backend: str,
    n_tokens: int,
    seq_starts: Tensor,
    prefix_starts: Tensor,
    prefix_ids: Tensor,
    prefix_from: Tensor,
    max_seq_len: int,
) -> Attention:
    """The attention of one batch: a function of a layer's qkv (T, 3, H, D), prefix_kv (2, R, H, D).

    The other arguments are those of `prefix_attention`; `n_tokens` is T. Raises ValueError for an
    unknown backend.
    """
    if backend != "reference":
        raise ValueError(f"backend: {backend!r} is not one of {', '.join(BACKENDS)}")
    return PaddedPlan(n_tokens, seq_starts, prefix_starts, prefix_ids, prefix_from, max_seq_len)


__all__ = ["BACKENDS", "Attention", "bind", "decode_attention", "prefix_attention"]
