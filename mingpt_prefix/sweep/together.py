"""Steps of many runs in one: their sequences packed together, each behind its own run's prefix.

    trainers = [member_trainer(config, model, train_set, dev_set) for config in configs]
    for took in rounds(trainers):              # each trainer that is not at its end took a step
        ...

A frozen model makes runs independent of each other: a sequence sees the rows of its own run, and
gives a gradient to no others. A round is one forward and one backward pass over the batches of all
runs, of the sum of their losses, each a mean over its own targets. Whatever else makes up a step
(order of data, dropout, clipping, optimizers, schedule, dev losses) is left to each run's own
trainer, and is what it is in a run of its own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mingpt_prefix.accel.buckets import of_few_sizes
from mingpt_prefix.adapters.learned import make_adapters
from mingpt_prefix.batch import Encoded, PackedBatch, PrefixKV, pack
from mingpt_prefix.config import TrainConfig
from mingpt_prefix.errors import TrainingError
from mingpt_prefix.kernels import Layout
from mingpt_prefix.loss import summed_cross_entropy
from mingpt_prefix.model import GPT2
from mingpt_prefix.step import EagerStep, Progress, TrainStep
from mingpt_prefix.trainer import Trainer


@dataclass(frozen=True)
class Stopped:
    """What stopped a run at a step: a loss or a gradient that was not finite."""

    step: int
    why: str


class MemberStep(TrainStep):
    """Gradients that were computed together with those of others: see `rounds`."""

    loss: Tensor  # of the step that comes next; its gradients are there already

    def backward(self, examples: Sequence[Encoded]) -> Tensor:
        return self.loss


def member_trainer(
    config: TrainConfig, model: GPT2, train_set: Sequence[Encoded], dev_set: Sequence[Encoded]
) -> Trainer:
    """The trainer of one of the runs that share `model`, which must be frozen.

    Raises:
        ConfigError, PrefixError: as `make_trainer`.
    """
    gradients = MemberStep(config, model, make_adapters(config, model, train_set))
    if config.dtype == "bf16" and model.device.type == "cpu":
        gradients.pad = of_few_sizes
    return Trainer(config, gradients, EagerStep(gradients, config), train_set, dev_set)


def rounds(trainers: Sequence[Trainer]) -> Iterator[dict[Trainer, Progress | Stopped]]:
    """Train all to their ends, from wherever they are; yields the step that each took in a round.

    One that stopped takes no further steps.
    """
    running = [(each, each.batches(), each.steps()) for each in trainers if not _at_end(each)]
    while running:
        backward_together([(trainer, next(examples)) for trainer, examples, _ in running])
        took: dict[Trainer, Progress | Stopped] = {}
        for trainer, _, steps in running:
            number = trainer.step + 1
            try:
                took[trainer] = next(steps)
            except TrainingError as error:
                took[trainer] = Stopped(number, str(error))
        yield took
        running = [
            each for each in running if not (isinstance(took[each[0]], Stopped) or _at_end(each[0]))
        ]


def _at_end(trainer: Trainer) -> bool:
    return trainer.step >= trainer.total_steps


def backward_together(members: Sequence[tuple[Trainer, Sequence[Encoded]]]) -> None:
    """Compute the loss and the gradients of each trainer's next step, on these examples."""
    model = members[0][0].model.train()
    learned: list[PrefixKV] = []
    for trainer, _ in members:
        trainer.trainable.train()
        torch.manual_seed(trainer.gradients.seed(trainer.step))  # which draws the rows' dropout
        learned.append(trainer.gradients.adapters().prefix)
    together = PrefixKV.pack(learned)
    # The encoders run once: gradients add up in a leaf, and go through them once.
    leaf = PrefixKV(together.kv.detach().requires_grad_(), together.starts)
    totals = [torch.zeros((), device=model.device) for _ in members]
    for parts in _micro_batches(members):
        losses = _mean_losses(model, members, parts, leaf)
        torch.stack(list(losses.values())).sum().backward()
        for number, loss in losses.items():
            totals[number] += loss.detach()
    together.kv.backward(leaf.kv.grad)
    for (trainer, _), loss in zip(members, totals, strict=True):
        trainer.gradients.loss = loss


def _micro_batches(
    members: Sequence[tuple[Trainer, Sequence[Encoded]]],
) -> Iterator[dict[int, Sequence[Encoded]]]:
    """The first micro-batches of all members by their numbers, then the second ones, and so on."""
    sizes = [trainer.config.micro_batch_size for trainer, _ in members]
    for turn in range(max(-(-len(own) // s) for (_, own), s in zip(members, sizes, strict=True))):
        parts = (own[turn * s :][:s] for (_, own), s in zip(members, sizes, strict=True))
        yield {number: part for number, part in enumerate(parts) if part}


def _mean_losses(
    model: GPT2,
    members: Sequence[tuple[Trainer, Sequence[Encoded]]],
    parts: dict[int, Sequence[Encoded]],
    prefix: PrefixKV,
) -> dict[int, Tensor]:
    """What each part adds to its member's loss, which is a mean over all targets of its step."""
    packed = {}
    for number, part in parts.items():
        gradients = members[number][0].gradients
        packed[number] = pack(part, gradients.rows, gradients.config.placement)
    batch = joined(packed).to(model.device)
    batch = batch if members[0][0].gradients.pad is None else members[0][0].gradients.pad(batch)
    inputs = (batch.tokens, batch.positions, batch.layout, prefix, batch.target_index)
    predicting = model(*inputs)  # (M, C)
    counts = [own.n_targets for own in packed.values()]
    each = zip(packed, predicting.split(counts), batch.target_tokens.split(counts), strict=True)
    losses = {}
    for number, own, targets in each:
        total = summed_cross_entropy(model.head(own), targets)
        losses[number] = total * (1 / sum(e.n_targets for e in members[number][1]))
    return losses


def joined(packed: dict[int, PackedBatch]) -> PackedBatch:
    """Batches one after the other, as one whose sequences see the prefixes of these numbers."""
    layouts = [batch.layout for batch in packed.values()]
    starts, index, first = [layouts[0].cu_seqlens[:1]], [], 0
    for batch in packed.values():
        starts.append(batch.layout.cu_seqlens[1:] + first)
        index.append(batch.target_index + first)
        first += len(batch.tokens)
    layout = Layout(
        torch.cat(starts),
        torch.cat([torch.full_like(b.layout.prefix_ids, n) for n, b in packed.items()]),
        torch.cat([layout.prefix_from for layout in layouts]),
        max(layout.max_seq_len for layout in layouts),
    )
    return PackedBatch(
        torch.cat([batch.tokens for batch in packed.values()]),
        torch.cat([batch.positions for batch in packed.values()]),
        layout,
        torch.cat(index),
        torch.cat([batch.target_tokens for batch in packed.values()]),
    )
