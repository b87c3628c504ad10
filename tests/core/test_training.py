"""One step and the loop: what is trained, what is not, and that a run can be cut anywhere."""

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_runs import BOTH, FINETUNE, LORA, NAMED, PREFIX, SHAPE, examples, learned, losses, make

from mingpt_prefix.batch import pack
from mingpt_prefix.checkpoints.checkpoint import load_newest, save_checkpoint
from mingpt_prefix.checkpoints.pretrained import fingerprint
from mingpt_prefix.checkpoints.resuming import restore, run_state
from mingpt_prefix.config import TrainConfig
from mingpt_prefix.errors import CheckpointError, ConfigError, TrainingError
from mingpt_prefix.optim import learning_rate

MODES = pytest.mark.parametrize("config", NAMED.values(), ids=NAMED)


@MODES
def test_the_loss_falls_and_the_dev_loss_is_taken(config: TrainConfig) -> None:
    # At higher rates, Muon on all weights, or LoRA beside a prefix, learns these few by heart.
    lr = 0.003 if config.mode == "pretrain" else 0.03 if config.reparam else 0.3
    trainer = make(replace(config, epochs=25, lr=lr, lora_lr=0.01))
    seen = list(trainer.steps())
    assert len(seen) == trainer.total_steps == 100
    assert [p.step for p in seen] == list(range(1, 101))
    taken = [p for p in seen if p.dev_loss is not None]
    assert [p.step for p in taken] == [50, 100]
    assert taken[-1].dev_loss < taken[0].dev_loss
    assert sum(p.loss for p in seen[-10:]) < 0.9 * sum(p.loss for p in seen[:10])
    assert trainer.best_loss == min(p.dev_loss for p in taken)


@pytest.mark.parametrize("config", [PREFIX, LORA, BOTH], ids=lambda config: config.mode)
def test_frozen_means_frozen(config: TrainConfig) -> None:
    trainer = make(config)
    before = fingerprint(trainer.model)
    losses(trainer)
    assert fingerprint(trainer.model) == before
    assert all(p.grad is None for p in trainer.model.parameters())


@MODES
def test_the_same_seed_gives_the_same_bytes(config: TrainConfig) -> None:
    first, second, other = make(config), make(config), make(replace(config, seed=1))
    assert losses(first) == losses(second) != losses(other)
    assert learned(first) == learned(second) != learned(other)


@MODES
@pytest.mark.parametrize("micro", [1, 4])
def test_accumulation_changes_nothing(config: TrainConfig, micro: int) -> None:
    config = replace(config, dropout=0.0, lora_dropout=0.0)
    # In float32 the optimizers blow rounding up: a gradient's sign is all they see of a small one.
    whole = make(config, dtype=torch.float64)
    parts = make(replace(config, micro_batch_size=micro), dtype=torch.float64)
    assert losses(parts) == pytest.approx(losses(whole), abs=1e-5)


def test_the_rows_of_all_layers_are_taken_apart_at_once() -> None:
    """A slice for each layer would have a gradient of the whole size each, and they be added up."""
    trainer = make(PREFIX)
    with torch.profiler.profile() as profile:
        trainer.gradients.backward(trainer.train_set[:6])
    found = Counter(event.name for event in profile.events())
    assert found["UnbindBackward0"] >= 1
    assert not found["SelectBackward0"]


@MODES
@pytest.mark.parametrize("cut", [0, 1, 5, 9])
def test_a_run_cut_anywhere_goes_on_to_the_same_bytes(
    config: TrainConfig, cut: int, tmp_path: Path
) -> None:
    config = replace(config, micro_batch_size=4)
    whole = make(config)
    expected = losses(whole)
    first = make(config)
    steps = first.steps()
    seen = [next(steps).loss for _ in range(cut)]
    save_checkpoint(tmp_path, first.step, *run_state(first))
    torch.manual_seed(99)  # what another process's random state would be
    second = make(config)
    restore(second, load_newest(tmp_path))
    assert second.step == cut
    assert seen + losses(second) == expected
    assert learned(second) == learned(whole)
    assert (second.best_loss, second.best_step) == (whole.best_loss, whole.best_step)


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    trainer = make(PREFIX)
    next(trainer.steps())
    save_checkpoint(tmp_path, trainer.step, *run_state(trainer))
    for other in (replace(PREFIX, prefix_length=5), replace(PREFIX, reparam=False), FINETUNE):
        with pytest.raises(CheckpointError, match="another run"):
            restore(make(other), load_newest(tmp_path))


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    trainer = make(replace(PREFIX, lr=0.01))
    steps = trainer.steps()
    next(steps)
    before = learned(trainer)
    with torch.no_grad():
        trainer.model.ln_f.weight.fill_(math.nan)
    with pytest.raises(TrainingError, match="step 2: the loss is nan") as caught:
        next(steps)
    assert str(caught.value).isprintable()
    assert learned(trainer) == before


@MODES
def test_gradient_checkpoints_change_nothing(config: TrainConfig) -> None:
    plain, again = make(config), make(replace(config, grad_checkpoint=True))
    assert losses(plain) == losses(again) and learned(plain) == learned(again)


def test_gradient_checkpoints_keep_less() -> None:
    kept = []
    for flag in (False, True):
        trainer, sizes = make(replace(PREFIX, grad_checkpoint=flag)), []

        def note(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            batch = pack(trainer.train_set[:6], PREFIX.prefix_length)
            trainer.gradients.summed_loss(batch, trainer.trainable())
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 3


@pytest.mark.parametrize("length", [20, 21])
def test_positions(length: int) -> None:
    longest = max(len(e.ids) for e in examples(20))
    assert longest == 28
    config = replace(PREFIX, prefix_length=length)
    if length + longest <= SHAPE.n_positions:
        assert losses(make(config))
    else:
        with pytest.raises(ConfigError, match=r"21 prefix rows .* 28 tokens .* 48 positions"):
            make(config)


def test_learning_rate() -> None:
    flat = [learning_rate(step, 10, replace(PREFIX, lr=1.0)) for step in range(10)]
    assert flat == pytest.approx([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    warm = [learning_rate(step, 10, replace(PREFIX, lr=1.0, warmup=0.2)) for step in range(10)]
    assert warm == pytest.approx([0.5, 1.0, 1.0, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])


def test_steps_of_fractional_epochs() -> None:
    assert make(PREFIX).total_steps == 12  # 20 examples: 4 batches an epoch
    assert make(replace(PREFIX, epochs=0.5)).total_steps == 2
    assert make(replace(PREFIX, epochs=0.1)).total_steps == 1
    assert make(replace(PREFIX, max_steps=7)).total_steps == 7


def test_bf16_autocast_trains_the_weights_in_fp32() -> None:
    trainer = make(replace(FINETUNE, dtype="bf16", dropout=0.0, lr=1e-3))
    plain = make(replace(FINETUNE, dropout=0.0, lr=1e-3))
    assert losses(trainer) == pytest.approx(losses(plain), rel=0.02)
    assert {p.dtype for p in trainer.trainable.parameters()} == {torch.float32}


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    trainer = make(PREFIX)
    for _ in zip(range(3), trainer.steps(), strict=False):
        save_checkpoint(tmp_path, trainer.step, *run_state(trainer))
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["step-00000002.safetensors", "step-00000003.safetensors"]
    newest = tmp_path / kept[1]
    newest.write_bytes(newest.read_bytes()[:-100])
    assert load_newest(tmp_path).step == 2
    (tmp_path / kept[0]).write_bytes(b"")
    with pytest.raises(CheckpointError, match="damaged"):
        load_newest(tmp_path)
    assert load_newest(tmp_path / "none") is None
