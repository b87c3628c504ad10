"""Training: one step for adapters, full fine-tuning and pretraining, and the loop around it.

    trainer = Trainer(config, model, train_set, dev_set)
    for progress in trainer.steps():
        ...

The modes differ in what is trained (a prefix, LoRA, or the model) and in nothing else. The loss is
the sum over target tokens divided by their number in the whole optimizer batch, however it is cut
into micro-batches. A run is a function of its settings: batches, dropout and the learning rate of a
step depend on (seed, step) alone, which makes resuming exact.
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from mingpt_prefix.adapters import Adaptation, folded, make_adapters
from mingpt_prefix.batch import Encoded, batches
from mingpt_prefix.checkpoint import Checkpoint
from mingpt_prefix.config import TrainConfig
from mingpt_prefix.distributed import ALONE, World
from mingpt_prefix.errors import CheckpointError, ConfigError, TrainingError
from mingpt_prefix.graphs import LAG, Begun, GraphedStep, Work, ahead, why_not_graphs
from mingpt_prefix.machine import changes, surroundings
from mingpt_prefix.model import GPT2
from mingpt_prefix.optim import learning_rate, make_optimizers, set_learning_rate
from mingpt_prefix.packed import pack
from mingpt_prefix.resuming import load_trained_state, trained_state
from mingpt_prefix.sharding import gathered, whole
from mingpt_prefix.step import Progress, TrainStep, check_positions

_ADVICE = "try a lower --lr, or look at the data"
MAX_DEV = 1_000  # examples in one dev loss, evenly spaced: more say little more


class Trainer:
    """One run: `model` and what is trained of it, its optimizer, and how far it has come.

    Where adapters are trained, `model` is frozen, in whatever dtype it is held; else its weights
    are trained in float32, with matrix products in `config.dtype` (autocast). `graphs`: steps are
    taken whole, as CUDA graphs, where `mingpt_prefix.graphs` says that they can be.

    Raises:
        ConfigError: when an example does not fit the model's positions, or for shards of what
            is not cut up.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: GPT2,
        train_set: Sequence[Encoded],
        dev_set: Sequence[Encoded],
        world: World = ALONE,
        graphs: bool = True,
    ) -> None:
        self.config, self.model, self.train_set, self.world = config, model, train_set, world
        self.dev_set = dev_set[:: -(-len(dev_set) // MAX_DEV) or 1]
        self.step, self.best_loss, self.best_step = 0, math.inf, 0
        per_epoch = -(-len(train_set) // config.batch_size)
        self.total_steps = config.max_steps or math.ceil(config.epochs * per_epoch)
        if world.shards and (config.is_frozen or config.optimizer != "adamw"):
            raise ConfigError("--shard is for all weights of a model, trained by --optimizer adamw")
        self._choose_trainable()
        if config.mode != "pretrain":  # whose windows are cut to fit
            check_positions(self.prefix_length or 0, (*self.train_set, *self.dev_set), model)
        self.gradients = TrainStep(config, model, self.adapters, world)
        self.optimizers = make_optimizers(self.trainable, config)
        self.graphs, self._catches_up = None, False
        self.why_not_graphs = why_not_graphs(config, world) if graphs else "they are not wanted"
        if self.why_not_graphs is None:
            whole = (self.gradients, self.trainable, *self.optimizers)
            self.graphs = GraphedStep(*whole, config, train_set)

    @property
    def prefix_length(self) -> int | None:
        return self.config.prefix_length if self.config.has_prefix else None

    def _choose_trainable(self) -> None:
        config, model = self.config, self.model
        model.requires_grad_(not config.is_frozen)
        model.dropout = 0.0 if config.is_frozen else config.dropout
        model.grad_checkpoint = config.grad_checkpoint
        self.trainable: nn.Module = model
        self.adapters = make_adapters(config, model, self.train_set)
        if self.adapters is not None:
            self.trainable = self.adapters.trainable
            pack(model, backward=True)

    @property
    def n_trained(self) -> int:
        """Parameters that are trained: the adapters', or the model's."""
        return sum(p.numel() for p in self.trainable.parameters())

    @property
    def n_kept(self) -> int:
        """Numbers that the run leaves behind: the folded adapters', or the model's."""
        kept = self.folded().tensors()
        return sum(tensor.numel() for tensor in kept) if kept else self.n_trained

    def steps(self) -> Iterator[Progress]:
        """Train to the end, from wherever the run is; yields each step, in order.

        With `graphs` a step is yielded when its loss has arrived, and others are under way by then:
        `step` is that of the last one begun. See `catch_up`.

        Raises:
            TrainingError: when a loss or a gradient is not finite; the step is not yielded, and a
                training step's bad gradient changes nothing.
        """
        under_way: deque[tuple[Progress, Begun]] = deque()
        for plan, work in self._prepared():
            while under_way and self._catches_up:
                yield self._ended(*under_way.popleft())
            self._catches_up = False
            under_way.append((plan, self._begin(work, plan.lr)))
            self.step += 1
            lag = 0 if self.graphs is None or self._is_judged(self.step) else LAG
            while len(under_way) > lag:
                yield self._ended(*under_way.popleft())

    def catch_up(self) -> None:
        """Begin no step before all that have been begun are yielded: `step` is then the last's."""
        self._catches_up = True

    def _is_judged(self, step: int) -> bool:
        """Whether a dev loss follows it, or nothing at all."""
        eval_every = math.ceil(self.total_steps / self.config.evals)
        return step % eval_every == 0 or step == self.total_steps

    def _prepared(self) -> Iterator[tuple[Progress, Work | list[Encoded]]]:
        """Each step still to be taken, its loss unknown, and what `_begin` takes."""
        config = self.config
        order = batches(len(self.train_set), config.batch_size, config.seed, self.step)

        def prepare(step: int) -> tuple[Progress, Work | list[Encoded]]:
            examples = [self.train_set[i] for i in next(order)]
            lr = learning_rate(step, self.total_steps, config)
            plan = Progress(step + 1, math.nan, lr, sum(len(e.ids) for e in examples))
            return plan, examples if self.graphs is None else self.graphs.prepare(examples, lr)

        to_come = range(self.step, self.total_steps)
        return map(prepare, to_come) if self.graphs is None else ahead(prepare, to_come)

    def _begin(self, work: Work | Sequence[Encoded], lr: float) -> Begun:
        if self.graphs is not None:
            return self.graphs.begin(work, self._seed())
        return Begun(torch.tensor([self.train_step(work, lr), 0.0], dtype=torch.float64))

    def _ended(self, plan: Progress, begun: Begun) -> Progress:
        """The step with its loss and, where one is due, its dev loss. Raises as `steps`."""
        loss, norm = begun.read()
        if not math.isfinite(loss + norm):
            self.step = plan.step - 1  # nothing has moved since
            raise _not_finite(plan.step, loss, norm)
        dev_loss, is_best = None, not self.dev_set and plan.step == self.total_steps
        if self.dev_set and self._is_judged(plan.step):
            dev_loss = self.dev_loss()
            if not math.isfinite(dev_loss):
                raise TrainingError(f"step {plan.step}: the dev loss is {dev_loss}: {_ADVICE}")
            is_best = dev_loss < self.best_loss
            if is_best:
                self.best_loss, self.best_step = dev_loss, plan.step
        return replace(plan, loss=loss, dev_loss=dev_loss, is_best=is_best)

    def _seed(self) -> int:
        """Of the next step's dropout: ranks draw masks of their own."""
        return (self.config.seed * 1_000_003 + self.step) * self.world.size + self.world.rank

    def train_step(self, examples: Sequence[Encoded], lr: float) -> float:
        """One optimizer step at the learning rate `lr`; returns its loss, in nats a token.

        Raises TrainingError as `steps`.
        """
        self.model.train()
        self.trainable.train()
        torch.manual_seed(self._seed())
        loss = self.gradients.backward(examples)
        norm = whole(nn.utils.clip_grad_norm_(self.trainable.parameters(), self.config.clip))
        if not torch.isfinite(loss + norm):
            raise _not_finite(self.step + 1, float(loss), float(norm))
        with record_function("optimizer"):
            for optimizer in self.optimizers:
                set_learning_rate(optimizer, lr)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        return float(loss)

    def dev_loss(self) -> float:
        """Mean loss over the targets of the dev set, in nats."""
        self.model.eval()
        return self.gradients.mean_loss(self.dev_set, self.folded())

    def folded(self) -> Adaptation:
        """What has been learned beside the model, as it would be kept now."""
        return folded(self.adapters)

    def state(self) -> tuple[dict[str, Tensor], dict]:
        """All that `restore` needs: tensors, and a JSON object; with shards all ranks must ask."""
        tensors = gathered(trained_state(self.trainable, self.optimizers), self.world)
        state = {"best_loss": self.best_loss, "best_step": self.best_step}
        return tensors, {**state, "machine": surroundings(self.model.device, self.world.size)}

    def restore(self, checkpoint: Checkpoint) -> list[str]:
        """Go on from `checkpoint`; returns what of the machine is not as it was saved.

        Where that is nothing, the run ends at the bytes of one that was never interrupted.

        Raises:
            CheckpointError: when it is not of this run's shape.
        """
        load_trained_state(self.trainable, self.optimizers, checkpoint.tensors)
        try:
            self.best_loss = float(checkpoint.state["best_loss"])
            self.best_step = int(checkpoint.state["best_step"])
        except (LookupError, ValueError) as error:
            raise CheckpointError(f"the checkpoint is of another run: {error}") from None
        self.step = checkpoint.step
        if self.graphs is not None:
            self.graphs.forget()
        now = surroundings(self.model.device, self.world.size)
        return changes(checkpoint.state.get("machine"), now)


def _not_finite(step: int, loss: float, norm: float) -> TrainingError:
    return TrainingError(f"step {step}: the loss is {loss}, the gradient's norm {norm}: {_ADVICE}")
