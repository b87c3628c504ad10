"""The embedded default: a small pretrained model, its vocabulary, a prefix, and a sample data set.

`make.py` is the recipe they come from; MODEL.md says what went into the files that lie here.
"""

from pathlib import Path

_HERE = Path(__file__).parent
MODEL = _HERE / "model"
PREFIX = _HERE / "prefix.safetensors"
SAMPLE = _HERE / "sample"
VOCABULARY = _HERE / "vocab.tiktoken"
