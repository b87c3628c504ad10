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
from mingpt_prefix.errors import MingptPrefixError
from mingpt_prefix.model import GPT2
from mingpt_prefix.plots import save_loss_curve
from mingpt_prefix.prefix import PrefixInfo, save_prefix
from mingpt_prefix.settings import TrainArgs, new_run_folder, resolve, resume
from mingpt_prefix.tables import TEXT_FORMAT
from mingpt_prefix.tasks import Task, load_task
from mingpt_prefix.training import Trainer
from mingpt_prefix.weights import choose_dtype, load_model, save_model

SAVE_EVERY_S = 300.0


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
            if caught or progress.dev_loss is not None or time.monotonic() - saved_at > SAVE_EVERY_S:
                save()
                saved_at = time.monotonic()
            if caught:
                return caught[0]
    return 0


def report(trainer: Trainer, task: Task, run: RunFolder, content: dict, seconds: float) -> None:
    """Load what was kept, score it, and say what was made and what to try next."""
    config = trainer.config
    result = {"steps": trainer.step, "best_step": trainer.best_step, "seconds": round(seconds, 1)}
    result["dev_loss"] = trainer.best_loss
    result |= task.evaluate_saved(trainer, run)
    run.write_run({**content, "result": result})
    title = f"{config.mode}, {config.model} on {', '.join(config.data)}"
    has_picture = save_loss_curve(run.read_log(), run.path / "loss.png", title)
    say(f"Trained for {trainer.step} steps in {seconds:.0f} s; best dev loss {trainer.best_loss:.3f}"
        f" at step {trainer.best_step}.")  # fmt: skip
    task.say_result(content["before"], result)
    made = [run.prefix_file if config.mode == "prefix" else run.model_folder, run.log_file]
    say(f"Written: {', '.join(map(str, made))}"
        + (f", {run.path / 'loss.png'}" if has_picture else " (a picture needs the plots extra)"))  # fmt: skip
    say(task.next_command(run))


def main(argv: Sequence[str] | None = None) -> int:
    """The whole run; returns the exit code."""
    try:
        args = parse(TrainArgs, argv, "train.py", __doc__)
        config, why = resume(args) if args.resume else resolve(args)
        say(why)
        run = RunFolder(args.resume) if args.resume else None
        model = load_base(config)
        task = load_task(config, model)
        trainer = Trainer(config, model, task.train_set, task.dev_set)
        content = {"config": to_json(config), "data": task.fingerprint(), "result": None}
        
    except MingptPrefixError as error:
        return fail("train.py", error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
