"""A frozen model's weights in the order oneDNN likes best, on the CPU.

    prepack(model)                     # for generating: copied at the first product that can use it
    prepack(model, backward=True)      # for training a prefix too: copied at once

Layers are replaced by layers that hold such a copy beside the weight. Matrix products with a weight
that was reordered once are up to three times as fast for the few rows of decoding, and in float32
some 10 % for a training batch. It costs a copy of the weights, and another for backward. In
bfloat16 some products of a training batch are slower so, and only generating uses the copies.
torch's operators for it are private: where they are missing, the plain product is used. A weight
that was changed since is noticed, and its copy not used, unless it was written through `.data`, of
which torch keeps no account.
"""

import functools

import torch
from torch import Tensor, nn

from mingpt_prefix.model import GPT2, Conv1D, TiedHead

MOST_BYTES = 2 << 30  # of weights that are packed: the copies of larger ones would cost too much
LEAST_WIDTH = 512  # narrower models gain nothing
_TYPICAL_ROWS = 64  # what oneDNN plans the order for; any number works
_DTYPES = (torch.float32, torch.bfloat16)


class PackedWeight:
    """A copy of one frozen weight (in, out), or (out, in) if `is_transposed`, reordered for the
    product with it and maybe for that product's gradient; there is none before `pack`."""

    def __init__(self, is_transposed: bool = False) -> None:
        self.is_transposed = is_transposed
        self.weight: Tensor | None = None
        self.forward: Tensor | None = None
        self.backward: Tensor | None = None

    def pack(self, weight: Tensor, backward: bool = False) -> None:
        """Copy `weight`, with `backward` for the gradient too."""
        self.weight, self.version, self.address = weight, weight._version, weight.data_ptr()
        with torch.inference_mode(False):
            into, out = weight.detach(), weight.detach().t()
            if self.is_transposed:
                into, out = out, into
            self.forward = _reorder(out)
            self.backward = _reorder(into) if backward else None

    def serves(self, weight: Tensor, x: Tensor) -> bool:
        """Whether the copy gives the product of x and `weight`.

        A copy of the weight as it is now is made if there is none and something is being generated.
        """
        is_held = (
            weight is self.weight
            and weight._version == self.version
            and weight.data_ptr() == self.address
        )
        if weight.requires_grad or not (is_held or torch.is_inference_mode_enabled()):
            return False
        if not is_held and not _is_packable(weight):
            return False
        if not is_held:
            self.pack(weight)
        return (
            x.dtype == weight.dtype
            and x.device.type == "cpu"
            and not torch.is_autocast_enabled("cpu")
            and (self.backward is not None or not (x.requires_grad and torch.is_grad_enabled()))
        )

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """The product of x (M, in) and the weight, with the bias added: (M, out)."""
        if not (x.requires_grad and torch.is_grad_enabled()):
            return _multiply(x, self.forward, bias)
        return _Product.apply(x, self, bias)

    def __deepcopy__(self, memo: dict) -> "PackedWeight":
        return PackedWeight(self.is_transposed)  # a copied model has weights of its own


class PrepackedConv1D(Conv1D):
    """A layer that takes the place of `plain`, with its parameters."""

    def __init__(self, plain: Conv1D) -> None:
        nn.Module.__init__(self)
        self.weight, self.bias, self.packed = plain.weight, plain.bias, PackedWeight()
        self.train(plain.training)

    def forward(self, x: Tensor) -> Tensor:
        if self.packed.serves(self.weight, x):
            return self.packed(x, self.bias)
        return super().forward(x)


class PrepackedHead(TiedHead):
    """The vocabulary head with a packed copy of its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.packed = PackedWeight(is_transposed=True)

    def forward(self, hidden: Tensor, weight: Tensor) -> Tensor:
        if self.packed.serves(weight, hidden):
            return self.packed(hidden)
        return super().forward(hidden, weight)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, packed: PackedWeight, bias: Tensor | None) -> Tensor:
        ctx.packed = packed
        return _multiply(x, packed.forward, bias)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _multiply(gradient, ctx.packed.backward, None), None, None


def prepack(model: GPT2, backward: bool = False) -> None:
    """Replace the layers of a model on the CPU that is wide enough, and not too large.

    Frozen weights in float32 or bfloat16 are copied when they first generate something; with
    `backward`, those of a frozen model in float32 are copied now.
    """
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    if model.device.type != "cpu" or model.config.n_embd < LEAST_WIDTH or size > MOST_BYTES:
        return
    if not isinstance(model.tied_head, PrepackedHead):
        model.tied_head = PrepackedHead()
    found = [(model.tied_head.packed, model.wte.weight)]
    for block in model.h:
        for part, name in ((block.attn, "c_attn"), (block.attn, "c_proj"),
                           (block.mlp, "c_fc"), (block.mlp, "c_proj")):  # fmt: skip
            layer = getattr(part, name)
            if not isinstance(layer, PrepackedConv1D):
                layer = PrepackedConv1D(layer)
                setattr(part, name, layer)
            found.append((layer.packed, layer.weight))
    is_frozen = not any(p.requires_grad for p in model.parameters())
    if backward and is_frozen and model.wte.weight.dtype == torch.float32:
        for packed, weight in found:
            if _is_packable(weight):
                packed.pack(weight, backward=True)


def _is_packable(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype in _DTYPES and available(weight.dtype)


@functools.cache
def available(dtype: torch.dtype = torch.float32) -> bool:
    """Whether this torch has the operators for `dtype`, and they give what they should."""
    try:
        with torch.inference_mode(False):
            x, weight = torch.ones(2, 3, dtype=dtype), torch.arange(12, dtype=dtype).view(4, 3)
            product = _multiply(x, _reorder(weight), x.new_ones(4))
            return torch.equal(product, x @ weight.t() + 1)
    except (AttributeError, RuntimeError, TypeError):
        return False


def _reorder(weight: Tensor) -> Tensor:
    """A weight (out, in) as oneDNN wants it."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _TYPICAL_ROWS)


def _multiply(x: Tensor, reordered: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), reordered, bias, "none", [], "")
