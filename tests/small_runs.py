"""Little training runs of each kind: their settings, their examples, and what is learned."""

from dataclasses import replace

import torch
from safetensors.torch import save

from mingpt_prefix.batch import Encoded
from mingpt_prefix.config import ModelConfig, TrainConfig
from mingpt_prefix.evaluation.training_run import make_trainer
from mingpt_prefix.model import GPT2
from mingpt_prefix.trainer import Trainer

SHAPE = ModelConfig(2, 2, 16, vocab_size=50, n_positions=48, eos_token_id=49, tokenizer=None)
PREFIX = TrainConfig(
    mode="prefix", model="small", data=("none",), lr=0.01, epochs=3, batch_size=6,
    micro_batch_size=6, prefix_length=4, mid_dim=8, evals=2,
)  # fmt: skip
FINETUNE = replace(PREFIX, mode="finetune", prefix_length=0, dropout=0.2)
PRETRAIN = replace(
    FINETUNE, mode="pretrain", weight_decay=0.1, warmup=0.3, dropout=0.0, optimizer="muon"
)
DIRECT = replace(PREFIX, reparam=False, lr=0.03)
LORA = replace(
    PREFIX, mode="lora", prefix_length=0, lora_rank=2, lora_alpha=4.0, lora_dropout=0.1,
    lora_targets=("attn.c_attn", "mlp.c_fc"),
)  # fmt: skip
BOTH = replace(LORA, mode="prefix+lora", prefix_length=4, lora_lr=0.02)
NAMED = {
    "prefix": PREFIX, "direct": DIRECT, "lora": LORA, "prefix+lora": BOTH,
    "finetune": FINETUNE, "pretrain": PRETRAIN,
}  # fmt: skip


def examples(count: int, seed: int = 0) -> list[Encoded]:
    """Sequences of 5 to 30 tokens that count upwards, so that there is something to learn."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        start, length = torch.randint(0, 50, (2,), generator=generator).tolist()
        length = 5 + length % 26
        found.append(Encoded((start + torch.arange(length)) % 50, 1 + length // 3))
    return found


def make(config: TrainConfig, count: int = 20, dtype: torch.dtype = torch.float32) -> Trainer:
    model = GPT2(SHAPE).initialize(1).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 5  # fresh weights hardly answer to a prefix
    return make_trainer(config, model, examples(count), examples(8, seed=1))


def learned(trainer: Trainer) -> bytes:
    return save({k: v.contiguous() for k, v in trainer.trainable.state_dict().items()})


def losses(trainer: Trainer) -> list[float]:
    return [progress.loss for progress in trainer.steps()]
