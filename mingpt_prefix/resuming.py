"""Going on with a run: what a checkpoint holds of it, and how it is found and read again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mingpt_prefix.checkpoint import load_newest
from mingpt_prefix.console import warn_of_changes
from mingpt_prefix.errors import CheckpointError
from mingpt_prefix.runs import RunFolder, check_origin
from mingpt_prefix.sharding import cut_like

if TYPE_CHECKING:
    from mingpt_prefix.training import Trainer

Optimizers = list[torch.optim.Optimizer]


def trained_state(trainable: nn.Module, optimizers: Optimizers) -> dict[str, Tensor]:
    """All that `load_trained_state` needs, by names."""
    tensors = {f"trained.{name}": p for name, p in trainable.named_parameters()}
    for number, optimizer in enumerate(optimizers):
        for index, slots in optimizer.state_dict()["state"].items():
            names = {key: f"optimizer.{number}.{index}.{key}" for key in slots}
            tensors.update({names[key]: value for key, value in slots.items()})
    return tensors


def load_trained_state(
    trainable: nn.Module, optimizers: Optimizers, tensors: dict[str, Tensor]
) -> None:
    """Raises CheckpointError where `tensors` are those of another model or other optimizers."""
    slots: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimizers]
    try:
        own = dict(trainable.named_parameters())
        for name, tensor in tensors.items():
            kind, rest = name.split(".", 1)
            if kind == "trained":
                into = own.pop(rest)
                if tensor.shape != into.shape:
                    raise ValueError(f"{name} has shape {tuple(tensor.shape)}")
                into.data.copy_(cut_like(tensor, into))
            else:
                number, index, key = rest.split(".")
                groups = optimizers[int(number)].param_groups
                owner = [p for group in groups for p in group["params"]][int(index)]
                slots[int(number)].setdefault(int(index), {})[key] = cut_like(tensor, owner)
        if own:
            raise KeyError(next(iter(own)))
        for optimizer, state in zip(optimizers, slots, strict=True):
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": state, "param_groups": groups})
    except (LookupError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"the checkpoint is of another run: {error}") from None


def go_on(folder: Path, began_with: Mapping[str, str], trainer: Trainer) -> RunFolder | None:
    """The run of `folder`, and `trainer` where it left off; a warning where the machine is another.

    None on every rank but the first, which alone writes.

    Raises:
        CheckpointError: when it is not of this run, or the run did not begin with `began_with`.
    """
    world = trainer.world
    check_origin(folder, began_with)
    if checkpoint := load_newest(RunFolder(folder).checkpoints):
        changed = trainer.restore(checkpoint)
        if changed and world.is_main:
            warn_of_changes(changed)
    world.wait()  # until all have read it
    return RunFolder.reopen(folder, trainer.step) if world.is_main else None
