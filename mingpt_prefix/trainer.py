"""Training: one loop for adapters, full fine-tuning and pretraining.

    trainer = Trainer(config, gradients, stepper, train_set, dev_set)
    for progress in trainer.steps():
        ...

The modes differ only in what is trained: a prefix, LoRA, or the model. A run is a function of its
settings: a step's batch, dropout and learning rate depend only on (seed, step), which makes
resuming exact. `evaluation.training_run.make_trainer` assembles the parts.
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence

from mingpt_prefix.adaptation import Adaptation, folded
from mingpt_prefix.batch import Encoded, batches
from mingpt_prefix.config import TrainConfig
from mingpt_prefix.errors import ConfigError, TrainingError
from mingpt_prefix.model import GPT2
from mingpt_prefix.optim import learning_rate
from mingpt_prefix.step import ADVICE, Progress, Stepper, TrainStep

MAX_DEV = 1_000  # examples in a dev loss, evenly spaced: more would change it little


class Trainer:
    """One run: what is trained, by which steps, and its progress.

    Raises:
        ConfigError: if an example does not fit the model's positions.
    """

    def __init__(
        self,
        config: TrainConfig,
        gradients: TrainStep,
        stepper: Stepper,
        train_set: Sequence[Encoded],
        dev_set: Sequence[Encoded],
    ) -> None:
        self.config, self.gradients, self.stepper = config, gradients, stepper
        self.model, self.trainable = gradients.model, gradients.trainable
        self.train_set, self.dev_set = train_set, dev_set[:: -(-len(dev_set) // MAX_DEV) or 1]
        self.step, self.best_loss, self.best_step = 0, math.inf, 0
        self._unread: deque[Progress] = deque()
        per_epoch = -(-len(train_set) // config.batch_size)
        self.total_steps = config.max_steps or math.ceil(config.epochs * per_epoch)
        if config.mode != "pretrain":  # its windows always fit
            rows = config.prefix_length if config.has_prefix else 0
            check_positions(rows, (*self.train_set, *self.dev_set), self.model)

    @property
    def n_trained(self) -> int:
        """How many parameters are trained: the adapters', or the model's."""
        return sum(p.numel() for p in self.trainable.parameters())

    @property
    def n_kept(self) -> int:
        """How many numbers the run saves: the folded adapters', or the model's."""
        kept = self.folded().tensors()
        return sum(tensor.numel() for tensor in kept) if kept else self.n_trained

    def batches(self) -> Iterator[list[Encoded]]:
        """The examples of each remaining step."""
        config = self.config
        order = batches(len(self.train_set), config.batch_size, config.seed, self.step)
        return ([self.train_set[i] for i in indices] for indices in order)

    def steps(self) -> Iterator[Progress]:
        """Train to the end from the current step; yields each step as soon as it is launched.

        Its loss may arrive up to `stepper.lag` steps later; `synchronize` waits for it.

        Raises:
            TrainingError: if a loss or a gradient is not finite; that step changed nothing.
        """
        to_come, batches_to_come = range(self.step, self.total_steps), self.batches()

        def prepare(step: int) -> tuple[int, float, int, object]:
            examples = next(batches_to_come)
            lr = learning_rate(step, self.total_steps, self.config)
            return step, lr, sum(len(e.ids) for e in examples), self.stepper.prepare(examples, lr)

        for step, lr, tokens, work in self.stepper.prefetch(prepare, to_come):
            pending = self.stepper.begin(work, self.gradients.seed(step))
            progress = Progress(step + 1, lr, tokens, pending)
            self.step = step + 1
            self._unread.append(progress)
            self._read_all_but(self.stepper.lag)
            if self._is_judged(self.step):
                self._judge(progress)
            yield progress

    def synchronize(self) -> None:
        """Wait for the losses of all launched steps. Raises like `steps`."""
        self._read_all_but(0)

    def _read_all_but(self, count: int) -> None:
        while len(self._unread) > count:
            progress = self._unread.popleft()
            try:
                _ = progress.loss
            except TrainingError:
                self.step = progress.step - 1  # no parameter has changed since
                raise

    def _is_judged(self, step: int) -> bool:
        """Whether a dev loss follows this step, or the run ends with it."""
        eval_every = math.ceil(self.total_steps / self.config.evals)
        return step % eval_every == 0 or step == self.total_steps

    def _judge(self, progress: Progress) -> None:
        """Compute the dev loss after the step. Raises like `steps`."""
        self.synchronize()
        if not self.dev_set:
            progress.is_best = progress.step == self.total_steps
            return
        progress.dev_loss = self.dev_loss()
        if not math.isfinite(progress.dev_loss):
            what = f"the dev loss is {progress.dev_loss}"
            raise TrainingError(f"step {progress.step}: {what}: {ADVICE}")
        progress.is_best = progress.dev_loss < self.best_loss
        if progress.is_best:
            self.best_loss, self.best_step = progress.dev_loss, progress.step

    def dev_loss(self) -> float:
        """The mean loss over the dev set's targets, in nats."""
        self.model.eval()
        return self.gradients.mean_loss(self.dev_set, self.folded())

    def folded(self) -> Adaptation:
        """What has been learned beside the model, as it would be saved now."""
        return folded(self.gradients.own_adapters)

    def start_from(self, step: int, best_loss: float, best_step: int) -> None:
        """Continue after `step`, with the parameters and optimizer states as they are now."""
        self.step, self.best_loss, self.best_step = step, best_loss, best_step
        self.stepper.forget()


def check_positions(rows: int, examples: Sequence[Encoded], model: GPT2) -> None:
    """Raises ConfigError if the longest example does not fit behind `rows` of a prefix."""
    longest, limit = max(examples, key=lambda e: len(e.ids)), model.config.n_positions
    if rows + len(longest.ids) > limit:
        where = f" ({longest.where})" if longest.where else ""
        raise ConfigError(
            f"{rows} prefix rows and the longest sequence of {len(longest.ids)} tokens{where} pass"
            f" the model's limit of {limit} positions"
        )
