"""Optimizers: AdamW and Muon, and the learning-rate schedule.

Muon (Jordan et al. 2024) updates a matrix by the orthogonal matrix nearest to its momentum.
`torch.optim.Muon` loops over matrices, and the embedded model's prefix has 96 small ones; here
matrices of one shape are updated together. The update is the same, scaled so that AdamW's learning
rates fit (Liu et al. 2025).
"""

from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from mingpt_prefix.config import TrainConfig

_QUINTIC = (3.4445, -4.7750, 2.0315)  # of the Newton-Schulz iteration
_ITERATIONS = 5
_EPSILON = 1e-7


def make_optimizers(trainable: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """AdamW (Loshchilov & Hutter 2019), and with `optimizer="muon"` Muon for the matrices of blocks
    and of prefix rows.

    Weight decay acts only on matrices. `set_learning_rate` sets the rates.
    """
    named = list(trainable.named_parameters())
    by_muon = [p for name, p in named if config.optimizer == "muon" and _is_for_muon(name, p)]
    taken = {id(p) for p in by_muon}
    # LoRA beside a prefix has a learning rate of its own.
    has_own_rate = config.has_prefix and config.lora_lr > 0
    own = {id(p) for name, p in named if has_own_rate and name.startswith("lora.")}
    rest = [p for _, p in named if id(p) not in taken | own]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    if own:
        theirs = {"weight_decay": config.weight_decay, "lr_scale": config.lora_lr / config.lr}
        groups.append({"params": [p for _, p in named if id(p) in own], **theirs})
    optimizers: list[torch.optim.Optimizer] = []
    if rest or own:
        optimizers = [torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)]
    if by_muon:
        dtype = torch.bfloat16 if config.dtype == "bf16" else torch.float32
        settings = dict(weight_decay=config.weight_decay, dtype=dtype)
        optimizers.append(Muon(by_muon, lr=config.lr, **settings))
    return optimizers


def _is_for_muon(name: str, parameter: nn.Parameter) -> bool:
    parts = name.split(".")
    return ("rows" in parts or parts[0] == "h") and parameter.ndim == 2


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float | Tensor) -> None:
    """Set the next step's learning rate to `lr`, times `lr_scale` in groups that have one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"] if "lr_scale" in group else lr


def learning_rate(step: int, total_steps: int, config: TrainConfig) -> float:
    """The learning rate of 0-based `step`: linear warm-up, then linear decay to 0."""
    warmup = round(config.warmup * total_steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    return config.lr * (total_steps - step) / max(1, total_steps - warmup)


def orthogonalized(matrices: Tensor) -> Tensor:
    """Approximately U V^T for each matrix U S V^T of matrices (N, rows, columns).

    Its singular values lie between 0.7 and 1.2, which is close enough for an optimizer.
    """
    a, b, c = _QUINTIC
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if is_tall else matrices
    x = x / x.flatten(1).norm(dim=1).clamp(min=_EPSILON)[:, None, None]
    for _ in range(_ITERATIONS):
        gram = torch.bmm(x, x.mT)
        update = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, update, x, beta=a)
    return x.mT if is_tall else x


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay.

    `dtype`: the precision of a step's matrix products. Raises ValueError for a parameter that is
    not a matrix.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, momentum=momentum))
        self.dtype = dtype

    def add_param_group(self, param_group: dict) -> None:
        super().add_param_group(param_group)
        for parameter in self.param_groups[-1]["params"]:
            if parameter.ndim != 2:
                raise ValueError(f"params: a tensor of shape {tuple(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            alike = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    kind = parameter.shape, parameter.dtype, parameter.device
                    alike[kind].append(parameter)
            rates = group["lr"], group["weight_decay"], group["momentum"]
            for parameters in alike.values():
                self._step_together(parameters, *rates)
        return loss

    def _step_together(
        self, parameters: list[Tensor], lr: float, weight_decay: float, momentum: float
    ) -> None:
        gradients = [p.grad for p in parameters]
        held = [self._momentum(p) for p in parameters]
        torch._foreach_lerp_(held, gradients, 1 - momentum)
        ahead = torch.lerp(torch.stack(gradients), torch.stack(held), momentum)
        updates = orthogonalized(ahead.to(self.dtype)).to(parameters[0].dtype)
        if weight_decay:
            torch._foreach_mul_(parameters, 1 - lr * weight_decay)
        scale = 0.2 * max(parameters[0].shape) ** 0.5  # AdamW's usual root mean square of an update
        torch._foreach_add_(parameters, list(updates.unbind()), alpha=-lr * scale)

    def _momentum(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return state["momentum_buffer"]
