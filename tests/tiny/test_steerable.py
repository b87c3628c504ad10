"""The stage in which the embedded base is trained together with prefixes that are thrown away."""

import subprocess
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from processes import finish, start_training

from mingpt_prefix.accel.distributed import World
from mingpt_prefix.checkpoints.checkpoint import load_newest
from mingpt_prefix.checkpoints.pretrained import load_model, save_model
from mingpt_prefix.cli.recipes import recipe
from mingpt_prefix.config import ModelConfig, TrainConfig
from mingpt_prefix.data.pretraining import Windows
from mingpt_prefix.data.tokenizer import load_tokenizer
from mingpt_prefix.model import GPT2
from mingpt_prefix.step import SummedLoss
from mingpt_prefix.tiny import steerable
from mingpt_prefix.tiny.corpus import Overlap
from mingpt_prefix.tiny.steerable import LONGEST, Args, Life, Source, tables_batch, train_together

TOKENIZER = load_tokenizer("tiny-1024")
SHAPE = ModelConfig(
    2, 2, 16, vocab_size=1024, n_positions=512, eos_token_id=1023, tokenizer="tiny-1024"
)
ARGS = Args(steps=3, pool=3, life=2, tasks=2, examples=2, windows=1, dtype="fp32")
FEW = dict(pool=2, tasks=2, examples=1, windows=1, dtype="fp32")
WORDS = "lantern meadow copper violin thunder parcel silver window garden whistle".split()
SOURCE = Source(TOKENIZER, WORDS, Overlap([], ["Salt & Honey"]))
OF_ROWS = TrainConfig("prefix", model="tiny", data=(), **recipe("prefix", True, max_steps=2))


@pytest.fixture
def english() -> Windows:
    return Windows(np.arange(1000, dtype=np.uint16), 32)


def make_model() -> GPT2:
    return GPT2(SHAPE).initialize(0)


def test_a_task_writes_all_its_tables_in_one_way() -> None:
    life = Life(Random(1), SOURCE, make_model(), OF_ROWS)
    drawn = [life.draw() for _ in range(20)]
    assert len({tuple(e.ids.tolist()) for e in drawn}) > 10
    for example in drawn:
        assert example.ids[example.prompt_length - 1] == example.ids[-1] == TOKENIZER.eos
        assert len(example.ids) <= LONGEST and example.n_targets > 1
    told = [TOKENIZER.decode(e.ids[: e.prompt_length - 1].tolist()) for e in drawn]
    domain, (start, middle, *_) = life.pairs.domain, life.style.row
    name = f"{start}{life.style.spell(domain.name_slot)}{middle}"
    assert all(name in table and table.startswith(f" {life.style.label}") for table in told)


def test_a_text_that_must_not_be_said_is_not(monkeypatch) -> None:
    life = Life(Random(1), SOURCE, make_model(), OF_ROWS)
    pairs = iter([([("name", "A")], "At Salt & Honey."), ([("name", "B")], "At home.")])
    monkeypatch.setattr(life.pairs, "draw", lambda _is_new: next(pairs))
    assert "home" in TOKENIZER.decode(life.draw().ids.tolist())


def test_each_example_sees_the_prefix_of_its_task() -> None:
    model = make_model()
    lives = [Life(Random(i), SOURCE, model, OF_ROWS) for i in range(2)]
    batch, prefix = tables_batch(lives, 2, new=1)
    assert batch.layout.prefix_ids.tolist() == [0, 0, 2, 1, 1, 3]
    assert prefix.lengths.tolist() == [OF_ROWS.prefix_length] * 4
    one, other, *copies = prefix.kv.chunk(4, dim=2)
    assert not torch.equal(one, other)
    assert torch.equal(torch.stack([one, other]), torch.stack(copies))


def test_a_prefix_does_not_learn_from_new_tables() -> None:
    model = make_model()
    lives = [Life(Random(i), SOURCE, model, OF_ROWS) for i in range(2)]
    loss = SummedLoss(model, autocasts=False)
    loss(*tables_batch(lives, 0, new=2)).backward()
    assert not any(row.grad.any() for life in lives for row in life.encoder.parameters())
    assert model.wte.weight.grad.any()


def test_base_and_prefixes_learn_and_tasks_die(english, monkeypatch) -> None:
    born: list[Life] = []
    init = Life.__init__
    monkeypatch.setattr(Life, "__init__", lambda self, *a: (born.append(self), init(self, *a))[1])
    model, before = make_model(), make_model().state_dict()
    train_together(model, ARGS, english, SOURCE)
    changed = [
        name for name, tensor in model.state_dict().items() if (tensor != before[name]).any()
    ]
    assert set(changed) == set(before)
    over = [life for life in born if life.age >= ARGS.life]
    assert len(born) > ARGS.pool and over
    assert all((row != 0).any() for life in over for row in life.encoder.rows)


def test_the_same_seed_gives_the_same_base(english) -> None:
    one, two, other = (
        train_together(make_model(), Args(2, seed=seed, **FEW), english, SOURCE)
        for seed in (0, 0, 1)
    )
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not all(
        torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True)
    )


def test_ranks_share_gradients_and_draw_apart(english, monkeypatch) -> None:
    monkeypatch.setattr(
        World, "sum", lambda self, tensor: (summed.append(tensor), 0 * tensor + 1)[1]
    )
    models, drawn = [], []
    for rank in (0, 1):
        summed: list[torch.Tensor] = []
        world = World(rank, 2)
        models.append(train_together(make_model(), Args(1, **FEW), english, SOURCE, world=world))
        _count, *gradients = summed
        assert [g.shape for g in gradients] == [p.shape for p in models[-1].parameters()]
        drawn.append(gradients)
    # All ranks step by the sum, which is 1 here, whatever they drew.
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(drawn[0][0], drawn[1][0])


def test_it_goes_on_from_its_last_checkpoint(english, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(steerable, "SAVE_EVERY", 2)

    def stop(*_args) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(steerable, "say", lambda line: line.startswith("step 4/") and stop())
        with pytest.raises(KeyboardInterrupt):
            train_together(make_model(), Args(6, **FEW), english, SOURCE, tmp_path)
    assert load_newest(tmp_path).step == 2
    steps: list[float] = []
    rate = steerable.learning_rate
    monkeypatch.setattr(steerable, "learning_rate", lambda *a: (steps.append(a), rate(*a))[1])
    model = train_together(make_model(), Args(6, **FEW), english, SOURCE, tmp_path)
    assert [step for step, total, _ in steps if total == 6] == [2, 3, 4, 5]
    assert load_newest(tmp_path).step == 6
    saved = load_newest(tmp_path).tensors["trained.wte.weight"]
    assert torch.equal(saved, model.wte.weight)


def test_two_processes_train_it_from_the_command_line(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # more processes than GPUs are refused
    save_model(make_model(), tmp_path / "start")
    prose = Path(__file__).parents[2] / "bench" / "prose.txt"
    given = (str(tmp_path / "start"), str(prose), str(tmp_path / "out"), "25")
    flags = [f"--{name}={value}" for name, value in FEW.items()]
    script = Path(steerable.__file__)
    said = finish(start_training(2, *given, *flags, script=script, stdout=subprocess.PIPE))
    assert said.count("step 25/25") == 1  # of two that don't know of each other, both would say it
    trained = load_model(tmp_path / "out" / "model", "cpu")
    assert trained.config == SHAPE
    assert not torch.equal(trained.wte.weight, make_model().wte.weight)
