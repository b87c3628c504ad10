"""A training run: what it makes of its flags, the loop, and what it leaves behind."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mingpt_prefix.accel.cuda_graphs import why_not_graphs
from mingpt_prefix.accel.distributed import World, join
from mingpt_prefix.accel.environment import keep_freed_memory
from mingpt_prefix.accel.fsdp import whole_model
from mingpt_prefix.checkpoints.checkpoint import SAVE_EVERY_S, save_checkpoint
from mingpt_prefix.checkpoints.pretrained import load_base
from mingpt_prefix.checkpoints.resuming import resume_run, run_state
from mingpt_prefix.checkpoints.run_folder import RunFolder, next_folder
from mingpt_prefix.cli.plots import save_loss_curve, title_of
from mingpt_prefix.cli.progress import (
    resume_command,
    say_result,
    stop_signals,
    summary,
    training_bar,
    warn_of_changes,
)
from mingpt_prefix.cli.settings import repeat, resolve, resume
from mingpt_prefix.cli.sweep import is_sweep, run_sweep
from mingpt_prefix.cli.tensorboard import open_board, wants_board
from mingpt_prefix.cli.terminal import say
from mingpt_prefix.cli.train_args import TrainArgs
from mingpt_prefix.config import TrainConfig
from mingpt_prefix.errors import AdapterError, CheckpointError, ConfigError, WeightsError
from mingpt_prefix.evaluation.tasks import Task, load_task
from mingpt_prefix.evaluation.training_run import (
    end_run,
    first_content,
    make_trainer,
    origin,
    save_trained,
)
from mingpt_prefix.trainer import Trainer


def begin(
    config: TrainConfig, args: TrainArgs, trainer: Trainer, task: Task, world: World
) -> RunFolder | None:
    """A new run's folder, with the score before training; or the old one, where it left off.

    None on every rank but the first, which alone writes.
    """
    began_with = origin(task, trainer.model)
    if args.resume:
        run, changed = resume_run(args.resume, began_with, trainer, world)
        if changed and run is not None:
            warn_of_changes(changed)
        return run
    model = whole_model(trainer.model, world)
    if not world.is_main:
        return None
    folder = args.out or next_folder(f"{config.mode}-{Path(config.model).name}")
    content = first_content(config, began_with)
    run = RunFolder.create(folder, content)
    start = trainer.folded().prefix if config.init_prefix else None
    before = task.score(model.eval(), start)
    run.write_run({**content, "before": before.values})
    if before.line:
        say(f"Before training: {before.line}.")
    return run


def train(
    trainer: Trainer, run: RunFolder | None, world: World, add_to_board: Callable[[dict], None]
) -> int:
    """The loop: log, keep the best and the last; returns the signal that stopped it, or 0."""
    unlogged, lines, saved_at = deque(), [], time.monotonic()
    started = saved_at - (run.logged_seconds() if run is not None else 0.0)
    with stop_signals() as caught, training_bar(trainer) as show:
        for progress in trainer.steps():
            # All ranks save and stop at one step.
            number = world.largest(caught[0] if caught else 0)
            waited = world.largest(time.monotonic() - saved_at > SAVE_EVERY_S)
            is_due = progress.dev_loss is not None or progress.is_best or bool(waited or number)
            if is_due:
                trainer.synchronize()
            unlogged.append(progress)
            while len(unlogged) > (0 if is_due else trainer.stepper.lag):
                show(unlogged[0])
                seconds = round(time.monotonic() - started, 3)
                lines.append({**unlogged.popleft().log_line(), "seconds": seconds})
                add_to_board(lines[-1])
            if progress.is_best:
                save_trained(trainer, run, world)
            if is_due:
                state = run_state(trainer, world)  # on all ranks, which may hold parts of it
                if run is not None:
                    run.log(lines)
                    save_checkpoint(run.checkpoints, trainer.step, *state)
                lines, saved_at = [], time.monotonic()
            if number:
                return number
    return 0


def report(trainer: Trainer, task: Task, run: RunFolder, seconds: float, resumed: bool) -> None:
    """Score what was kept, complete run.json, and say what was made and what to try next."""
    score = end_run(trainer, task, run, None if resumed else seconds)
    log = run.read_log()
    drawn = save_loss_curve(log, run.picture, title_of(trainer.config))
    say_result(trainer, score, seconds, run, log, drawn, task.example)


def run_training(args: TrainArgs, world: World) -> int:
    if args.resume and args.config:
        raise ConfigError("--config and --resume exclude each other")
    choose = resume if args.resume else repeat if args.config else resolve
    config, why = choose(args)
    has_board = wants_board(args)
    say(why)
    if config.device == "cpu":
        keep_freed_memory()
    model = load_base(config)
    task = load_task(config, model.config)
    if task.note:
        say(task.note)
    config = replace(config, slots=task.slots)
    trainer = make_trainer(config, model, task.train_set, task.dev_set, world, args.graphs)
    why_not = "they are not wanted" if not args.graphs else why_not_graphs(config, world)
    say(summary(trainer, why_not))
    run = begin(config, args, trainer, task, world)
    started = time.monotonic()
    try:
        with open_board(run if has_board else None, trainer.step) as add_to_board:
            number = train(trainer, run, world, add_to_board)
    except (AdapterError, CheckpointError, WeightsError) as error:  # what was saved before stays
        if run is None:
            raise
        raise CheckpointError(f"{error}; to continue: {resume_command(run.path)}") from None
    if run is not None and number:
        say(f"Stopped after step {trainer.step}, and saved. To continue:")
        say(resume_command(run.path))
    elif run is not None:
        report(trainer, task, run, time.monotonic() - started, resumed=args.resume is not None)
    return 128 + number if number else 0


def start(args: TrainArgs) -> int:
    """The whole run, by its flags; returns the exit code."""
    with join(args.device, args.shard) as world:
        program = run_sweep if args.sweep or is_sweep(args.resume) else run_training
        return program(args, world)
