"""Small models for comparing with other libraries' adapters, and those libraries' own of the same
weights."""

from pathlib import Path

import pytest
import torch

from mingpt_prefix.checkpoints.pretrained import save_model
from mingpt_prefix.config import ModelConfig
from mingpt_prefix.model import GPT2

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


def train_and_save(model: torch.nn.Module, folder: Path, lr: float) -> torch.nn.Module:
    """An adapter of PEFT's after 20 steps, saved in `folder`."""
    model.train()
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=lr)
    ids = torch.arange(40, 60).view(2, 10)
    losses = []
    for _ in range(20):
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    model.save_pretrained(str(folder))
    return model.eval()
