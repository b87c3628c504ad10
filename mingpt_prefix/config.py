"""Every setting, as frozen dataclasses: the model's shape, the recipe of a training run.

The recipes are those of Li & Liang (2021) for E2E, with 5 prefix rows; `tiny` has its own.
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from mingpt_prefix.errors import ConfigError

Mode = Literal["prefix", "finetune", "pretrain"]


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a GPT-2; the field names are those of GPT-2's own `config.json`."""

    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    vocab_size: int = 50257
    n_positions: int = 1024
    layer_norm_epsilon: float = 1e-5
    eos_token_id: int = 50256
    tokenizer: str | None = "gpt2"

    def __post_init__(self):
        for name in ("n_layer", "n_head", "n_embd", "vocab_size", "n_positions"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ConfigError(
                    f"{name} must be a positive whole number, not {getattr(self, name)!r}"
                )
        if self.n_embd % self.n_head:
            raise ConfigError(f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}")
        if not 0 <= self.eos_token_id < self.vocab_size:
            raise ConfigError(
                f"eos_token_id {self.eos_token_id} is outside the vocabulary of {self.vocab_size}"
            )

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head


MODELS = {
    "tiny": ModelConfig(
        6, 3, 192, vocab_size=4096, n_positions=512, eos_token_id=4095, tokenizer="tiny"
    ),
    "gpt2": ModelConfig(),
    "gpt2-medium": ModelConfig(24, 16, 1024),
    "gpt2-large": ModelConfig(36, 20, 1280),
    "gpt2-xl": ModelConfig(48, 25, 1600),
}


@dataclass(frozen=True)
class TrainConfig:
    """One training run, resolved: nothing in it is left to be found out later.

    `lr` is the peak learning rate; it falls linearly to 0 over the run, after `warmup` (a share of all steps).
    `dropout` acts on embeddings and residuals when the model itself is trained. `micro_batch_size` sequences go
    through the model at once; gradients add up to `batch_size`. `evals` is the number of dev losses in a run.
    `block_size` is the length of a pretraining window, in tokens; `max_steps` 0 means: as many as `epochs` has.
    """

    mode: Mode
    model: str
    data: tuple[str, ...]
    lr: float
    epochs: float
    batch_size: int
    micro_batch_size: int
    prefix_length: int = 0
    reparam: bool = True
    mid_dim: int = 512
    dropout: float = 0.0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 1.0
    warmup: float = 0.0
    max_steps: int = 0
    evals: int = 5
    block_size: int = 256
    seed: int = 0
    device: str = "cpu"
    dtype: str = "fp32"
    attention: str = "reference"

    def __post_init__(self):
        for name in (
            "lr",
            "epochs",
            "batch_size",
            "micro_batch_size",
            "mid_dim",
            "clip",
            "evals",
            "block_size",
        ):
            if not getattr(self, name) > 0:
                raise ConfigError(
                    f"{name.replace('_', '-')} must be positive, not {getattr(self, name)}"
                )
        for name in ("prefix_length", "weight_decay", "max_steps", "seed"):
            if not getattr(self, name) >= 0:
                raise ConfigError(
                    f"{name.replace('_', '-')} must not be negative, not {getattr(self, name)}"
                )
        for name in ("dropout", "warmup"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} must lie in [0, 1), not {getattr(self, name)}")
        if self.mode == "prefix" and self.prefix_length == 0:
            raise ConfigError("prefix-length must be positive, not 0")


_POSTER = dict(epochs=5, batch_size=10, micro_batch_size=10)
_PRETRAIN = dict(
    epochs=1,
    batch_size=16,
    micro_batch_size=16,
    weight_decay=0.1,
    betas=(0.9, 0.95),
    warmup=0.02,
    evals=10,
)
RECIPES: dict[Mode, dict] = {
    "prefix": dict(_POSTER, lr=8e-5, prefix_length=5),
    "finetune": dict(_POSTER, lr=5e-5, dropout=0.1),
    "pretrain": dict(_PRETRAIN, lr=6e-4),
}
TINY_RECIPES: dict[Mode, dict] = {
    "prefix": dict(_POSTER, lr=1e-3, prefix_length=20),
    "finetune": dict(_POSTER, lr=5e-4),
    "pretrain": dict(_PRETRAIN, lr=2e-3),
}


def recipe(mode: Mode, tiny: bool, **overrides) -> dict:
    """The recipe's settings for `mode`, with those of `overrides` that are not None put in their place."""
    chosen = dict((TINY_RECIPES if tiny else RECIPES)[mode])
    chosen.update({name: value for name, value in overrides.items() if value is not None})
    if overrides.get("micro_batch_size") is None:
        chosen["micro_batch_size"] = min(chosen["micro_batch_size"], chosen["batch_size"])
    return chosen


def to_json(config) -> dict:
    """A dataclass as what JSON gives back for it: tuples become lists."""
    return {
        k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(config).items()
    }
