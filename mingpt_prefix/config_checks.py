"""Which settings of a training run cannot be, by themselves and together."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mingpt_prefix.errors import ConfigError

if TYPE_CHECKING:
    from mingpt_prefix.config import TrainConfig

MAX_SEED = 2**31 - 1


def flag_name(name: str) -> str:
    """A setting's name as it is written on the command line, without its dashes."""
    return name.replace("_", "-")


def check_ranges(config: TrainConfig) -> None:
    """Raises ConfigError for a number out of range."""
    positive = "lr epochs batch_size micro_batch_size mid_dim init_scale clip evals block_size"
    if config.has_lora:
        positive += " lora_rank lora_alpha"
    if config.has_prefix:
        positive += " prefix_length"
    not_negative = "prefix_length weight_decay max_steps limit_examples lora_lr seed"
    for name in not_negative.split():
        value = getattr(config, name)
        if not value >= 0:
            raise ConfigError(f"{flag_name(name)} must not be negative, not {value}")
    for name in positive.split():
        value = getattr(config, name)
        if not value > 0:
            raise ConfigError(f"{flag_name(name)} must be positive, not {value}")
    for name in ("lr", "epochs", "weight_decay", "clip", "lora_alpha", "lora_lr"):
        if not math.isfinite(getattr(config, name)):
            raise ConfigError(f"{flag_name(name)} must be finite, not {getattr(config, name)}")
    if config.epochs > 1e6:
        raise ConfigError(f"epochs must be at most a million, not {config.epochs:g}")
    if config.seed > MAX_SEED:
        raise ConfigError(f"seed must be at most {MAX_SEED}, not {config.seed}")
    for name in ("dropout", "prefix_dropout", "lora_dropout", "warmup"):
        value = getattr(config, name)
        if not 0 <= value < 1:
            raise ConfigError(f"{flag_name(name)} must lie in [0, 1), not {value}")


def check_combinations(config: TrainConfig) -> None:
    """Raises ConfigError for settings that exclude each other."""
    if (
        config.optimizer == "muon"
        and config.is_frozen
        and (config.reparam or not config.has_prefix)
    ):
        raise ConfigError("--optimizer muon is for matrices: of a prefix, those of --no-reparam")
    if config.init_prefix and (config.init_text or config.init != "noise" or config.depth != "all"):
        raise ConfigError("--init-prefix goes with none of --init, --init-text and --depth")
    if config.depth == "embedding" and config.has_lora:
        raise ConfigError("--depth embedding is for --mode prefix: LoRA changes what rows it has")
    if config.mode == "pretrain" and (config.input_template or config.text_field):
        raise ConfigError("--input-template and --text-field are for tables, not for pretrain")
    if config.has_lora and len(set(config.lora_targets)) != (len(config.lora_targets) or None):
        raise ConfigError("--lora-targets must name weights, each once")
