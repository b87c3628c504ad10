"""What several tests build on: a small base of random weights, and tables to train on."""

import csv
import importlib
import os
from pathlib import Path
from types import ModuleType

import pytest

from mingpt_prefix.checkpoints.pretrained import save_model
from mingpt_prefix.config import ModelConfig
from mingpt_prefix.model import GPT2

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tests ask only hubs of their own

SMALL = ModelConfig(2, 2, 32, vocab_size=4096, n_positions=160, eos_token_id=4095, tokenizer="tiny")
KINDS = ("pub", "bistro", "coffee shop")


@pytest.fixture(scope="session")
def sample() -> ModuleType:
    """sample.py as a module."""
    return importlib.import_module("sample")


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small model that goes with the embedded tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "small"
    save_model(GPT2(SMALL).initialize(0), folder)
    return folder


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV of 40 tables, each with a sentence."""
    path = tmp_path_factory.mktemp("data") / "small.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("mr", "ref"))
        for number in range(40):
            kind = KINDS[number % 3]
            writer.writerow((f"name[Inn {number}], eatType[{kind}]", f"Inn {number} is a {kind}."))
    return path
