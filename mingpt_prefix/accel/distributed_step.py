"""Gradients by several processes, each on its share of every batch, with whole models or shards.

The weights of the parts' losses are such that the mean over the processes, which is what torch
takes of gradients, is the sum that is wanted.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from mingpt_prefix.accel.distributed import World
from mingpt_prefix.accel.fsdp import shard, unshard
from mingpt_prefix.adaptation import Adaptation, Adapters
from mingpt_prefix.batch import Encoded
from mingpt_prefix.config import TrainConfig
from mingpt_prefix.errors import ConfigError
from mingpt_prefix.model import GPT2
from mingpt_prefix.step import TrainStep


class DistributedStep(TrainStep):
    """A `TrainStep` of one of several processes. Raises ConfigError for shards of what is not cut
    up."""

    def __init__(
        self, config: TrainConfig, model: GPT2, adapters: Adapters | None, world: World
    ) -> None:
        super().__init__(config, model, adapters)
        self.world = world
        if world.shards and (config.is_frozen or config.optimizer != "adamw"):
            raise ConfigError("--shard is for all weights of a model, trained by --optimizer adamw")
        if world.shards:
            self.trained_loss = shard(self.summed_loss, model, world)
        elif adapters is None:
            self.trained_loss = DistributedDataParallel(self.summed_loss)
        else:
            self.adapters = DistributedDataParallel(adapters)

    def clip(self) -> Tensor:
        return unshard(super().clip())

    def mean_loss(self, examples: Sequence[Encoded], given: Adaptation) -> float:
        loss = super().mean_loss(examples, given)
        if self.world.shards:
            self.trained_loss.reshard()  # which backward does otherwise
        return loss

    def seed(self, step: int) -> int:
        """Processes draw masks of their own."""
        return super().seed(step) * self.world.size + self.world.rank

    def _parts(
        self, examples: Sequence[Encoded], size: int
    ) -> list[tuple[Sequence[Encoded], float]]:
        """All processes have as many, so that they meet: what one lacks counts for nothing."""
        own, largest = self.world.share(examples), -(-len(examples) // self.world.size)
        parts = [(part, weight * self.world.size) for part, weight in super()._parts(own, size)]
        return parts + [(examples[:1], 0.0)] * (-(-largest // size) - len(parts))

    def _mean(self, loss: Tensor) -> Tensor:
        return self.world.sum(loss) / self.world.size

    def _exchange_if(self, is_last: bool) -> AbstractContextManager:
        if self.world.shards:
            self.trained_loss.set_requires_gradient_sync(is_last)
        if is_last or not isinstance(self.trained_loss, DistributedDataParallel):
            return nullcontext()
        return self.trained_loss.no_sync()
