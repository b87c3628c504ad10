"""What decoding gives for a prompt: sequences of new ids, each with its score."""

from collections.abc import Callable
from typing import NamedTuple

# Called after every step with the numbers of the prompts that got a token, these tokens, and their
# log-probabilities. Beam search gives none of the three: nothing is settled before its end. What it
# raises ends the decoding.
Watch = Callable[[list[int], list[int], list[float]], None]


class Scored(NamedTuple):
    """New ids, without the end token, and their score: the higher the better.

    By beams it is the sum of the log-probabilities, the end token's among them, divided by their
    number to the power of the length penalty; otherwise it is the sum alone.
    """

    ids: list[int]
    score: float
