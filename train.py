"""Train a prefix, or all weights, of a GPT-2 on tables; or pretrain one on plain text.

python train.py --mode prefix
python train.py --mode finetune --model gpt2 --data e2e
python train.py --mode pretrain --model gpt2 --data english.txt.xz
python train.py --resume runs/prefix-tiny-1
"""

import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from mingpt_prefix.checkpoint import RunFolder, load_newest, save_checkpoint
from mingpt_prefix.config import MODELS, TrainConfig, to_json
from mingpt_prefix.console import fail, parse, say, training_bar
from mingpt_prefix.errors import CheckpointError, MingptPrefixError
from mingpt_prefix.model import GPT2
from mingpt_prefix.plots import save_loss_curve
from mingpt_prefix.prefix import PrefixInfo, load_prefix, save_prefix
from mingpt_prefix.runs import read_run
from mingpt_prefix.settings import TrainArgs, new_run_folder, resolve, resume
from mingpt_prefix.tables import TEXT_FORMAT
from mingpt_prefix.tasks import Score, Task, fingerprint, load_task
from mingpt_prefix.training import Trainer
from mingpt_prefix.weights import load_model, save_model

SAVE_EVERY_S = 300.0
EXAMPLE_TABLE = "name[The Mill], eatType[pub], food[French], area[riverside]"


def load_base(config: TrainConfig) -> GPT2:
    """What the run starts from: in prefix mode frozen in the compute dtype, else in float32."""
    if config.mode == "pretrain" and config.model in MODELS:
        return GPT2(MODELS[config.model]).initialize(config.seed).to(config.device)
    dtype = config.dtype if config.mode == "prefix" else "fp32"
    return load_model(config.model, config.device, dtype, config.attention)


def save_trained(trainer: Trainer, run: RunFolder) -> None:
    """Write what has been trained as it is now: the folded prefix, or the model."""
    config, model = trainer.config, trainer.model
    prefix = trainer.folded_prefix()
    if prefix is None:
        save_model(model, run.model_folder)
        return
    info = PrefixInfo(
        base=model.name,
        fingerprint=model.fingerprint,
        length=config.prefix_length,
        text_format=TEXT_FORMAT,
        placement="prefix",
        training=config.learning_settings(),
    )
    save_prefix(run.prefix_file, prefix.kv, info)


def begin(args: TrainArgs, trainer: Trainer, task: Task) -> tuple[RunFolder, dict]:
    """A new run's folder, or the old one and where it left off; and what run.json says."""
    data = fingerprint(task.train_set)
    if args.resume:
        run, content = RunFolder(args.resume), read_run(args.resume)
        if content.get("data") != data:
            raise CheckpointError(f"{run.path}: the training data is not what the run began with")
        if checkpoint := load_newest(run.checkpoints):
            trainer.restore(checkpoint)
        run.cut_log(trainer.step)
        return run, content
    run = RunFolder.create(args.out or new_run_folder(trainer.config))
    before = task.score(trainer.model.eval(), None)
    say(f"Before training: {before.line}.")
    content = {"config": to_json(trainer.config), "data": data, "before": before.values}
    run.write_run({**content, "result": None})
    return run, content


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM land in the list; a second one ends the process at once."""
    caught: list[int] = []

    def handle(number: int, _frame: object) -> None:
        caught.append(number)
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train(trainer: Trainer, run: RunFolder) -> int:
    """The loop: log, keep the best and the last; returns the signal that stopped it, or 0."""
    pending, saved_at = [], time.monotonic()

    def save() -> None:
        run.log(pending)
        pending.clear()
        save_checkpoint(run.checkpoints, trainer.step, *trainer.state())

    with stop_signals() as caught, training_bar(trainer) as show:
        for progress in trainer.steps():
            pending.append(progress.log_line())
            show(progress)
            if progress.is_best:
                save_trained(trainer, run)
            if (
                caught
                or progress.dev_loss is not None
                or time.monotonic() - saved_at > SAVE_EVERY_S
            ):
                save()
                saved_at = time.monotonic()
            if caught:
                return caught[0]
    if not trainer.dev_set:
        save_trained(trainer, run)
    return 0


def score_kept(trainer: Trainer, task: Task, run: RunFolder) -> Score:
    """The score of what the run has kept, read back from its files."""
    config = trainer.config
    if config.mode == "prefix":
        kept = load_prefix(run.prefix_file).to(trainer.model.device)
        return task.score(trainer.model.eval(), kept)
    return task.score(load_model(run.model_folder, config.device, config.dtype), None)


def report(trainer: Trainer, task: Task, run: RunFolder, content: dict, seconds: float) -> None:
    """Score what was kept, complete run.json, and say what was made and what to try next."""
    config = trainer.config
    score = score_kept(trainer, task, run)
    result = {"steps": trainer.step, "best_step": trainer.best_step, **score.values}
    run.write_run({**content, "result": result})
    title = f"{config.mode}, {config.model} on {', '.join(config.data)}"
    drawn = save_loss_curve(run.read_log(), run.path / "loss.png", title)
    say(f"Trained in {seconds:.0f} s. After training: {score.line}.")
    for line in score.sample:
        say(f"  {line}")
    made = run.prefix_file if config.mode == "prefix" else run.model_folder
    say(f"Written: {made}, log.jsonl and {'loss.png' if drawn else 'run.json'} beside it.")
    if config.mode != "pretrain":
        say(f"Try: python sample.py --run {run.path} --table '{EXAMPLE_TABLE}'")


def main(argv: Sequence[str] | None = None) -> int:
    """The whole run; returns the exit code."""
    try:
        args = parse(TrainArgs, argv, "train.py", __doc__)
        config, why = resume(args) if args.resume else resolve(args)
        say(why)
        model = load_base(config)
        task = load_task(config, model.config)
        trainer = Trainer(config, model, task.train_set, task.dev_set)
        say(trainer.summary())
        run, content = begin(args, trainer, task)
        started = time.monotonic()
        if number := train(trainer, run):
            say(f"Stopped after step {trainer.step}, and saved. To go on:")
            say(f"python train.py --resume {run.path}")
            return 128 + number
        report(trainer, task, run, content, time.monotonic() - started)
    except MingptPrefixError as error:
        return fail("train.py", error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
