"""What train.py chooses when it is not told, and what it says of it."""

from dataclasses import replace

import pytest
import torch

from mingpt_prefix.checkpoints.resuming import config_from_json
from mingpt_prefix.cli import settings
from mingpt_prefix.cli.settings import resolve
from mingpt_prefix.cli.train_args import TrainArgs
from mingpt_prefix.config import TARGETS, to_json
from mingpt_prefix.errors import CheckpointError, ConfigError, DataError, WeightsError


def pretend(monkeypatch, gpu: bool, weights: tuple[bool, str] = (True, "cached")) -> None:
    """A machine with or without a GPU and GPT-2's weights, and with the rest of what E2E needs."""
    kind = "cuda" if gpu else "cpu"
    monkeypatch.setattr(settings, "choose_device", lambda name: torch.device(kind))
    monkeypatch.setattr(settings, "weights_at_hand", lambda name: weights)
    monkeypatch.setattr(settings, "load_tokenizer", lambda name: None)
    monkeypatch.setattr(settings, "load_examples", lambda source, split: [])


def test_a_gpu_and_weights_choose_gpt2_with_the_poster_s_recipe(monkeypatch) -> None:
    pretend(monkeypatch, gpu=True)
    config, why = resolve(TrainArgs())
    assert (config.model, config.data, config.dtype) == ("gpt2", ("e2e",), "bf16")
    assert (config.lr, config.epochs, config.batch_size) == (8e-5, 5, 10)
    assert config.prefix_length == 5 and config.dropout == 0
    assert "there is a GPU" in why and "at hand (cached)" in why
    config, _ = resolve(TrainArgs(mode="finetune"))
    assert (config.lr, config.dropout, config.prefix_length) == (5e-5, 0.1, 0)


def test_attention_is_chosen_by_name_and_told(monkeypatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    pretend(monkeypatch, gpu=False)
    config, line = resolve(TrainArgs())
    assert config.attention == "reference" and "(fp32, reference attention)" in line
    with pytest.raises(ConfigError, match="attention triton, on cpu: "):
        resolve(TrainArgs(attention="triton"))
    pretend(monkeypatch, gpu=True)
    config, line = resolve(TrainArgs(attention="reference"))
    assert config.attention == "reference" and "(bf16, reference attention)" in line
    pytest.importorskip("triton")
    config, line = resolve(TrainArgs(attention="triton"))
    assert config.attention == "triton" and "(bf16, triton attention)" in line
    assert resolve(TrainArgs())[0].attention == "reference"


@pytest.mark.parametrize(
    ("gpu", "weights", "why"),
    [
        (False, (True, "cached"), "no GPU found"),
        (True, (False, "no network"), "no network"),
    ],
)
def test_otherwise_the_embedded_model(monkeypatch, gpu, weights, why: str) -> None:
    pretend(monkeypatch, gpu, weights)
    config, line = resolve(TrainArgs())
    assert (config.model, config.data) == ("tiny", ("sample",))
    assert why in line and "the embedded model" in line


def test_no_e2e_chooses_the_embedded_model(monkeypatch) -> None:
    pretend(monkeypatch, gpu=True)

    def missing(source: str, split: str) -> list:
        raise DataError("E2E download: no network")

    monkeypatch.setattr(settings, "load_examples", missing)
    config, line = resolve(TrainArgs())
    assert config.model == "tiny" and "E2E download: no network" in line


def test_a_model_that_is_named_is_never_replaced(monkeypatch) -> None:
    pretend(monkeypatch, gpu=False, weights=(False, "no network"))
    config, line = resolve(TrainArgs(model="gpt2"))
    assert (config.model, config.data) == ("gpt2", ("e2e",)) and "as --model says" in line
    with pytest.raises(WeightsError, match="unknown model"):
        resolve(TrainArgs(model="x" * 5000))


def test_flags_replace_the_recipe_s_settings() -> None:
    args = TrainArgs(model="tiny", batch_size=4, lr=0.5, no_reparam=True, seed=7, device="cpu")
    config, _ = resolve(args)
    assert (config.batch_size, config.micro_batch_size, config.lr, config.seed) == (4, 4, 0.5, 7)
    assert not config.reparam
    with pytest.raises(ConfigError, match="--mode pretrain needs"):
        resolve(TrainArgs(mode="pretrain", model="tiny"))


def test_rows_of_the_embedded_model_are_trained_directly_unless_flags_say_otherwise() -> None:
    def resolved(**flags):
        return resolve(TrainArgs(device="cpu", **flags))[0]

    direct, by_mlp = resolved(model="tiny"), resolved(model="tiny", reparam=True)
    assert not direct.reparam and by_mlp.reparam and by_mlp.lr < direct.lr
    assert resolved(model="tiny", depth="embedding").reparam
    with pytest.raises(ConfigError, match="exclude each other"):
        resolved(model="tiny", reparam=True, no_reparam=True)


@pytest.mark.parametrize("model", ["tiny", "gpt2"])
def test_lora_is_of_c_attn_at_rank_8_and_of_tiny_s_other_weights_too(model: str) -> None:
    for mode, has_prefix in (("lora", False), ("prefix+lora", True)):
        config, line = resolve(TrainArgs(mode=mode, model=model, device="cpu"))
        assert (config.lora_rank, config.lora_alpha) == (8, 16)
        assert config.lora_targets == (TARGETS if model == "tiny" else ("attn.c_attn",))
        assert (config.prefix_length > 0) == (config.lora_lr > 0) == has_prefix
        assert line.startswith(f"Training {'a prefix and LoRA for' if has_prefix else 'LoRA of'} ")
        assert config_from_json(to_json(config)) == config


def test_settings_survive_json() -> None:
    config, _ = resolve(TrainArgs(model="tiny", device="cpu"))
    saved = to_json(config)
    assert config_from_json(saved) == config
    assert config_from_json(to_json(replace(config, data=("a", "b")))).data == ("a", "b")
    assert config_from_json({k: v for k, v in saved.items() if k != "clip"}) == config
    for bad in (
        None, {}, [], {**saved, "lr": "fast"}, {**saved, "mode": "sing"}, {**saved, "new": 1},
        {k: v for k, v in saved.items() if k != "lr"}, {**saved, "lr": -1.0},
    ):  # fmt: skip
        with pytest.raises((CheckpointError, ConfigError)):
            config_from_json(bad)
