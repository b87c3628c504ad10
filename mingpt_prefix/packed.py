"""A frozen model's weights in the order oneDNN likes best, on the CPU.

    pack(model)                     # for writing
    pack(model, backward=True)      # for training a prefix too

Matrix products with a weight that was reordered once are up to three times as fast for the few rows
of decoding, and in float32 some 10 % for a training batch. It costs a copy of the weights, and
another for backward. In bfloat16 some products of a training batch are slower so, and only writing
takes them. torch's operators for it are private: where they are missing nothing is packed, and the
plain product is used. A weight that was changed since is noticed, and its copy not used, unless it
was written through `.data`, of which torch keeps no account.
"""

import torch
from torch import Tensor

from mingpt_prefix.model import GPT2, Conv1D

MOST_BYTES = 2 << 30  # of weights that are packed: the copies of larger ones would cost too much
LEAST_WIDTH = 512  # narrower models gain nothing
_TYPICAL_ROWS = 64  # what oneDNN plans the order for; any number works


class PackedWeight:
    """One frozen weight (in, out), or (out, in) where `is_transposed`, reordered for the product
    with it and, with `backward`, for that product's gradient."""

    def __init__(self, weight: Tensor, backward: bool, is_transposed: bool = False) -> None:
        self.weight, self.version, self.address = weight, weight._version, weight.data_ptr()
        into, out = weight.detach(), weight.detach().t()
        self.forward = _reorder(into if is_transposed else out)
        self.backward = None
        if backward:
            self.backward = _reorder(out if is_transposed else into)

    def fits(self, weight: Tensor, x: Tensor) -> bool:
        """Whether the product of x and `weight` can be taken with what was packed."""
        return (
            weight is self.weight
            and weight._version == self.version
            and weight.data_ptr() == self.address
            and x.device.type == "cpu"
            and not weight.requires_grad
            and x.dtype == weight.dtype
            and not torch.is_autocast_enabled("cpu")
            and (self.backward is not None or not (x.requires_grad and torch.is_grad_enabled()))
        )

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """The product of x (M, in) and the weight, with the bias added: (M, out)."""
        if not (x.requires_grad and torch.is_grad_enabled()):
            return _multiply(x, self.forward, bias)
        return _Product.apply(x, self, bias)

    def __deepcopy__(self, memo: dict) -> None:
        return None  # a copied model has weights of its own


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, packed: PackedWeight, bias: Tensor | None) -> Tensor:
        ctx.packed = packed
        return _multiply(x, packed.forward, bias)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _multiply(gradient, ctx.packed.backward, None), None, None


def pack(model: GPT2, backward: bool = False) -> None:
    """Pack the weights of a frozen model on the CPU, held in float32 or, for writing, in bfloat16.

    Any other is left as it is.
    """
    weight = model.wte.weight
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    if model.config.n_embd < LEAST_WIDTH:
        return
    dtypes = (torch.float32,) if backward else (torch.float32, torch.bfloat16)
    if weight.device.type != "cpu" or weight.dtype not in dtypes or size > MOST_BYTES:
        return
    if any(p.requires_grad for p in model.parameters()) or not available(weight.dtype):
        return
    held = model.packed_head
    if held is not None and held.fits(weight, weight.new_empty(0, requires_grad=backward)):
        return  # packed already, as well as is asked for
    model.packed_head = PackedWeight(weight, backward, is_transposed=True)
    for module in model.modules():
        if isinstance(module, Conv1D):
            module.packed = PackedWeight(module.weight, backward)


def available(dtype: torch.dtype = torch.float32) -> bool:
    """Whether this torch has the operators for `dtype`, and they give what they should."""
    try:
        x, weight = torch.ones(2, 3, dtype=dtype), torch.arange(12, dtype=dtype).view(4, 3)
        product = _multiply(x, _reorder(weight), x.new_ones(4))
    except (AttributeError, RuntimeError, TypeError):
        return False
    return torch.equal(product, x @ weight.t() + 1)


def _reorder(weight: Tensor) -> Tensor:
    """A weight (out, in) as oneDNN wants it."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _TYPICAL_ROWS)


def _multiply(x: Tensor, reordered: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), reordered, bias, "none", [], "")
