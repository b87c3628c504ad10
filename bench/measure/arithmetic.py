"""How much arithmetic a training step needs, and how fast this machine does such arithmetic."""

from collections.abc import Callable, Sequence

import torch

from measure.timing import gpu_seconds, timed
from mingpt_prefix.batch import Encoded
from mingpt_prefix.config import ModelConfig


def step_flops(
    config: ModelConfig, batch: Sequence[Encoded], mode: str, prefix_length: int = 0
) -> float:
    """Floating-point operations of the matrix products that a step cannot do without.

    Packed tokens; the head on target positions alone, and the last block too, but for its keys and
    values. A product of (m, k) and (k, n) counts 2 m k n. Backward costs as much as forward for the
    inputs' gradients, and as much again for the weights', which prefix-tuning does not need. Causal
    attention counts half of the square.
    """
    width, full_layers = config.n_embd, config.n_layer - 1
    rows = prefix_length if mode == "prefix" else 0
    linear = attention = 0.0
    for example in batch:
        length = len(example.ids)
        targets = length - example.prompt_length
        linear += 2 * width**2 * (12 * length * full_layers + 2 * length + 10 * targets)
        linear += 2 * width * config.vocab_size * targets
        seen = length * (length / 2 + rows) * full_layers + targets * (length - targets / 2 + rows)
        attention += 2 * 2 * width * seen
    # Attention has two products and, in backward, four: gradients of both factors of each.
    return linear * (2 if mode == "prefix" else 3) + attention * 3


def matmul_rate(device: torch.device, dtype: torch.dtype, size: int = 2048) -> float:
    """Floating-point operations a second of one large matrix product: the best of several."""
    size = size if device.type == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / _fastest(lambda: a @ b, device)


def copy_rate(device: torch.device, size: int = 1 << 28) -> float:
    """Bytes read and written a second by a copy of `size` bytes: the best of several."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _fastest(lambda: target.copy_(source), device)


def _fastest(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of the best of several; a GPU's own, without what launching costs the host."""
    if device.type == "cuda":
        return min(gpu_seconds(run, 8))
    return min(timed(run) for _ in range(8))
