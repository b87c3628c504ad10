"""The embedded default: a small pretrained model, its vocabulary, a prefix, and a sample data set.

`make.py` is the recipe they come from; MODEL.md says what went into the files that lie here.
"""

from importlib import resources
from importlib.resources.abc import Traversable

FILES: Traversable = resources.files(__name__)
