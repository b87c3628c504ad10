"""Ways to compute attention with prefix rows, on equal inputs: what bench/attention.py compares.

Each takes a shape's packed inputs, brings them into the form it needs (which is not timed), and
returns a `Call`: what is timed, and how its results return to the packed form.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache

import torch
from measure.timing import captured, time_replays
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention as sdpa

from mingpt_prefix import kernels

Results = tuple[Tensor, Tensor, Tensor]  # out (T, H, D), d_qkv (T, 3, H, D), d_prefix (2, P, H, D)
NAMES = ("out", "d_qkv", "d_prefix")


@dataclass(frozen=True)
class Shape:
    """Sequences of these lengths, all with one prefix of `prefix` rows."""

    name: str
    lengths: tuple[int, ...]
    prefix: int
    heads: int
    dim: int = 64

    @property
    def width(self) -> int:
        return max(self.lengths)

    @property
    def is_ragged(self) -> bool:
        return min(self.lengths) < self.width

    def first(self, count: int) -> "Shape":
        """The same with at most `count` sequences."""
        return Shape(self.name, self.lengths[:count], self.prefix, self.heads, self.dim)

    def flops(self) -> float:
        """Of the forward pass: two products, each over the square's causal half and the prefix."""
        pairs = sum(n * (n + 1) / 2 + n * self.prefix for n in self.lengths)
        return 4 * pairs * self.heads * self.dim

    def real(self, device: torch.device) -> Tensor:
        """Which cells of a (B, S) grid hold a token."""
        lengths = torch.tensor(self.lengths, device=device)
        return torch.arange(self.width, device=device) < lengths[:, None]


@dataclass(frozen=True)
class Call:
    """`forward()` from `leaves`, whose gradients follow from `d_out`; `collect(out, gradients)`."""

    leaves: tuple[Tensor, ...]
    forward: Callable[[], Tensor]
    d_out: Tensor
    collect: Callable[[Tensor, Sequence[Tensor]], Results]
    copied: int = 0  # numbers copied on the way, each read once and written once

    def backward(self, out: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(out, self.leaves, self.d_out, retain_graph=True)

    def both(self) -> None:
        torch.autograd.grad(self.forward(), self.leaves, self.d_out)

    def passes(self, out: Callable[[], Tensor]) -> dict[str, Callable[[], object]]:
        """What is timed, by name; backward alone starts from the output that `out()` gives."""
        return {
            "forward": self.forward,
            "backward": lambda: self.backward(out()),
            "both": self.both,
        }

    def results(self) -> Results:
        out = self.forward()
        return self.collect(out.detach(), self.backward(out))


def inputs(shape: Shape, device: torch.device, dtype: torch.dtype) -> Results:
    """qkv (T, 3, H, D), prefix_kv (2, P, H, D) and the output's gradient (T, H, D)."""
    generator, total = torch.Generator(device).manual_seed(0), sum(shape.lengths)
    sizes = ((total, 3), (2, shape.prefix), (total,))
    like = dict(generator=generator, device=device)
    drawn = (torch.randn(*size, shape.heads, shape.dim, **like) for size in sizes)
    return tuple(tensor.to(dtype) for tensor in drawn)


def packed(shape: Shape, backend: str, qkv: Tensor, kv: Tensor, d_out: Tensor) -> Call:
    """This project's: nothing is copied."""
    device, count = qkv.device, len(shape.lengths)
    starts = torch.tensor([0, *shape.lengths], device=device).cumsum(0).int()
    rows = torch.tensor([0, shape.prefix], dtype=torch.int32, device=device)
    zeros = torch.zeros(count, dtype=torch.int32, device=device)
    leaves = (qkv.clone().requires_grad_(), kv.clone().requires_grad_())
    layout = kernels.Layout(starts, zeros, zeros, shape.width)
    attend = kernels.bind(backend, len(qkv), layout, rows)
    return Call(leaves, lambda: attend(*leaves), d_out, lambda out, grads: (out, *grads))


def _grid(shape: Shape, tensor: Tensor) -> Tensor:
    """Packed rows (T, ...) in a padded grid (B, S, ...)."""
    grid = tensor.new_zeros(len(shape.lengths), shape.width, *tensor.shape[1:])
    grid[shape.real(tensor.device)] = tensor
    return grid


def _with_prefix(grid: Tensor, kv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q (B, H, S, D), and keys and values (B, H, P + S, D) behind each row's copy of the prefix."""
    q, k, v = grid.permute(2, 0, 3, 1, 4)
    front = kv.transpose(1, 2)[:, None].expand(2, len(q), -1, -1, -1)  # (2, B, H, P, D)
    return q, torch.cat([front[0], k], dim=2), torch.cat([front[1], v], dim=2)


def _from_grid(shape: Shape, qkv: Tensor, kv: Tensor, d_out: Tensor, attend) -> Call:
    """A call of `attend(q, k, v)` on padded rows, the prefix set in front of keys and values."""
    real = shape.real(qkv.device)
    leaves = (_grid(shape, qkv).requires_grad_(), kv.clone().requires_grad_())

    def forward() -> Tensor:
        return attend(*_with_prefix(*leaves)).transpose(1, 2).contiguous()  # (B, S, H, D)

    def collect(out: Tensor, gradients: Sequence[Tensor]) -> Results:
        return out[real], gradients[0][real], gradients[1]

    copied = 2 * len(shape.lengths) * (shape.width + shape.prefix) * shape.heads * shape.dim
    return Call(leaves, forward, _grid(shape, d_out), collect, copied)


def cat_sdpa(shape: Shape, qkv: Tensor, kv: Tensor, d_out: Tensor) -> Call:
    """Concatenation and SDPA on padded rows with a mask, as PEFT and transformers do it."""
    real, column = shape.real(qkv.device), torch.arange(shape.width, device=qkv.device)
    mask = ((column <= column[:, None]) & real[:, None]) | (column == column[:, None])
    mask = torch.nn.functional.pad(mask, (shape.prefix, 0), value=True)[:, None]  # (B, 1, S, P + S)
    how = dict(attn_mask=mask) if shape.prefix or shape.is_ragged else dict(is_causal=True)
    return _from_grid(shape, qkv, kv, d_out, lambda q, k, v: sdpa(q, k, v, **how))


def flash(shape: Shape, qkv: Tensor, kv: Tensor, d_out: Tensor) -> Call:
    """Only the kernel, on tensors concatenated beforehand: what no caller gets for free."""
    on_gpu, real = qkv.device.type == "cuda", shape.real(qkv.device)
    drawn = _with_prefix(_grid(shape, qkv), kv)
    leaves = tuple(tensor.detach().contiguous().requires_grad_() for tensor in drawn)
    bias = causal_lower_right(shape.width, shape.prefix + shape.width)

    def forward() -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION) if on_gpu else nullcontext():
            return sdpa(*leaves, attn_mask=bias)

    def collect(out: Tensor, gradients: Sequence[Tensor]) -> Results:
        q, k, v = (gradient.transpose(1, 2) for gradient in gradients)
        front = torch.stack([k[:, : shape.prefix].sum(0), v[:, : shape.prefix].sum(0)])
        own = torch.stack([q, k[:, shape.prefix :], v[:, shape.prefix :]], dim=2)
        return out.transpose(1, 2)[real], own[real], front

    return Call(leaves, forward, _grid(shape, d_out).transpose(1, 2).contiguous(), collect)


@cache
def _compiled() -> Callable:
    # One forward is followed by many timed backward passes, which must not use up what it left.
    torch._functorch.config.donated_buffer = False
    return torch.compile(flex_attention, dynamic=False)


def flex(shape: Shape, qkv: Tensor, kv: Tensor, d_out: Tensor) -> Call:
    """FlexAttention with a prefix mask, compiled on a GPU; the block mask is made beforehand."""

    def seen(batch, head, query, key):
        return key - shape.prefix <= query

    sizes = (shape.width, shape.prefix + shape.width)
    mask = create_block_mask(seen, None, None, *sizes, device=qkv.device.type)
    attend = _compiled() if qkv.device.type == "cuda" else flex_attention
    return _from_grid(
        shape, qkv, kv, d_out, lambda q, k, v: attend(q.contiguous(), k, v, block_mask=mask)
    )


def exact(shape: Shape, drawn: Results) -> Results:
    """The results of the reference in float64."""
    return packed(shape, "reference", *(tensor.double() for tensor in drawn)).results()


def check(name: str, found: Results, low: Results, wanted: Results) -> None:
    """Check that errors are at most twice those of the reference in the same dtype, plus a little.

    Raises AssertionError if they are larger: then no time would mean anything.
    """
    little = 1e-5 if found[0].dtype == torch.float32 else 1e-3
    for part, own, same, true in zip(NAMES, found, low, wanted, strict=True):
        if true.numel():
            error = float((own.double() - true).abs().max())
            allowed = 2 * float((same.double() - true).abs().max()) + little
            assert error <= allowed, f"{name}: {part}: error {error:.2e}, allowed {allowed:.2e}"


def time_passes(call: Call, samples: int, passes: Iterable[str]) -> dict[str, tuple[float, ...]]:
    """The seconds that each of these passes takes, by replays of a graph."""
    held: list[Tensor] = []
    # Captured too: autograd runs a backward pass on the stream of its forward pass.
    forward_graph = captured(lambda: held.append(call.forward()))
    forward_graph()
    runs = call.passes(lambda: held[-1])
    return {name: time_replays(runs[name], samples) for name in passes}


PEERS = {"cat + SDPA": cat_sdpa, "FlexAttention": flex, "flash, concatenated": flash}


def decode_inputs(n_seqs: int, context: int, prefix: int, heads: int, device, dtype) -> dict:
    """Arguments of `kernels.decode_attention`; each sequence has `context` cached tokens."""
    generator = torch.Generator(device).manual_seed(0)
    like = dict(generator=generator, device=device)
    width, ints = context + 1, dict(dtype=torch.int32, device=device)
    return dict(
        qkv=torch.randn(n_seqs, 3, heads, 64, **like).to(dtype),
        cache=torch.randn(2, n_seqs * width, heads, 64, **like).to(dtype),
        block_table=torch.arange(n_seqs * width, **ints).view(n_seqs, width),
        lengths=torch.full((n_seqs,), context, **ints),
        prefix_kv=torch.randn(2, prefix, heads, 64, **like).to(dtype),
        prefix_starts=torch.tensor([0, prefix], **ints),
        prefix_ids=torch.zeros(n_seqs, **ints),
    )


def decode_by_cat(arguments: dict) -> Callable[[], Tensor]:
    """The same on a static cache (B, H, S, D): an indexed write, a concatenation, and SDPA."""
    qkv, kv = arguments["qkv"], arguments["prefix_kv"]
    n_seqs, _, heads, dim = qkv.shape
    cache = arguments["cache"].view(2, n_seqs, -1, heads, dim).transpose(2, 3).contiguous()
    own = arguments["lengths"][:1].long()

    def forward() -> Tensor:
        q, k, v = (part[:, :, None] for part in qkv.unbind(1))  # each (B, H, 1, D)
        cache[0].index_copy_(2, own, k)
        cache[1].index_copy_(2, own, v)
        front = kv.transpose(1, 2)[:, None].expand(2, n_seqs, -1, -1, -1)
        keys, values = torch.cat([front, cache], dim=3)  # each (B, H, P + S, D)
        return sdpa(q, keys, values)[:, :, 0]

    return forward
