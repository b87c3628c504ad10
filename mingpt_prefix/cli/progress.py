"""What train.py prints: a summary, the progress bar, and what a run has come to."""

import contextlib
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from mingpt_prefix import step
from mingpt_prefix.checkpoints.run_folder import RunFolder
from mingpt_prefix.cli.terminal import complain, drop_output, is_terminal, quote, say
from mingpt_prefix.config import TrainConfig
from mingpt_prefix.errors import command
from mingpt_prefix.evaluation.tasks import Score
from mingpt_prefix.model import GPT2
from mingpt_prefix.trainer import Trainer


def summary(trainer: Trainer, why_not_graphs: str | None) -> str:
    """A run in one line: examples, steps, learning rate, what is trained and what is kept.

    `why_not_graphs`: what keeps its steps from being CUDA graphs, in words.
    """
    config = trainer.config
    total = sum(p.numel() for p in trainer.model.parameters())
    what = f"{trainer.n_trained:,} of {total:,} parameters are trained"
    made = [f"a prefix of {config.prefix_length} rows a layer"] if config.has_prefix else []
    made += [f"LoRA of rank {config.lora_rank}"] if config.has_lora else []
    if made:
        what = (
            f"{' and '.join(made)}: {trainer.n_kept:,} parameters are saved"
            f" ({trainer.n_kept / total:.2%} of the model's {total:,})"
        )
    how = ""
    if config.device == "cuda":
        how = " Each step is a CUDA graph."
        if why_not_graphs is not None:
            how = f" Steps are no CUDA graphs: {why_not_graphs}."
    if not trainer.dev_set:
        how += " No table is held out: there is no dev loss, and no score."
    return (
        f"{len(trainer.train_set):,} examples, {trainer.total_steps:,} steps of"
        f" {config.batch_size}, learning rate {config.lr:g}; {what}.{how}"
    )


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Ctrl-C, SIGTERM and SIGHUP land in the list; a second one of the first two ends the process
    at once. A SIGHUP that is ignored, as `nohup` has it, still is. Only the main thread can have
    signals."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    hang_up = getattr(signal, "SIGHUP", None)  # Windows has none
    numbers = [signal.SIGINT, signal.SIGTERM]
    if hang_up is not None and signal.getsignal(hang_up) is not signal.SIG_IGN:
        numbers.append(hang_up)
    terminals = [stream for stream in (sys.stdout, sys.stderr) if is_terminal(stream)]

    def handle(number: int, _frame: object) -> None:
        caught.append(number)
        # A terminal that closes sends several, by way of the shell too.
        signal.signal(number, signal.SIG_IGN if number == hang_up else signal.SIG_DFL)
        for stream in terminals:
            if not stream.isatty():  # it has closed: writing to it would fail, before the run saves
                drop_output(stream)
        print("Stopping after this step; press Ctrl-C again to stop immediately.", file=sys.stderr)

    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def training_bar(trainer: Trainer) -> Iterator[Callable[[step.Progress], None]]:
    """A progress bar with time left, loss and tokens/s, and a line above it for each dev loss;
    without a terminal, a line now and then."""
    console = Console(stderr=False)
    if not console.is_terminal:
        yield _line_printer(trainer)
        return
    # 60 characters are enough: the bar alone shrinks.
    columns = (
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        BarColumn(bar_width=None),
        TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
        TextColumn("left  {task.fields[note]}"),
    )
    meter = _Meter()
    with Progress(*columns, console=console, expand=True) as bar:
        task = bar.add_task("training", total=trainer.total_steps, note="")
        bar.update(task, completed=trainer.step)

        def show(progress: step.Progress) -> None:
            loss, dev, rate = meter.read(progress)
            bar.update(task, completed=progress.step, note=f"{loss}  {rate}")
            if dev:
                bar.console.print(f"step {progress.step}  {loss}{dev}  {rate}", highlight=False)

        yield show


def _line_printer(trainer: Trainer) -> Callable[[step.Progress], None]:
    meter, every = _Meter(), max(1, trainer.total_steps // 20)

    def show(progress: step.Progress) -> None:
        loss, dev, rate = meter.read(progress)
        if dev or progress.step % every == 0:
            say(f"step {progress.step}/{trainer.total_steps}  {loss}{dev}  {rate}")

    return show


class _Meter:
    """Loss (smoothed), the dev loss if it is fresh, and tokens/s, as text."""

    def __init__(self) -> None:
        self.start, self.tokens, self.loss = time.monotonic(), 0, None

    def read(self, progress: step.Progress) -> tuple[str, str, str]:
        self.tokens += progress.tokens
        self.loss = progress.loss if self.loss is None else 0.95 * self.loss + 0.05 * progress.loss
        dev = "" if progress.dev_loss is None else f"  dev loss {progress.dev_loss:.3f}"
        rate = self.tokens / max(time.monotonic() - self.start, 1e-9)
        return f"loss {self.loss:.3f}", dev, f"{rate:,.0f} tokens/s"


def warn_of_changes(changed: Sequence[str]) -> None:
    """On stderr: what of the machine is not as it was when a resumed run was saved."""
    what = f"since it was saved this has changed: {'; '.join(changed)}"
    complain(f"{what}. The result may differ in its bytes.")


def resume_command(folder: Path) -> str:
    """The command that goes on with the run or sweep in `folder`, to be pasted into a shell."""
    return f"{command('train')} --resume {shlex.quote(str(folder))}"


def sample_command(config: TrainConfig, model: GPT2, run: Path, example: str) -> str:
    """The command that writes the sentence for the table `example` by a run, to be pasted into a
    shell; a base that is found by no name is named."""
    is_folder = config.is_frozen and not model.name
    base = f" --model {shlex.quote(config.model)}" if is_folder else ""
    path = shlex.quote(str(run))
    return f"{command('sample')} --run {path}{base} --table {quote(example)}"


def rise(log: Sequence[dict]) -> str:
    """Whether the losses of log.jsonl's lines ended above where they began, in words, or ""."""
    losses = [line["loss"] for line in log]
    last = losses[-max(1, len(losses) // 10) :]
    end = sum(last) / len(last) if last else 0.0
    if not losses or end < 1.1 * losses[0]:  # a tenth is chance
        return ""
    return f"The loss began at {losses[0]:.3f} and ended at {end:.3f}: a lower --lr may learn more."


def say_result(
    trainer: Trainer,
    score: Score,
    seconds: float,
    run: RunFolder,
    log: Sequence[dict],
    drawn: bool,
    example: str,
) -> None:
    """What a run has come to: its score, a sample, what was written, and what to try next.

    `log`: the lines of its log.jsonl; `drawn`: whether there is a picture; `example`: a table as
    sample.py takes it.
    """
    config = trainer.config
    after = f" After training: {score.line}." if score.line else ""
    say(f"Trained in {seconds:.0f} s.{after}")
    for line in score.sample:
        say(f"  {line}")
    if risen := rise(log):
        say(risen)
    made = [run.lora_file] if config.has_lora else []
    made += [run.prefix_file] if config.has_prefix else []
    written = " and ".join(map(str, made or [run.model_folder]))
    also = f"log.jsonl and {'loss.png' if drawn else 'run.json'}"
    say(f"Saved {written}, with {also} in the same folder.")
    if config.mode != "pretrain":
        say(f"Next: {sample_command(config, trainer.model, run.path, example)}")
