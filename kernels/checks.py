"""Argument checks of the attention functions; a ValueError names the wrong argument.

Shapes, dtypes and devices are always checked. Values are checked only on the CPU, where reading
them costs no synchronisation, and not while `torch.compile` traces.
"""

import torch
from torch import Tensor

from mingpt_prefix.kernels.layout import Layout


def _fail(name: str, what: str) -> None:
    raise ValueError(f"{name}: {what}")


def _check_rows(name: str, tensor: Tensor, shape: tuple[int | str, ...]) -> None:
    """Check the shape, in which a str matches any size, and that D is contiguous."""
    fits = tensor.ndim == len(shape) and all(
        isinstance(wanted, str) or wanted == size
        for wanted, size in zip(shape, tensor.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join(map(str, shape))
        _fail(name, f"expected shape ({wanted}), got {tuple(tensor.shape)}")
    if not tensor.is_floating_point():
        _fail(name, f"expected a floating-point dtype, got {tensor.dtype}")
    if tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
        _fail(name, "the numbers of a head must lie side by side (last stride 1)")


def _check_ints(name: str, tensor: Tensor, shape: tuple[int, ...], device: torch.device) -> None:
    if tensor.shape != shape:
        _fail(name, f"expected shape {tuple(shape)}, got {tuple(tensor.shape)}")
    if tensor.dtype not in (torch.int32, torch.int64):
        _fail(name, f"expected int32 or int64, got {tensor.dtype}")
    if tensor.device != device:
        _fail(name, f"is on {tensor.device}, other arguments on {device}")
    if not tensor.is_contiguous():
        _fail(name, "must be contiguous")


def _are_readable(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def _check_starts(name: str, starts: Tensor) -> None:
    if starts.ndim != 1 or not len(starts):
        _fail(name, f"expected one dimension of at least 1, got shape {tuple(starts.shape)}")
    _check_ints(name, starts, starts.shape, starts.device)
    if _are_readable(starts) and (int(starts[0]) < 0 or bool((starts.diff() < 0).any())):
        _fail(name, "must begin at 0 or above and never fall")


def _check_prefixes(prefix_starts: Tensor, prefix_ids: Tensor, n_seqs: int, device) -> None:
    _check_starts("prefix_starts", prefix_starts)
    _check_ints("prefix_starts", prefix_starts, prefix_starts.shape, device)
    _check_ints("prefix_ids", prefix_ids, (n_seqs,), device)
    n_prefixes = len(prefix_starts) - 1
    if _are_readable(prefix_ids) and n_seqs:
        if int(prefix_ids.min()) < -1 or int(prefix_ids.max()) >= n_prefixes:
            _fail("prefix_ids", f"must lie in [-1, {n_prefixes})")


def _check_prefix_kv(qkv: Tensor, prefix_kv: Tensor, prefix_starts: Tensor) -> None:
    _check_rows("prefix_kv", prefix_kv, (2, "R", *qkv.shape[2:]))
    if prefix_kv.device != qkv.device:
        _fail("prefix_kv", f"is on {prefix_kv.device}, qkv on {qkv.device}")
    if _are_readable(prefix_starts) and int(prefix_starts[-1]) > prefix_kv.shape[1]:
        _fail("prefix_starts", f"ends at {int(prefix_starts[-1])} of {prefix_kv.shape[1]} rows")


def check_layout(n_tokens: int, layout: Layout, prefix_starts: Tensor) -> None:
    """Check what all layers share; arguments as `kernels.bind`."""
    cu_seqlens, max_seq_len = layout.cu_seqlens, layout.max_seq_len
    _check_starts("cu_seqlens", cu_seqlens)
    n_seqs, device = len(cu_seqlens) - 1, cu_seqlens.device
    _check_prefixes(prefix_starts, layout.prefix_ids, n_seqs, device)
    _check_ints("prefix_from", layout.prefix_from, (n_seqs,), device)
    if max_seq_len < 0:
        _fail("max_seq_len", f"must not be negative, got {max_seq_len}")
    if _are_readable(cu_seqlens):
        if int(cu_seqlens[0]) != 0:
            _fail("cu_seqlens", f"begins at {int(cu_seqlens[0])}, and tokens before would be lost")
        if int(cu_seqlens[-1]) > n_tokens:
            _fail("cu_seqlens", f"ends at {int(cu_seqlens[-1])} of {n_tokens} tokens")
        longest = int(cu_seqlens.diff().max()) if n_seqs else 0
        if longest > max_seq_len:
            _fail("max_seq_len", f"is {max_seq_len}, and a sequence has {longest} tokens")


def check_kv(
    qkv: Tensor, prefix_kv: Tensor, n_tokens: int, layout: Layout, prefix_starts: Tensor
) -> None:
    """One layer's tensors, beside a layout that was checked."""
    _check_rows("qkv", qkv, (n_tokens, 3, "H", "D"))
    if qkv.device != (device := layout.cu_seqlens.device):
        _fail("cu_seqlens", f"is on {device}, qkv on {qkv.device}")
    _check_prefix_kv(qkv, prefix_kv, prefix_starts)


def check_decode_layout(
    n_seqs: int,
    block_table: Tensor,
    lengths: Tensor,
    prefix_starts: Tensor,
    prefix_ids: Tensor,
) -> None:
    """Check what all layers share; arguments as `decode_attention`, n_seqs = B."""
    if block_table.ndim != 2:
        _fail("block_table", f"expected shape (B, K), got {tuple(block_table.shape)}")
    device = block_table.device
    _check_ints("block_table", block_table, (n_seqs, block_table.shape[1]), device)
    _check_ints("lengths", lengths, (n_seqs,), device)
    _check_prefixes(prefix_starts, prefix_ids, n_seqs, device)
    if _are_readable(lengths) and n_seqs:
        if int(lengths.min()) < 0 or int(lengths.max()) >= block_table.shape[1]:
            _fail("lengths", f"must lie in [0, {block_table.shape[1]}), the block table's width")


def check_decode_kv(
    qkv: Tensor, cache: Tensor, prefix_kv: Tensor, block_table: Tensor, prefix_starts: Tensor
) -> None:
    """One layer's tensors, beside a layout that was checked."""
    _check_rows("qkv", qkv, (len(block_table), 3, "H", "D"))
    _check_rows("cache", cache, (2, "S", *qkv.shape[2:]))
    if cache.dtype != qkv.dtype or cache.device != qkv.device:
        _fail("cache", f"is {cache.dtype} on {cache.device}, qkv {qkv.dtype} on {qkv.device}")
    if block_table.device != qkv.device:
        _fail("block_table", f"is on {block_table.device}, other arguments on {qkv.device}")
    _check_prefix_kv(qkv, prefix_kv, prefix_starts)
