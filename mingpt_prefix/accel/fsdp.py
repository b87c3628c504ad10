"""Fine-tuning of a model that is too large for one GPU: each rank holds a shard of it (FSDP2).

    torchrun --nproc-per-node 4 train.py --mode finetune --model gpt2-xl --shard

Weights, gradients and optimizer state are cut along their first dimension; a block's weights are
brought together where it computes, and dropped after (Zhao et al. 2023; torch's `fully_shard`).
What is saved is whole, the same as without shards.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mingpt_prefix.accel.distributed import World
from mingpt_prefix.model import GPT2

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule


def shard(loss: nn.Module, model: GPT2, world: World) -> "FSDPModule":
    """`loss`, whose `model` is cut up in place: its parameters are DTensors from now on."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(model.device.type, (world.size,))
    # Caches of DTensor keep the mesh to the end of Python, and by this table, which only compiled
    # code reads, the group with its threads (see `distributed.join`). Older torch has no table.
    getattr(mesh, "_pg_registry", {}).clear()
    for block in model.h:
        fully_shard(block, mesh=mesh)
    return fully_shard(loss, mesh=mesh)


def unshard(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded; all ranks must call it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def cut_like(tensor: Tensor, own: Tensor) -> Tensor:
    """This rank's shard of a whole tensor, if `own`, of the same shape, is a shard."""
    if not hasattr(own, "full_tensor") or tensor.shape != own.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(own.device, own.dtype), own.device_mesh, own.placements)


def gathered(tensors: dict[str, Tensor], world: World) -> dict[str, Tensor]:
    """Whole tensors by name, on the CPU; all ranks must call it, and only the first gets them.
    Without shards nothing is copied."""
    if not world.shards:
        return tensors
    found = {}
    for name, tensor in tensors.items():
        tensor = unshard(tensor.detach())
        if world.is_main:
            found[name] = tensor.cpu()
    return found


def whole_model(model: GPT2, world: World) -> GPT2:
    """The model, or an unsharded copy if it is sharded: all ranks must call it, and only the first
    gets one that it can use."""
    if not world.shards:
        return model
    tensors = gathered(dict(model.named_parameters()), world)
    with torch.device("meta"):
        copy = GPT2(model.config, model.attention)
    if world.is_main:
        copy.load_state_dict(tensors, assign=True)
        copy = copy.to(model.device).requires_grad_(False)
    copy.name, copy.fingerprint = model.name, model.fingerprint
    return copy
