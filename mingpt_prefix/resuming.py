"""What a checkpoint holds of a run: the weights that are trained, and their optimizers' state."""

import torch
from torch import Tensor, nn

from mingpt_prefix.errors import CheckpointError
from mingpt_prefix.sharding import cut_like

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
