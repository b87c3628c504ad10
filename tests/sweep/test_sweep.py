"""Many prefixes trained in one run: each member is what a run of its own would be."""

import itertools
from dataclasses import replace

import pytest
import torch

from mingpt_prefix.batch import Encoded
from mingpt_prefix.checkpoints.pretrained import load_model
from mingpt_prefix.cli.recipes import recipe
from mingpt_prefix.config import TrainConfig
from mingpt_prefix.data.tokenizer import load_tokenizer
from mingpt_prefix.evaluation.training_run import make_trainer
from mingpt_prefix.model import GPT2
from mingpt_prefix.step import Progress
from mingpt_prefix.sweep.together import Stopped, member_trainer, rounds
from mingpt_prefix.trainer import Trainer

STEPS = 50


@pytest.fixture(scope="module")
def base() -> GPT2:
    return load_model("tiny").double().requires_grad_(False)


@pytest.fixture
def exact():
    """Whatever is made is float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def tables(count: int, first: int = 0) -> list[Encoded]:
    """Short examples of unequal lengths."""
    tokenizer, found = load_tokenizer("tiny-1024"), []
    for number in range(first, first + count):
        table = tokenizer.encode(f" {number}")
        text = tokenizer.encode(" a" * (1 + number % 3))
        ids = [*table, tokenizer.eos, *text, tokenizer.eos]
        found.append(Encoded(torch.tensor(ids), len(table) + 1))
    return found


def member(**settings) -> TrainConfig:
    small = dict(batch_size=2, max_steps=STEPS, evals=2)
    of_recipe = recipe("prefix", True, **{**small, **settings})
    return TrainConfig("prefix", "tiny", ("none",), **of_recipe)


MEMBERS = [
    member(prefix_length=length, seed=seed, lr=lr)
    for length, seed, lr in itertools.product((1, 3, 7), (0, 1), (0.1, 0.02))
]
MEMBERS += [
    member(prefix_length=5, placement="infix"),
    member(prefix_length=6, batch_size=3, micro_batch_size=2, prefix_dropout=0.3, max_steps=30),
    member(prefix_length=4, reparam=True, init="noise"),
    member(prefix_length=4, depth="embedding", weight_decay=0.1),
]


def alone(config: TrainConfig, base: GPT2) -> Trainer:
    return make_trainer(config, base, tables(9), tables(4, 100))


def lines(found: list[Progress]) -> list[tuple[float, float, float]]:
    return [(p.loss, p.lr, p.dev_loss or 0.0) for p in found]


def train_all(trainers: list[Trainer]) -> list[list[Progress | Stopped]]:
    took = {trainer: [] for trainer in trainers}
    for each in rounds(trainers):
        for trainer, progress in each.items():
            took[trainer].append(progress)
    return list(took.values())


def compare(configs: list[TrainConfig], base: GPT2) -> None:
    """Losses, rates and dev losses of these members are those of runs of their own."""
    together = [member_trainer(config, base, tables(9), tables(4, 100)) for config in configs]
    for config, trainer, took in zip(configs, together, train_all(together), strict=True):
        own = alone(config, base)
        expected = lines(list(own.steps()))
        assert len(took) == config.max_steps
        assert torch.tensor(lines(took)) == pytest.approx(torch.tensor(expected), abs=1e-10)
        assert trainer.best_step == own.best_step
        assert trainer.folded().prefix.kv == pytest.approx(own.folded().prefix.kv, abs=1e-8)


def test_members_are_runs_of_their_own(base: GPT2, exact) -> None:
    few = [replace(config, max_steps=8 if config.max_steps == STEPS else 5) for config in MEMBERS]
    compare(few[5:6] + few[-4:], base)


@pytest.mark.slow
def test_members_are_runs_of_their_own_for_many_steps(base: GPT2, exact) -> None:
    compare(MEMBERS, base)


@pytest.mark.parametrize("placing", ["first", "last"])
def test_one_that_diverges_stops_by_itself(base: GPT2, exact, placing: str) -> None:
    wild, calm = (member(max_steps=8, prefix_length=n, lr=lr) for n, lr in ((2, 1e200), (6, 0.1)))
    configs = [wild, calm] if placing == "first" else [calm, wild]
    took = train_all([member_trainer(c, base, tables(9), tables(4, 100)) for c in configs])
    of_wild, of_calm = took if placing == "first" else took[::-1]
    assert isinstance(of_wild[-1], Stopped) and len(of_wild) < 5
    assert len(of_calm) == 8
    expected = lines(list(alone(calm, base).steps()))
    assert torch.tensor(lines(of_calm)) == pytest.approx(torch.tensor(expected), abs=1e-10)
