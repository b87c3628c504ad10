"""Attention over packed sequences with prefix rows; imported as ``mingpt_prefix.kernels``.

`prefix_attention` and `decode_attention` compute one layer. A model with many layers calls `bind`
or `bind_decode` once per batch, for the work that depends only on the layout, and then calls the
result for each layer.

Two backends compute the same function: "triton", and "reference" in plain PyTorch. Triton is
imported only when it is chosen, because it exists for Linux only.
"""

import importlib.util
import os
from collections.abc import Callable

import torch
from torch import Tensor

from mingpt_prefix.kernels.checks import (
    check_decode_kv,
    check_decode_layout,
    check_kv,
    check_layout,
)
from mingpt_prefix.kernels.layout import Layout
from mingpt_prefix.kernels.reference import GatherPlan, PaddedPlan

BACKENDS = ("triton", "reference")
TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_HEAD_DIM = 256  # a block of larger heads does not fit in shared memory

Attention = Callable[[Tensor, Tensor], Tensor]
DecodeAttention = Callable[[Tensor, Tensor, Tensor], Tensor]


def why_not_triton(device: torch.device | str, dtype: torch.dtype) -> str | None:
    """Why the backend "triton" cannot compute on this device in this dtype; None if it can."""
    if dtype not in TRITON_DTYPES:
        return f"there are no kernels for {dtype}"
    if torch.compiler.is_compiling():
        return None  # torch.compile cannot trace the rest
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (it exists for Linux only)"
    if torch.device(device).type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return "it needs a GPU (or TRITON_INTERPRET=1, to interpret the kernels slowly)"
    return None


def choose_backend(device: torch.device | str, dtype: torch.dtype) -> str:
    """The backend for "auto": "triton" on a GPU if it can compute there, else "reference"."""
    on_gpu = torch.device(device).type == "cuda"
    return "triton" if on_gpu and why_not_triton(device, dtype) is None else "reference"


def _resolve(backend: str, qkv: Tensor) -> str:
    return choose_backend(qkv.device, qkv.dtype) if backend == "auto" else backend


def _check_backend(backend: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"backend: {backend!r} is not one of {', '.join(BACKENDS)}")


def _require_triton(qkv: Tensor) -> None:
    """Raise ValueError if the backend "triton" cannot compute with `qkv`."""
    if (why := why_not_triton(qkv.device, qkv.dtype)) is not None:
        raise ValueError(f"qkv: is {qkv.dtype} on {qkv.device}; for the backend triton {why}")
    if qkv.shape[-1] > MAX_HEAD_DIM:
        raise ValueError(
            f"qkv: D is {qkv.shape[-1]}; the backend triton has {MAX_HEAD_DIM} at most"
        )


def bind(backend: str, n_tokens: int, layout: Layout, prefix_starts: Tensor) -> Attention:
    """The attention of one batch: a function of a layer's qkv (T, 3, H, D), prefix_kv (2, R, H, D).

    `n_tokens` is T; `prefix_starts` (N+1,) the row offsets of the N prefixes. Raises ValueError as
    `prefix_attention` does, some of it when the function is called.
    """
    _check_backend(backend)
    check_layout(n_tokens, layout, prefix_starts)
    if backend == "reference":
        plan = PaddedPlan(n_tokens, layout, prefix_starts)

    def attend(qkv: Tensor, prefix_kv: Tensor) -> Tensor:
        check_kv(qkv, prefix_kv, n_tokens, layout, prefix_starts)
        if backend == "reference":
            return plan(qkv, prefix_kv)
        _require_triton(qkv)
        from mingpt_prefix.kernels.attention import attention

        return attention(qkv, prefix_kv, layout, prefix_starts)

    return attend


def prefix_attention(
    qkv: Tensor,
    prefix_kv: Tensor,
    cu_seqlens: Tensor,
    prefix_starts: Tensor,
    prefix_ids: Tensor,
    prefix_from: Tensor,
    max_seq_len: int,
    backend: str = "auto",
) -> Tensor:
    """Causal attention of B packed sequences, each with at most one prefix in front; one layer.

    Arguments and result as `reference.prefix_attention`; `backend` is one of BACKENDS, or "auto":
    triton on a GPU, else reference.

    Raises:
        ValueError: naming the argument whose shape, dtype or device is wrong. Values are checked
            only on the CPU, where reading them is free: offsets must not fall or pass what they
            count, ids must name a prefix, and no sequence may be longer than max_seq_len.
    """
    layout = Layout(cu_seqlens, prefix_ids, prefix_from, max_seq_len)
    return bind(_resolve(backend, qkv), len(qkv), layout, prefix_starts)(qkv, prefix_kv)


def bind_decode(
    backend: str,
    n_seqs: int,
    block_table: Tensor,
    lengths: Tensor,
    prefix_starts: Tensor,
    prefix_ids: Tensor,
) -> DecodeAttention:
    """One token's attention: a function of a layer's qkv (B, 3, H, D), cache and prefix_kv.

    The other arguments are those of `decode_attention`; `n_seqs` is B. Raises ValueError as it
    does, some of it when the function is called.
    """
    layout = (block_table, lengths, prefix_starts, prefix_ids)
    _check_backend(backend)
    check_decode_layout(n_seqs, *layout)
    if backend == "reference":
        plan = GatherPlan(*layout)

    def attend(qkv: Tensor, cache: Tensor, prefix_kv: Tensor) -> Tensor:
        check_decode_kv(qkv, cache, prefix_kv, block_table, prefix_starts)
        if backend == "reference":
            return plan(qkv, cache, prefix_kv)
        _require_triton(qkv)
        from mingpt_prefix.kernels.decode import decode

        return decode(qkv, cache, block_table, lengths, prefix_kv, prefix_starts, prefix_ids)

    return attend


def decode_attention(
    qkv: Tensor,
    cache: Tensor,
    block_table: Tensor,
    lengths: Tensor,
    prefix_kv: Tensor,
    prefix_starts: Tensor,
    prefix_ids: Tensor,
    backend: str = "auto",
) -> Tensor:
    """Attention of one new token per sequence to its cached tokens and its prefix; one layer.

    Arguments and result as `reference.decode_attention`; `backend` as in `prefix_attention`. Not
    differentiable. Raises ValueError as `prefix_attention` does.
    """
    layout = (block_table, lengths, prefix_starts, prefix_ids)
    return bind_decode(_resolve(backend, qkv), len(qkv), *layout)(qkv, cache, prefix_kv)


__all__ = [
    "BACKENDS",
    "Attention",
    "DecodeAttention",
    "Layout",
    "bind",
    "bind_decode",
    "choose_backend",
    "decode_attention",
    "prefix_attention",
    "why_not_triton",
]
