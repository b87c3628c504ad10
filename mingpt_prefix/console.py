"""What the scripts share at the terminal: flags, lines, the progress bar."""

import contextlib
import io
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mingpt_prefix import training
from mingpt_prefix.errors import ConfigError

T = TypeVar("T")
_BOX = re.compile(r"[─-╿]+")


def parse(kind: type[T], argv: Sequence[str] | None, prog: str, description: str) -> T:
    """Flags as an instance of the dataclass `kind`; `--help` prints and exits.

    Raises:
        ConfigError: for unknown flags and wrong types, in one line.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                kind,
                prog=prog,
                description=description,
                args=None if argv is None else list(argv),
                config=(tyro.conf.AvoidSubcommands,),
            )
    except SystemExit as end:
        if end.code in (0, None):
            raise
    text = " ".join(_BOX.sub(" ", said.getvalue()).split())
    raise ConfigError(text or "the flags cannot be read")


def say(text: str = "") -> None:
    """A line on stdout, at once."""
    print(text, flush=True)


@contextlib.contextmanager
def training_bar(trainer: "training.Trainer") -> Iterator[Callable[["training.Progress"], None]]:
    """A progress bar with loss, tokens/s and time left; without a terminal, a line now and then."""
    console = Console(stderr=False)
    if not console.is_terminal:
        yield _line_printer(trainer)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    meter = _Meter()
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("training", total=trainer.total_steps, note="")
        bar.update(task, completed=trainer.step)

        def show(progress: "training.Progress") -> None:
            bar.update(task, completed=progress.step, note=meter.read(progress))

        yield show


def _line_printer(trainer: "training.Trainer") -> Callable[["training.Progress"], None]:
    meter, every = _Meter(), max(1, trainer.total_steps // 20)

    def show(progress: "training.Progress") -> None:
        text = meter.read(progress)
        if progress.step % every == 0 or progress.dev_loss is not None:
            say(f"step {progress.step}/{trainer.total_steps}  {text}")

    return show


class _Meter:
    """Loss (smoothed), tokens/s, and the last dev loss, as text."""

    def __init__(self) -> None:
        self.start, self.tokens, self.loss, self.dev = time.monotonic(), 0, None, ""

    def read(self, progress: "training.Progress") -> str:
        self.tokens += progress.tokens
        self.loss = progress.loss if self.loss is None else 0.95 * self.loss + 0.05 * progress.loss
        if progress.dev_loss is not None:
            self.dev = f"  dev loss {progress.dev_loss:.3f}"
        rate = self.tokens / max(time.monotonic() - self.start, 1e-9)
        return f"loss {self.loss:.3f}{self.dev}  {rate:,.0f} tokens/s"


def fail(prog: str, error: Exception) -> int:
    """Say what is wrong in one line on stderr; returns exit code 2."""
    print(f"{prog}: {error}", file=sys.stderr)
    return 2
