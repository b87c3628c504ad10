"""Teaching a model when to call which prefix: embeddings of calls are learned, all else is frozen.

    python -m mingpt_prefix.call_training prefixes --data restaurants=sample films=films.jsonl
    python -m mingpt_prefix.call_training prefixes --data films=films.jsonl --text english.txt.xz

A table of a task, also its first two slots or more, is to be followed by the call of its prefix,
which trains the call's rows of the head. Behind the call the model is to say what it would with the
end token in its place, as behind an infix that was chosen by hand: that trains the one row that is
the embedding too. What calls nothing: the inside of a slot, the text that the frozen model writes
by itself, and --text. In front of a call everything is frozen, so that the model's states there are
computed once.
"""

import dataclasses
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import tyro

from mingpt_prefix.accel.prepacked_linear import prepack
from mingpt_prefix.bank.calls import CallingGPT2
from mingpt_prefix.bank.calls_file import Call, save_calls
from mingpt_prefix.bank.store import CALLS_FILE, Bank, base_to_load, named_sources, read_bank
from mingpt_prefix.batch import Encoded, PrefixKV, batches
from mingpt_prefix.call_training.lessons import (
    Lesson,
    States,
    file_texts,
    own_texts,
    states,
    table_lesson,
)
from mingpt_prefix.call_training.losses import Ends, behind_loss, call_loss, right_calls
from mingpt_prefix.checkpoints.pretrained import load_model
from mingpt_prefix.cli.terminal import parse, run_script, say
from mingpt_prefix.config import MAX_SEED, flag_name
from mingpt_prefix.data.datasets import Split, load_split
from mingpt_prefix.data.tokenizer import Tokenizer, tokenizer_of
from mingpt_prefix.errors import ConfigError, TrainingError, shown
from mingpt_prefix.model import GPT2
from mingpt_prefix.trainer import check_positions

_QUIET_AT_ONCE = 8_192
_DROPOUT = 0.1  # of the states at ends of slots
_EVERY_TABLE = 8  # of which the inside of the slots is looked at
_QUIET_ROWS, _QUIET_STD = 16, 0.02  # of each call


@dataclass(frozen=True)
class Settings:
    """How calls are learned: steps of AdamW, each of `batch_size` sentences, at a rate that falls
    linearly from `lr` to 0. `own_texts`: how many the model writes, to call nothing in them."""

    steps: int = 800
    batch_size: int = 8
    lr: float = 0.02
    own_texts: int = 768
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "lr", "own_texts"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{flag_name(name)} must be positive, not {getattr(self, name)}")
        if not 0 <= self.seed <= MAX_SEED:
            raise ConfigError(f"seed must lie in 0 to {MAX_SEED}, not {self.seed}")


def read_lessons(
    tokenizer: Tokenizer, bank: Bank, base: GPT2, sources: Sequence[tuple[str, str]], split: Split
) -> list[Lesson]:
    """The lessons of one split of each prefix's data, every other table as people type it.

    Raises DataError when data is missing or bad.
    """
    callees, lessons = bank.callees(base), []
    for name, source in sources:
        how = (callees[name].text_format, callees[name].token, bank.names.index(name))
        lessons += [
            table_lesson(tokenizer, example, *how, bare=number % 2 == 1)
            for number, example in enumerate(load_split([source], split))
        ]
    return lessons


def quiet_states(
    base: GPT2, eos: int, lessons: Sequence[Lesson], texts: Sequence[list[int]], own: int, seed: int
) -> States:
    """The states where nothing is called: inside slots, in `texts`, and in `own` texts of the
    model's."""
    slots = {tuple(lesson.table): lesson.inside for lesson in lessons[::_EVERY_TABLE]}
    all_texts = [*texts, *own_texts(base, eos, texts, own, seed)]
    places = [*slots.values(), *(range(len(ids)) for ids in all_texts)]
    return states(base, [*slots, *all_texts], places)


def train_calls(
    model: CallingGPT2,
    prefix: PrefixKV,
    lessons: Sequence[Lesson],
    ends: Ends,
    quiet: States,
    settings: Settings,
) -> Iterator[float]:
    """Train `model.rows` and `model.quiet`; yields each step's loss, of the calls and of what is
    said behind them.

    Raises:
        TrainingError: when a loss is not finite.
    """
    learned = [model.rows.requires_grad_(), model.quiet.requires_grad_()]
    optimizer = torch.optim.AdamW(learned, lr=settings.lr, weight_decay=0.0)
    draw, eos = torch.Generator().manual_seed(settings.seed), model.config.eos_token_id
    order = batches(len(lessons), settings.batch_size, settings.seed)
    try:
        for step in range(settings.steps):
            some = torch.randint(len(quiet), (_QUIET_AT_ONCE,), generator=draw)
            chosen = [lessons[i] for i in next(order)]
            loss = call_loss(model, ends.with_dropout(_DROPOUT, draw), quiet[some])
            loss = loss + behind_loss(model, prefix, chosen, eos)
            if not torch.isfinite(loss):
                raise TrainingError(f"step {step + 1}: the loss is {float(loss)}: try a lower --lr")
            optimizer.param_groups[0]["lr"] = settings.lr * (1 - step / settings.steps)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            yield float(loss.detach())
    finally:
        for rows in learned:
            rows.requires_grad_(False)


def teach(
    folder: Path,
    sources: Sequence[tuple[str, str]],
    files: Sequence[Path] = (),
    settings: Settings | None = None,
    model_name: str | None = None,
) -> None:
    """Learn the calls of the bank in `folder` by these data, and write them into it.

    Raises:
        PrefixError, ConfigError, DataError, WeightsError, TrainingError: for what cannot be read,
            does not fit together, or is not learned.
    """
    settings, bank = settings or Settings(), read_bank(folder)
    if sorted(name for name, _ in sources) != list(bank.names):
        raise ConfigError(f"--data: each of the bank's prefixes, once: {', '.join(bank.names)}")
    base = load_model(base_to_load(bank, model_name), dtype="fp32")
    tokenizer, prefix = tokenizer_of(base.config), bank.packed().to(base.device)
    prepack(base, backward=True)
    # A new start: rows that were learned before might be of other prefixes.
    rows = dataclasses.replace(bank, calls={}).calling(base).rows
    draw = torch.Generator().manual_seed(settings.seed)
    shape = len(rows), _QUIET_ROWS, base.config.n_embd
    model = CallingGPT2(base, rows, quiet=_QUIET_STD * torch.randn(shape, generator=draw))
    lessons = read_lessons(tokenizer, bank, base, sources, "train")
    texts = file_texts(tokenizer, files)
    check_positions(0, [Encoded(torch.tensor(lesson.ids), 1) for lesson in lessons], base)
    say(f"{len(lessons):,} tables and sentences; the model is writing text that calls nothing.")
    ends = Ends.of(base, lessons, shorter=True)
    quiet = quiet_states(base, tokenizer.eos, lessons, texts, settings.own_texts, settings.seed)
    every = max(1, settings.steps // 10)
    for step, loss in enumerate(train_calls(model, prefix, lessons, ends, quiet, settings), 1):
        if step % every == 0:
            say(f"step {step}/{settings.steps}  loss {loss:.3f}")
    calls = zip(bank.names, map(Call, model.rows, model.quiet), strict=True)
    save_calls(folder / CALLS_FILE, base, dict(calls), asdict(settings))
    if dev := read_lessons(tokenizer, bank, base, sources, "dev"):
        share = right_calls(model, Ends.of(base, dev))
        say(f"The right call at the end of {share:.1%} of the dev tables.")


@dataclass(frozen=True)
class Args:
    """Flags of the command."""

    bank: tyro.conf.Positional[Path]
    """the bank's folder"""
    data: tuple[str, ...]
    """NAME=SOURCE for each prefix of the bank: its task's data, as train.py --data takes it"""
    text: tuple[Path, ...] = ()
    """.txt or .txt.xz: prose in which nothing is called"""
    model: str | None = None
    """the model the bank was made for: needed for a folder, a known name is found by itself"""
    steps: int = Settings.steps
    batch_size: int = Settings.batch_size
    lr: float = Settings.lr
    own_texts: int = Settings.own_texts
    """so many texts are written by the model itself, to learn to call nothing there"""
    seed: int = 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""

    def run() -> int:
        args = parse(Args, argv, "mingpt_prefix.call_training", __doc__)
        settings = Settings(args.steps, args.batch_size, args.lr, args.own_texts, args.seed)
        sources = named_sources(args.data, "--data")
        teach(args.bank, sources, args.text, settings, args.model)
        say(f"Saved {shown(args.bank / CALLS_FILE)}.")
        return 0

    return run_script("mingpt_prefix.call_training", run)


if __name__ == "__main__":
    sys.exit(main())
