"""Cross-entropy that overwrites its logits.

    loss = summed_cross_entropy(model.head(hidden), targets)

GPT-2's logits for a batch's targets take some 50 MB. On a CPU, torch's cross-entropy and its
gradient write four more arrays of that size, which costs more than the arithmetic. Here the
gradient overwrites the logits, as in Liger-Kernel (Hsu et al. 2024). On a GPU, torch's is used.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

IGNORE_INDEX = -100  # a target that does not count


def summed_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The loss in nats, summed over targets (M,) other than IGNORE_INDEX; overwrites logits (M, V).

    Computed in float32 or wider.
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
        # Through the likeliest token, whose probability is never 0.
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
