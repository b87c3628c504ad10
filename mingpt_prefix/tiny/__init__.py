"""The embedded default: a small pretrained model, its vocabulary, a prefix, and a sample data set.

`make.py` is the recipe they come from; MODEL.md says what went into the files that lie here.
"""

from pathlib import Path

_HERE = Path(__file__).parent
MODEL = _HERE / "model"
PREFIX = _HERE / "prefix.safetensors"
SAMPLE = _HERE / "sample"
# By the names that models know them by; "tiny" is that of an earlier embedded model.
VOCABULARIES = {"tiny-1024": _HERE / "vocab-1024.tiktoken", "tiny": _HERE / "vocab-4096.tiktoken"}
