"""How many members fit in memory at once, found out without trying."""

import torch
from torch import Tensor

from mingpt_prefix.accel.environment import free_memory
from mingpt_prefix.batch import pack
from mingpt_prefix.trainer import Trainer

_UNKNOWN = 16  # members, if the system does not say how much memory it has
_SHARE = 0.7  # of the free memory
_BESIDE = 1.5  # a step's memory, by what it keeps for backward
_COPIES = 5  # of what is trained: itself, its gradient, two moments, and what a step makes of them


def rough_size(trainer: Trainer) -> int:
    """What to compare members by: tokens and rows of the largest micro-batch."""
    longest = max(len(example.ids) for example in trainer.train_set)
    return trainer.config.micro_batch_size * (longest + trainer.config.prefix_length)


def width_by_memory(largest: Trainer, processes: int = 1) -> int:
    """The number of members like `largest` that fit at once; at least one.

    `processes`: how many share the memory.
    """
    free = free_memory(largest.model.device)
    if free is None:
        return _UNKNOWN
    trained = sum(p.numel() * p.element_size() for p in largest.trainable.parameters())
    needed = _BESIDE * kept_for_backward(largest) + _COPIES * trained
    return max(1, int(_SHARE * free / processes / needed))


def kept_for_backward(trainer: Trainer) -> int:
    """Bytes that the forward pass of the largest micro-batch keeps, beside the model's weights."""
    model, gradients, size = trainer.model, trainer.gradients, trainer.config.micro_batch_size
    longest = sorted(trainer.train_set, key=lambda example: len(example.ids))[-size:]
    batch = pack(longest, gradients.rows, trainer.config.placement).to(model.device)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        prefix = gradients.adapters().prefix
        loss = gradients.summed_loss(batch, prefix)
    del loss  # until here all of it was alive, each storage at an address of its own
    return sum(kept.values())
