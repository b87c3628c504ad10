"""The embedded default: a small pretrained model, its vocabulary, a prefix, and a sample data set.

`make.py` is the recipe; MODEL.md describes how these files were made.
"""

from pathlib import Path

_HERE = Path(__file__).parent
MODEL = _HERE / "model"
PREFIX = _HERE / "prefix.safetensors"
SAMPLE = _HERE / "sample"
# Keyed by a model config's `tokenizer`; "tiny" is the vocabulary of an earlier embedded model.
VOCABULARIES = {"tiny-1024": _HERE / "vocab-1024.tiktoken", "tiny": _HERE / "vocab-4096.tiktoken"}
