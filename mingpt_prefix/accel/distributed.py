"""Several processes train one run, each on its share of every batch.

    torchrun --nproc-per-node 2 train.py --mode prefix

`join` reads what torchrun puts in the environment. Only rank 0 writes files and the terminal. The
losses are those of a single process, except for the order of additions (and for dropout, whose
masks are each rank's own).
"""

import gc
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mingpt_prefix.errors import ConfigError

T = TypeVar("T")
_LONGEST_WAIT = timedelta(hours=12)


@dataclass(frozen=True)
class World:
    """This process's number among those that train together; `shards`: each holds a part of the
    model, and not all of it."""

    rank: int = 0
    size: int = 1
    shards: bool = False

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """This rank's part of `items`: all ranks' parts together are all, each once."""
        return list(items[self.rank :: self.size])

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of the ranks' tensors, on all of them."""
        if self.size > 1:
            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor

    def wait(self) -> None:
        """Wait until all ranks are here."""
        if self.size > 1:
            dist.barrier()

    def largest(self, number: int) -> int:
        """The largest of the ranks' numbers, on all of them."""
        if self.size == 1:
            return number
        found = torch.tensor(number)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)


ALONE = World()


@contextmanager
def join(device: str = "auto", shard: bool = False) -> Iterator[World]:
    """The world that torchrun set up, or `ALONE`; only the first rank prints.

    Raises:
        ConfigError: for more processes than GPUs, where they train on GPUs; for shards of one.
    """
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        if shard:
            raise ConfigError("--shard is for several processes: torchrun --nproc-per-node 2 ...")
        yield ALONE
        return
    on_gpu, local = device != "cpu" and torch.cuda.is_available(), int(os.environ["LOCAL_RANK"])
    if on_gpu:
        if local >= torch.cuda.device_count():
            count = torch.cuda.device_count()
            raise ConfigError(f"more processes than the {count} GPUs here; or say --device cpu")
        torch.cuda.set_device(local)
    # The functions in it default to the group that exists when it is first imported, which
    # DistributedDataParallel does. They would keep the group's threads alive, and a thread that
    # still drops tensors when the interpreter ends aborts the process.
    importlib.import_module("torch.distributed.nn.functional")
    # Both: small tensors on the CPU are exchanged too. Rank 0 scores while the others wait.
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    dist.init_process_group(backend, timeout=_LONGEST_WAIT)
    world, stdout = World(dist.get_rank(), dist.get_world_size(), shard), sys.stdout
    try:
        if not world.is_main:
            sys.stdout = open(os.devnull, "w", encoding="utf-8", errors="ignore")  # noqa: SIM115
        yield world
    finally:
        sys.stdout = stdout
        dist.destroy_process_group()
        gc.collect()  # modules that are sharded refer to the group, and to themselves
