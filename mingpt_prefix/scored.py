"""What decoding gives for a prompt: sequences of new ids, each with its score."""

from typing import NamedTuple


class Scored(NamedTuple):
    """New ids, without the end token, and their score: the higher the better.

    By beams it is the sum of the log-probabilities, the end token's among them, divided by their
    number to the power of the length penalty; otherwise it is the sum alone.
    """

    ids: list[int]
    score: float
