"""Teaching a model when to call which prefix: the calls' embeddings are learned, all else is frozen.

    python -m mingpt_prefix.call_training prefixes --data restaurants=sample films=films.jsonl
    python -m mingpt_prefix.call_training prefixes --data films=films.jsonl --text english.txt.xz

A table of a task is to be followed by the call of its prefix, and the call by the table's sentence:
the first trains the call's row of the head, the second the same row as an embedding. What calls
nothing: the inside of a slot, the text that the frozen model writes by itself, and --text.
"""

import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import tyro

from mingpt_prefix.bank import CALLS_FILE, Bank, known_base, named_sources, read_bank
from mingpt_prefix.batch import PrefixKV, batches
from mingpt_prefix.call_lessons import (
    Lesson,
    own_lessons,
    pack_lessons,
    table_lesson,
    text_lessons,
)
from mingpt_prefix.calls import CallingGPT2
from mingpt_prefix.calls_file import save_calls
from mingpt_prefix.console import parse, run_script, say
from mingpt_prefix.data import load_split
from mingpt_prefix.errors import ConfigError, TrainingError
from mingpt_prefix.folder import shown
from mingpt_prefix.model import GPT2
from mingpt_prefix.packed import pack
from mingpt_prefix.step import SummedLoss
from mingpt_prefix.text import documents
from mingpt_prefix.tokenizer import Tokenizer, load_tokenizer
from mingpt_prefix.weights import load_model

_OWN_TEXTS = 256  # that the model writes by itself
_DOCUMENTS, _DOCUMENT_CHARS = 2_000, 1_000  # of --text: more say little more


@dataclass(frozen=True)
class Settings:
    """How calls are learned: steps of AdamW, each of `batch_size` tables and as many texts, at a
    rate that falls linearly from `lr` to 0."""

    steps: int = 400
    batch_size: int = 8
    lr: float = 0.02
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "lr"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name.replace('_', '-')} must be positive")
        if self.seed < 0:
            raise ConfigError(f"seed must not be negative, not {self.seed}")


def read_tables(
    tokenizer: Tokenizer, bank: Bank, model: GPT2, sources: Sequence[tuple[str, str]], split: str
) -> list[Lesson]:
    """The table lessons of one split of each prefix's data, every other table as people type it.

    Raises DataError when data is missing or bad.
    """
    callees, lessons = bank.callees(model), []
    for name, source in sources:
        how = (callees[name].text_format, callees[name].token, bank.names.index(name))
        lessons += [
            table_lesson(tokenizer, example, *how, bare=number % 2 == 1)
            for number, example in enumerate(load_split([source], split))
        ]
    return lessons


def read_texts(tokenizer: Tokenizer, base: GPT2, files: Sequence[Path], seed: int) -> list[Lesson]:
    """Lessons in which nothing is called: of `files`, and of what the model goes on with."""
    found = (text for file in files for text in documents(file))
    texts = [text[:_DOCUMENT_CHARS] for text in itertools.islice(found, _DOCUMENTS)]
    lessons = text_lessons(tokenizer, texts)
    starts = [lesson.ids[: 4 + number % 24] for number, lesson in enumerate(lessons[:_OWN_TEXTS])]
    starts += [[tokenizer.eos]] * _OWN_TEXTS
    return lessons + own_lessons(base, starts, tokenizer.eos, seed)


def train_calls(
    model: CallingGPT2,
    prefix: PrefixKV,
    tables: Sequence[Lesson],
    texts: Sequence[Lesson],
    settings: Settings,
) -> Iterator[float]:
    """Train `model.rows`; yields each step's loss, in nats a token.

    Raises:
        TrainingError: when a loss is not finite.
    """
    rows = model.rows.requires_grad_()
    optimizer = torch.optim.AdamW([rows], lr=settings.lr, weight_decay=0.0)
    loss_of = SummedLoss(model, autocasts=False)
    orders = [
        batches(len(lessons), settings.batch_size, settings.seed) for lessons in (tables, texts)
    ]
    try:
        for step in range(settings.steps):
            chosen = [tables[i] for i in next(orders[0])] + [texts[i] for i in next(orders[1])]
            batch = pack_lessons(chosen, model.device)
            loss = loss_of(batch, prefix) / batch.n_targets
            if not torch.isfinite(loss):
                raise TrainingError(f"step {step + 1}: the loss is {float(loss)}: try a lower --lr")
            optimizer.param_groups[0]["lr"] = settings.lr * (1 - step / settings.steps)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            yield float(loss)
    finally:
        rows.requires_grad_(False)


@torch.no_grad()
def right_calls(model: CallingGPT2, lessons: Sequence[Lesson]) -> float:
    """The share of table lessons at whose end the likeliest token is the right call."""
    found = []
    for lesson in lessons:
        (logits,) = model.logits([lesson.ids[: lesson.called_at]])
        found.append(int(logits[-1].argmax()) == lesson.ids[lesson.called_at])
    return sum(found) / len(found)


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
    base = load_model(known_base(bank, model_name))
    pack(base, backward=True)
    calling = bank.calling(base)
    model = CallingGPT2(base, calling.rows)
    if base.config.tokenizer is None:
        raise ConfigError("the model's config.json names no tokenizer")
    tokenizer, prefix = load_tokenizer(base.config.tokenizer), bank.packed().to(base.device)
    names = sorted(name for name, _ in sources)
    if names != list(bank.names):
        raise ConfigError(f"--data: each of the bank's prefixes once: {', '.join(bank.names)}")
    tables = read_tables(tokenizer, bank, base, sources, "train")
    say(f"{len(tables):,} tables and sentences; the model writes text that calls nothing.")
    texts = read_texts(tokenizer, base, files, settings.seed)
    every = max(1, settings.steps // 10)
    for step, loss in enumerate(train_calls(model, prefix, tables, texts, settings), 1):
        if step % every == 0:
            say(f"step {step}/{settings.steps}  loss {loss:.3f}")
    save_calls(folder / CALLS_FILE, base, bank.names, model.rows, asdict(settings))
    dev = read_tables(tokenizer, bank, base, sources, "dev")
    if dev:
        say(f"The right call at the end of {right_calls(model, dev):.1%} of the dev tables.")


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
    seed: int = 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""

    def run() -> int:
        args = parse(Args, argv, "mingpt_prefix.call_training", __doc__)
        settings = Settings(args.steps, args.batch_size, args.lr, args.seed)
        sources = named_sources(args.data, "--data")
        teach(args.bank, sources, args.text, settings, args.model)
        say(f"Written: {shown(args.bank / CALLS_FILE)}.")
        return 0

    return run_script("mingpt_prefix.call_training", run)


if __name__ == "__main__":
    sys.exit(main())
