"""Random tokens of the lengths that E2E's examples have."""

import json
from pathlib import Path

import torch

from mingpt_prefix.batch import Encoded

_LENGTHS = Path(__file__).with_suffix(".json")


def examples(vocab_size: int) -> list[Encoded]:
    """Random ids of E2E's lengths."""
    lengths = json.loads(_LENGTHS.read_text())["lengths"]
    generator = torch.Generator().manual_seed(0)
    return [
        Encoded(torch.randint(vocab_size, (context + target,), generator=generator), context)
        for context, target in lengths
    ]
