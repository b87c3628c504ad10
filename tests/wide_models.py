"""Small models for comparing with other libraries' adapters, and those libraries' own of the same
weights."""

from pathlib import Path

import pytest
import torch

from mingpt_prefix.config import ModelConfig
from mingpt_prefix.model import GPT2
from mingpt_prefix.weights import save_model

SHAPE = ModelConfig(3, 2, 16, vocab_size=4096, n_positions=160, eos_token_id=4095, tokenizer="tiny")


def wide_model(folder: Path, seed: int) -> Path:
    """A model whose weights are so wide that a wrong row or position shows in the logits."""
    model = GPT2(SHAPE)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter.data, std=0.3, generator=generator)
    save_model(model, folder)
    return folder


def peer_of(base: Path) -> torch.nn.Module:
    """transformers' model in the folder `base`."""
    return pytest.importorskip("transformers").GPT2LMHeadModel.from_pretrained(base).eval()
