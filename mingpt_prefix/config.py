"""Settings as frozen dataclasses: the model's shape, a training run, decoding.

Each field declares its range or choices; `__post_init__` checks combinations.
"""

import dataclasses
import json
import math
from dataclasses import MISSING, dataclass, field
from typing import Any, Literal, get_args, get_origin

from mingpt_prefix.errors import ConfigError

Mode = Literal["prefix", "lora", "prefix+lora", "finetune", "pretrain"]
Optimizer = Literal["adamw", "muon"]
Placement = Literal["prefix", "infix"]
Depth = Literal["all", "embedding"]
Init = Literal["noise", "examples"]
Split = Literal["train", "dev", "test", "test-known"]
# The weights of a block that LoRA may change, by their names in it.
Target = Literal["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]
PLACEMENTS: tuple[str, ...] = get_args(Placement)
TARGETS: tuple[str, ...] = get_args(Target)
MAX_SEED = 2**31 - 1
# The ranges that a field's metadata can name, in the words of the error message.
_RANGES = {
    "be positive": lambda value: value > 0,
    "not be negative": lambda value: value >= 0,
    "lie in [0, 1)": lambda value: 0 <= value < 1,
    "lie in (0, 1]": lambda value: 0 < value <= 1,
    "lie in [-10, 10]": lambda value: -10 <= value <= 10,
}


def _number(range_: str, default: Any = MISSING) -> Any:
    """A dataclass field whose value must be finite and in this range, unless it is None."""
    return field(default=default, metadata={"range": range_})


def flag_name(name: str) -> str:
    """A setting's name on the command line, without the leading dashes."""
    return name.replace("_", "-")


def _check(name: str, value: float, range_: str) -> None:
    if not _RANGES[range_](value):
        raise ConfigError(f"{flag_name(name)} must {range_}, not {value}")
    if not -math.inf < value < math.inf:  # math.isfinite overflows at a long integer
        raise ConfigError(f"{flag_name(name)} must be finite, not {value}")


def check_ranges(settings: Any) -> None:
    """Raises ConfigError if a number lies outside its field's range."""
    for each in dataclasses.fields(settings):
        value, range_ = getattr(settings, each.name), each.metadata.get("range")
        if range_ is not None and value is not None:
            _check(each.name, value, range_)


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a GPT-2; the field names are those of its `config.json`.

    `eos_token_id` None: no token ends a text. `tokenizer` None: unknown.
    """

    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    vocab_size: int = 50257
    n_positions: int = 1024
    layer_norm_epsilon: float = 1e-5
    eos_token_id: int | None = 50256
    tokenizer: str | None = "gpt2"

    def __post_init__(self):
        for name in ("n_layer", "n_head", "n_embd", "vocab_size", "n_positions"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} must be a positive whole number, not {value!r}")
        if self.n_embd % self.n_head:
            raise ConfigError(f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}")
        if self.eos_token_id is not None and not 0 <= self.eos_token_id < self.vocab_size:
            raise ConfigError(
                f"eos_token_id {self.eos_token_id} is outside the vocabulary of {self.vocab_size}"
            )

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    @property
    def n_tokens(self) -> int:
        """How many ids are tokens: ids beyond those of GPT-2's tokenizer are padding."""
        own = ModelConfig.vocab_size  # the default
        return min(self.vocab_size, own) if self.tokenizer == "gpt2" else self.vocab_size


MODELS = {
    "tiny": ModelConfig(
        6, 8, 256, vocab_size=1024, n_positions=512, eos_token_id=1023, tokenizer="tiny-1024"
    ),
    "gpt2": ModelConfig(),
    "gpt2-medium": ModelConfig(24, 16, 1024),
    "gpt2-large": ModelConfig(36, 20, 1280),
    "gpt2-xl": ModelConfig(48, 25, 1600),
}


@dataclass(frozen=True)
class TrainConfig:
    """The settings of one training run, all resolved.

    - `lr`: the peak learning rate; after `warmup` (a share of all steps) it falls linearly to 0.
    - `batch_size`: examples per optimizer step, `micro_batch_size` of them in the model at once.
    - `max_steps` 0: as many as `epochs` gives. `evals`: dev losses in a run.
    - `limit_examples`: how many training examples, drawn by the seed; 0 means all.
    - `placement` infix: only the targets see the rows, not the table.
    - `depth` embedding: the rows are the frozen model's keys and values of P learned embeddings.
    - `init_text`: the rows start as the keys and values of these words; `init` examples: of
      training examples drawn by the seed; `init_prefix`: as this file's (SHA-256 `init_digest`).
    - `init_scale`: scales the prefix MLP's last weight as torch initializes it.
    - `prefix_dropout`: of the rows; `dropout`: of a trained model's embeddings and residuals.
    - `lora_targets`: the weights that change, each by the product of (in, `lora_rank`) and
      (`lora_rank`, out) matrices times `lora_alpha` / `lora_rank`; `lora_dropout`: of their input;
      `lora_lr`: their peak learning rate beside a prefix, 0 for `lr`.
    - `block_size`: tokens in a pretraining window.
    - `grad_checkpoint`: recompute activations in backward, which saves memory.
    - `input_template`, `text_field`: how tables are spelled, and which field holds the sentence.
    - `slots`: the slot names of the training tables, if they are a fixed set.
    """

    mode: Mode
    model: str
    data: tuple[str, ...]
    lr: float = _number("be positive")
    epochs: float = _number("be positive")
    batch_size: int = _number("be positive")
    micro_batch_size: int = _number("be positive")
    prefix_length: int = _number("not be negative", 0)
    reparam: bool = True
    mid_dim: int = _number("be positive", 512)
    init_scale: float = _number("be positive", 1.0)
    placement: Placement = "prefix"
    depth: Depth = "all"
    init_text: str = ""
    init: Init = "noise"
    init_prefix: str = ""
    init_digest: str = ""
    prefix_dropout: float = _number("lie in [0, 1)", 0.0)
    lora_rank: int = _number("not be negative", 0)
    lora_alpha: float = _number("not be negative", 0.0)
    lora_targets: tuple[str, ...] = ()
    lora_dropout: float = _number("lie in [0, 1)", 0.0)
    lora_lr: float = _number("not be negative", 0.0)
    dropout: float = _number("lie in [0, 1)", 0.0)
    optimizer: Optimizer = "adamw"
    weight_decay: float = _number("not be negative", 0.0)
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = _number("be positive", 1.0)
    warmup: float = _number("lie in [0, 1)", 0.0)
    max_steps: int = _number("not be negative", 0)
    limit_examples: int = _number("not be negative", 0)
    evals: int = _number("be positive", 5)
    block_size: int = _number("be positive", 256)
    grad_checkpoint: bool = False
    input_template: str = ""
    text_field: str = ""
    slots: tuple[str, ...] = ()
    seed: int = _number("not be negative", 0)
    device: str = "cpu"
    dtype: Literal["fp32", "bf16"] = "fp32"
    attention: str = "reference"

    def __post_init__(self):
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            if get_origin(each.type) is Literal and value not in get_args(each.type):
                raise ConfigError(f"unknown {each.name} {value!r}")
        if unknown := set(self.lora_targets) - set(TARGETS):
            raise ConfigError(f"unknown lora-targets: {sorted(map(str, unknown))}")
        needed = ["prefix_length"] if self.has_prefix else []
        for name in needed + (["lora_rank", "lora_alpha"] if self.has_lora else []):
            _check(name, getattr(self, name), "be positive")
        if self.epochs > 1e6:
            raise ConfigError(f"epochs must be at most a million, not {self.epochs:g}")
        if self.seed > MAX_SEED:
            raise ConfigError(f"seed must be at most {MAX_SEED}, not {self.seed}")
        check_ranges(self)
        if self.optimizer == "muon" and self.is_frozen and (self.reparam or not self.has_prefix):
            what = "of a prefix, those of --no-reparam"
            raise ConfigError(f"--optimizer muon is for matrices: {what}")
        if self.init_prefix and (self.init_text or self.init != "noise" or self.depth != "all"):
            raise ConfigError("--init-prefix goes with none of --init, --init-text and --depth")
        if self.depth == "embedding" and self.has_lora:
            what = "LoRA changes what rows it has"
            raise ConfigError(f"--depth embedding is for --mode prefix: {what}")
        if self.mode == "pretrain" and (self.input_template or self.text_field):
            raise ConfigError("--input-template and --text-field are for tables, not for pretrain")
        if self.has_lora and len(set(self.lora_targets)) != (len(self.lora_targets) or None):
            raise ConfigError("--lora-targets must name weights, each once")

    @property
    def has_prefix(self) -> bool:
        return self.mode in ("prefix", "prefix+lora")

    @property
    def has_lora(self) -> bool:
        return self.mode in ("lora", "prefix+lora")

    @property
    def is_frozen(self) -> bool:
        """Whether the model's own weights stay unchanged."""
        return self.has_prefix or self.has_lora


def to_json(config) -> dict:
    """A dataclass as JSON would load it: tuples become lists."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


@dataclass(frozen=True)
class Decoding:
    """How new tokens are chosen: by beam search, or with one beam greedily, or by sampling if a
    temperature, top-k or top-p is set. No n-gram of `no_repeat_ngram_size` tokens occurs twice,
    prompt included (0: no limit). `num_return_sequences`: the best beams, or samples."""

    beams: int = _number("be positive", 1)
    max_new_tokens: int = _number("be positive", 100)
    length_penalty: float = _number("lie in [-10, 10]", 1.0)  # 32 bits hold length**10
    temperature: float | None = _number("not be negative", None)  # 0: greedy
    top_k: int | None = _number("be positive", None)
    top_p: float | None = _number("lie in (0, 1]", None)
    no_repeat_ngram_size: int = _number("not be negative", 0)
    min_new_tokens: int = 0
    num_return_sequences: int = _number("be positive", 1)

    def __post_init__(self):
        check_ranges(self)
        if self.beams > 1 and self.samples:
            raise ConfigError("temperature, top-k and top-p need beams 1")
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise ConfigError("min-new-tokens must lie in [0, max-new-tokens]")
        if self.num_return_sequences > self.beams and not self.samples:
            raise ConfigError("num-return-sequences needs as many beams, or sampling")

    @property
    def samples(self) -> bool:
        given = (self.temperature, self.top_k, self.top_p)
        return self.temperature != 0 and any(value is not None for value in given)
