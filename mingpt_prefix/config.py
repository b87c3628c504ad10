"""Settings, as frozen dataclasses: the model's shape, a training run, how tokens are chosen."""

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Literal, get_args

from mingpt_prefix.config_checks import check_combinations, check_ranges, flag_name
from mingpt_prefix.errors import CheckpointError, ConfigError
from mingpt_prefix.tables import TEXT_FORMAT
from mingpt_prefix.templates import template_format

Mode = Literal["prefix", "lora", "prefix+lora", "finetune", "pretrain"]
Optimizer = Literal["adamw", "muon"]
Placement = Literal["prefix", "infix"]
Depth = Literal["all", "embedding"]
Init = Literal["noise", "examples"]
# The weights of a block that LoRA may change, by their names in it.
Target = Literal["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]
PLACEMENTS: tuple[str, ...] = get_args(Placement)
TARGETS: tuple[str, ...] = get_args(Target)


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
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} must be a positive whole number, not {value!r}")
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
        6, 8, 256, vocab_size=1024, n_positions=512, eos_token_id=1023, tokenizer="tiny"
    ),
    "gpt2": ModelConfig(),
    "gpt2-medium": ModelConfig(24, 16, 1024),
    "gpt2-large": ModelConfig(36, 20, 1280),
    "gpt2-xl": ModelConfig(48, 25, 1600),
}


@dataclass(frozen=True)
class TrainConfig:
    """One training run, resolved: nothing in it is left to be found out later.

    `lr` is the peak learning rate; it falls linearly to 0 over the run, after `warmup` (a share of
    all steps). `init_scale` times torch's usual values is where the prefix MLP's last weight
    starts. `placement` infix: only what is to be predicted sees the rows, not the table. `depth`
    embedding: the rows are the keys and values of P learned embeddings, run through the frozen
    model. `init_text`: the rows begin as the keys and values of these words; `init` examples: of
    training examples drawn by the seed, as many as fill them. `prefix_dropout` acts
    on the rows, `dropout` on embeddings and residuals when the model itself is trained.
    `limit_examples` 0 means: all of the training set; else as many, drawn by the seed.
    `micro_batch_size` sequences go through the model at once; gradients add up to `batch_size`.
    `evals` is the number of dev losses in a run. `block_size` is the length of a pretraining
    window, in tokens; `max_steps` 0 means: as many as `epochs` has. `grad_checkpoint` trades time
    for memory: activations are computed again in backward. `input_template` spells tables, and
    `text_field` holds the sentences of files of the user's own. `init_prefix` is a prefix file
    whose rows training starts from, `init_digest` the SHA-256 of those. `gated`: a factor for each
    layer and head is learned of the prefix's values. `lora_targets` are the weights that LoRA
    changes, by products of matrices (in, `lora_rank`) and (`lora_rank`, out) times `lora_alpha` /
    `lora_rank`; `lora_dropout` acts on what goes into them. `lora_lr` is the peak learning rate of
    those where a prefix has `lr`; 0: the same.
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
    init_scale: float = 1.0
    placement: Placement = "prefix"
    depth: Depth = "all"
    init_text: str = ""
    init: Init = "noise"
    init_prefix: str = ""
    init_digest: str = ""
    prefix_dropout: float = 0.0
    gated: bool = False
    lora_rank: int = 0
    lora_alpha: float = 0.0
    lora_targets: tuple[str, ...] = ()
    lora_dropout: float = 0.0
    lora_lr: float = 0.0
    dropout: float = 0.0
    optimizer: Optimizer = "adamw"
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 1.0
    warmup: float = 0.0
    max_steps: int = 0
    limit_examples: int = 0
    evals: int = 5
    block_size: int = 256
    grad_checkpoint: bool = False
    input_template: str = ""
    text_field: str = ""
    seed: int = 0
    device: str = "cpu"
    dtype: Literal["fp32", "bf16"] = "fp32"
    attention: str = "reference"

    def __post_init__(self):
        choices = (
            ("mode", Mode),
            ("optimizer", Optimizer),
            ("placement", Placement),
            ("depth", Depth),
            ("init", Init),
            ("dtype", Literal["fp32", "bf16"]),
        )
        for name, kind in choices:
            if getattr(self, name) not in get_args(kind):
                raise ConfigError(f"unknown {name} {getattr(self, name)!r}")
        if unknown := set(self.lora_targets) - set(TARGETS):
            raise ConfigError(f"unknown lora-targets: {sorted(map(str, unknown))}")
        check_ranges(self)
        check_combinations(self)

    @property
    def has_prefix(self) -> bool:
        return self.mode in ("prefix", "prefix+lora")

    @property
    def has_lora(self) -> bool:
        return self.mode in ("lora", "prefix+lora")

    @property
    def is_frozen(self) -> bool:
        """Whether the model's own weights stay as they are."""
        return self.has_prefix or self.has_lora

    @property
    def text_format(self) -> str:
        """The name of the text format that tables are spelled in."""
        return template_format(self.input_template) if self.input_template else TEXT_FORMAT

    def learning_settings(self) -> dict:
        """What shaped the weights learned, without names of folders, devices or files."""
        skip = "model data device attention evals block_size grad_checkpoint init_prefix".split()
        return {name: value for name, value in to_json(self).items() if name not in skip}


def to_json(config) -> dict:
    """A dataclass as what JSON gives back for it: tuples become lists."""
    values = dataclasses.asdict(config)
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def config_from_json(saved: object) -> TrainConfig:
    """A `TrainConfig` as run.json holds it; a setting that came later has its default.

    Raises:
        CheckpointError: when settings are unknown, of the wrong type, or missing without a default.
    """
    if not isinstance(saved, dict):
        raise CheckpointError("run.json: no settings in it")
    try:
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()}
        config = TrainConfig(**values)
        read = json.loads(json.dumps(to_json(config)))
    except TypeError as error:
        raise CheckpointError(f"run.json: the settings are not a run's: {error}") from None
    if changed := sorted(name for name in saved if read[name] != saved[name]):
        raise CheckpointError(f"run.json: not a run's setting: {', '.join(changed)}")
    return config


@dataclass(frozen=True)
class Decoding:
    """How new tokens are chosen: by beam search; with one beam greedily, or by sampling where there
    is a temperature, top-k or top-p. No run of `no_repeat_ngram_size` tokens (0: any may) comes
    twice, the prompt counted. `num_return_sequences`: of beams the best so many, or samples."""

    beams: int = 1
    max_new_tokens: int = 100
    length_penalty: float = 1.0
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    no_repeat_ngram_size: int = 0
    min_new_tokens: int = 0
    num_return_sequences: int = 1

    def __post_init__(self):
        for name in ("beams", "max_new_tokens", "temperature", "top_k", "num_return_sequences"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{flag_name(name)} must be positive, not {value}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ConfigError(f"top-p must lie in (0, 1], not {self.top_p}")
        if not math.isfinite(self.length_penalty):
            raise ConfigError(f"length-penalty must be finite, not {self.length_penalty}")
        if self.beams > 1 and self.samples:
            raise ConfigError("beams above 1 exclude temperature, top-k and top-p")
        if self.no_repeat_ngram_size < 0:
            raise ConfigError(f"no-repeat-ngram-size is negative: {self.no_repeat_ngram_size}")
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise ConfigError("min-new-tokens must lie in [0, max-new-tokens]")
        if self.num_return_sequences > self.beams and not self.samples:
            raise ConfigError("num-return-sequences needs as many beams, or sampling")

    @property
    def samples(self) -> bool:
        return any(value is not None for value in (self.temperature, self.top_k, self.top_p))
