"""The stage in which the embedded base is trained together with prefixes that are thrown away."""

from random import Random

import numpy as np
import pytest
import torch

from mingpt_prefix.config import ModelConfig
from mingpt_prefix.data.pretraining import Windows
from mingpt_prefix.data.tokenizer import load_tokenizer
from mingpt_prefix.model import GPT2
from mingpt_prefix.tiny import make_steerable
from mingpt_prefix.tiny.make_steerable import LONGEST, Args, Life, TableTask, tables_batch, train

SHAPE = ModelConfig(2, 2, 16, vocab_size=4096, n_positions=512, eos_token_id=4095, tokenizer="tiny")
ARGS = Args(steps=3, pool=3, life=2, tasks=2, examples=2, windows=1)
TOKENIZER = load_tokenizer("tiny")


@pytest.fixture
def english() -> Windows:
    return Windows(np.arange(1200, dtype=np.uint16), 32)


def make_model() -> GPT2:
    return GPT2(SHAPE).initialize(0)


def test_a_task_writes_all_its_tables_in_one_way() -> None:
    task = TableTask(Random(1), TOKENIZER, coined=1.0)
    drawn = [task.draw() for _ in range(20)]
    assert len({tuple(e.ids.tolist()) for e in drawn}) > 10
    for example in drawn:
        assert example.ids[example.prompt_length - 1] == example.ids[-1] == TOKENIZER.eos
        assert len(example.ids) <= LONGEST and example.n_targets > 1
    marks = {name for name in (slot.name for slot in task.domain.slots)}
    told = " ".join(TOKENIZER.decode(e.ids[: e.prompt_length - 1].tolist()) for e in drawn)
    assert any(task.style.spell(name) in told for name in marks)


def test_each_example_sees_the_prefix_of_its_task() -> None:
    model = make_model()
    _, of_rows = make_steerable._configs(ARGS)
    lives = [Life(TableTask(Random(i), TOKENIZER, 1.0), model, of_rows) for i in range(2)]
    batch, prefix = tables_batch(lives, 2)
    assert batch.layout.prefix_ids.tolist() == [0, 0, 1, 1]
    assert prefix.lengths.tolist() == [of_rows.prefix_length] * 2
    assert not torch.equal(*prefix.kv.chunk(2, dim=2))


def test_base_and_prefixes_learn_and_tasks_die(english, monkeypatch) -> None:
    born: list[Life] = []
    init = Life.__init__
    monkeypatch.setattr(Life, "__init__", lambda self, *a: (born.append(self), init(self, *a))[1])
    model, before = make_model(), make_model().state_dict()
    train(model, ARGS, english, TOKENIZER)
    changed = [
        name for name, tensor in model.state_dict().items() if (tensor != before[name]).any()
    ]
    assert set(changed) == set(before)
    assert len(born) > ARGS.pool and any(life.is_over for life in born)
    assert all((row != 0).any() for life in born if life.is_over for row in life.encoder.rows)


def test_the_same_seed_gives_the_same_base(english) -> None:
    one, two, other = (
        train(
            make_model(),
            Args(2, pool=2, tasks=2, examples=1, windows=1, seed=seed),
            english,
            TOKENIZER,
        )
        for seed in (0, 0, 1)
    )
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not all(
        torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True)
    )
