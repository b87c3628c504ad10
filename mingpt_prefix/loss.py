"""Cross-entropy of logits that are not needed afterwards.

    loss = summed_cross_entropy(model.head(hidden), targets)

GPT-2's logits of a batch's targets are some 50 MB. On a CPU torch's cross-entropy and its gradient
write four more arrays of that size, which cost more than the arithmetic: here the gradient
overwrites the logits, as in Liger-Kernel (Hsu et al. 2024). On a GPU torch's own is used.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

IGNORE_INDEX = -100  # a target that is left out


def summed_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The sum in nats over targets (M,) other than IGNORE_INDEX; logits (M, V) are overwritten.

    Sums are in float32 at least.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if logits.device.type != "cpu" or not (logits.requires_grad and torch.is_grad_enabled()):
        return F.cross_entropy(logits, targets, reduction="sum")
    return _InPlace.apply(logits, targets)


class _InPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits: Tensor, targets: Tensor) -> Tensor:
        counts = targets != IGNORE_INDEX
        index = targets.where(counts, 0)[:, None]  # (M, 1)
        said = logits.gather(1, index)
        top, where_top = logits.max(1, keepdim=True)
        probabilities = torch.softmax(logits, 1, out=logits)
        # By the likeliest token, whose probability is never 0.
        log_sum = top - probabilities.gather(1, where_top).log()
        slope = probabilities.scatter_add_(1, index, said.new_full(index.shape, -1.0))
        if not counts.all():
            slope.mul_(counts[:, None])
        ctx.save_for_backward(slope)
        return (log_sum - said)[counts].sum()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return slope * gradient, None
