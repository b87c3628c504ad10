"""The runs of a sweep in their folders: made, brought to where they were saved, and trained.

    shared = Shared(model, world)
    make_folder(folder, config, shared)
    members, changed = open_members(folders, shared)
    stopped_by = train_members(members, stop=lambda: 0, show=print)

A member's folder is that of a run of its own, and has "stopped" in its run.json if its loss or its
gradient was not finite.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from mingpt_prefix.accel.distributed import World
from mingpt_prefix.accel.prepacked_linear import prepack
from mingpt_prefix.checkpoints.checkpoint import (
    SAVE_EVERY_S,
    drop_later,
    load_newest,
    save_checkpoint,
)
from mingpt_prefix.checkpoints.resuming import check_origin, config_from_json, restore, run_state
from mingpt_prefix.checkpoints.run_folder import RunFolder, read_run
from mingpt_prefix.config import TrainConfig
from mingpt_prefix.evaluation.tasks import Score, Task, load_task
from mingpt_prefix.evaluation.training_run import first_content, origin, save_trained
from mingpt_prefix.model import GPT2
from mingpt_prefix.step import PendingStep, Progress
from mingpt_prefix.sweep.together import Stopped, member_trainer, rounds
from mingpt_prefix.trainer import Trainer


class Shared:
    """What the members of a sweep have in common: the frozen model, and tasks."""

    def __init__(self, model: GPT2, config: TrainConfig, world: World) -> None:
        self.model, self.world = model, world
        model.requires_grad_(False)
        model.dropout, model.grad_checkpoint = 0.0, config.grad_checkpoint
        prepack(model, backward=True)
        self._tasks: dict[tuple, SharedTask] = {}

    def task(self, config: TrainConfig) -> "SharedTask":
        """A member's task, which others of the same data may have too. Raises as `load_task`."""
        drawn_by = config.seed if config.limit_examples else None
        spelled = (config.placement, config.input_template, config.text_field)
        key = (config.data, config.limit_examples, drawn_by, *spelled)
        if key not in self._tasks:
            self._tasks[key] = SharedTask(load_task(config, self.model.config), self.model)
        return self._tasks[key]

    @property
    def notes(self) -> list[str]:
        """What there is to tell of the tasks so far, each once."""
        return list(dict.fromkeys(each.task.note for each in self._tasks.values()))

    def completed(self, config: TrainConfig) -> TrainConfig:
        """`config` with what its data settles."""
        return dataclasses.replace(config, slots=self.task(config).task.slots)

    def trainer(self, config: TrainConfig) -> Trainer:
        """A member's trainer, at its beginning. Raises as `member_trainer`."""
        task = self.task(config).task
        return member_trainer(config, self.model, task.train_set, task.dev_set)


class SharedTask:
    """A task, and what is found out once about it."""

    def __init__(self, task: Task, model: GPT2) -> None:
        self.task, self.model = task, model

    @cached_property
    def origin(self) -> dict[str, str]:
        return origin(self.task, self.model)

    @cached_property
    def bare_score(self) -> Score:
        """Of the model without a prefix."""
        return self.task.score(self.model.eval(), None)


@dataclass(eq=False)
class Member:
    """A run that is trained with others. `seconds`: its share of the time so far."""

    run: RunFolder
    trainer: Trainer
    task: Task
    seconds: float
    was_resumed: bool
    lines: list[dict] = field(default_factory=list)  # not yet logged

    def note(self, step: Progress | Stopped, seconds: float) -> None:
        """Keep what came of a step: a line of the log, what is best so far, or why it stopped."""
        self.seconds += seconds
        if isinstance(step, Stopped):
            self._log()
            content = {**read_run(self.run.path), "stopped": dataclasses.asdict(step)}
            self.run.write_run(content)
            return
        self.lines.append({**step.log_line(), "seconds": round(self.seconds, 3)})
        if step.is_best:
            save_trained(self.trainer, self.run)

    def save(self, world: World) -> None:
        """Write the log and a checkpoint."""
        self._log()
        save_checkpoint(self.run.checkpoints, self.trainer.step, *run_state(self.trainer, world))

    def _log(self) -> None:
        self.run.log(self.lines)
        self.lines = []


def make_folder(folder: Path, config: TrainConfig, shared: Shared) -> None:
    """The folder of a run that has not begun. Raises as `RunFolder.create`."""
    RunFolder.create(folder, first_content(config, shared.task(config).origin))


def score_before(folder: Path, shared: Shared) -> None:
    """Write into run.json how good the model is at the member's task before training, if it does
    not say so yet."""
    content = read_run(folder)
    if "before" in content:
        return
    config = config_from_json(content["config"])
    task = shared.task(config)
    score = task.bare_score
    if config.init_prefix:
        start = shared.trainer(config).folded().prefix
        score = task.task.score(shared.model.eval(), start)
    RunFolder(folder).write_run({**content, "before": score.values})


def is_over(folder: Path) -> bool:
    """Whether nothing is left to do in a member's folder. Raises as `read_run`."""
    content = read_run(folder)
    return content.get("result") is not None or "stopped" in content


def open_members(folders: Sequence[Path], shared: Shared) -> tuple[list[Member], list[str]]:
    """The runs in `folders`, where they were saved, and what of the machine has changed since.

    All go on from one step, the last that all have saved: how a step is rounded depends on what it
    is packed with. One that stopped before it is left out.

    Raises:
        CheckpointError: as `resume_run`.
    """
    found, changed = [], []
    for folder in folders:
        content = read_run(folder)
        config = config_from_json(content["config"])
        check_origin(folder, shared.task(config).origin)
        newest = load_newest(RunFolder(folder).checkpoints)
        last = content["stopped"]["step"] - 1 if "stopped" in content else math.inf
        found.append((folder, shared.trainer(config), newest, last))
    saved = [
        0 if newest is None else newest.step
        for _, trainer, newest, last in found
        if last == math.inf and (newest is None or newest.step < trainer.total_steps)
    ]
    common = min(saved, default=math.inf)
    members = []
    for folder, trainer, newest, last in found:
        if last < common:
            continue
        if newest is not None and newest.step > common:
            newest = load_newest(RunFolder(folder).checkpoints, common) or newest
        if newest is not None and common > 0:
            changed += restore(trainer, newest, shared.world)
        run, task = RunFolder.reopen(folder, trainer.step), shared.task(trainer.config).task
        # Else one that this member alone has would outlive one that all have.
        drop_later(run.checkpoints, trainer.step)
        members.append(Member(run, trainer, task, run.logged_seconds(), trainer.step > 0))
    return members, sorted(set(changed))


def train_members(
    members: Sequence[Member],
    world: World,
    stop: Callable[[], int],
    show: Callable[[Progress], None],
) -> int:
    """Train to the end of all, saving all at once; returns what `stop` said, if it was not 0.

    `show` is given the mean of a round as if it were one step.
    """
    of_trainer = {member.trainer: member for member in members}
    began = saved_at = time.monotonic()
    for took in rounds(list(of_trainer)):
        now = time.monotonic()
        for trainer, step in took.items():
            of_trainer[trainer].note(step, (now - began) / len(took))
        began, number = now, stop()
        steps = {each: step for each, step in took.items() if isinstance(step, Progress)}
        is_due = len(steps) < len(took) or any(
            s.dev_loss is not None or s.is_best for s in steps.values()
        )
        if is_due or number or now - saved_at > SAVE_EVERY_S:
            for trainer in steps:
                of_trainer[trainer].save(world)
            saved_at = now
        if steps:
            show(_mean(list(steps.values())))
        if number:
            return number
    return 0


def _mean(steps: Sequence[Progress]) -> Progress:
    """Of a round: all tokens, and the means of the losses."""
    loss = torch.tensor([sum(step.loss for step in steps) / len(steps), 0.0])
    dev = [step.dev_loss for step in steps if step.dev_loss is not None]
    return dataclasses.replace(
        max(steps, key=lambda step: step.step),
        tokens=sum(step.tokens for step in steps),
        pending=PendingStep(loss),
        dev_loss=sum(dev) / len(dev) if dev else None,
    )
