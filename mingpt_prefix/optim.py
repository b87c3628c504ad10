"""How trained weights move: optimizers, and the learning rate of a step."""

import torch
from torch import Tensor, nn

from mingpt_prefix.config import TrainConfig
from mingpt_prefix.muon import Muon


def make_optimizers(trainable: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """AdamW (Loshchilov & Hutter 2019), or Muon (Jordan et al. 2024) for the blocks' matrices and
    for those of a prefix's rows.

    Weight decay acts on matrices alone. Rates are set by `set_learning_rate`.
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
    """Make `lr` the rate of the next step; groups with an `lr_scale` have so many times that."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"] if "lr_scale" in group else lr


def learning_rate(step: int, total_steps: int, config: TrainConfig) -> float:
    """The rate of 0-based `step`: up over the warm-up's share of steps, then linearly to 0."""
    warmup = round(config.warmup * total_steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    return config.lr * (total_steps - step) / max(1, total_steps - warmup)
