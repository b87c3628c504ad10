"""Next-token training on plain text: windows of tokens, held-out documents, bits per byte.

    corpus = read_corpus([Path("english.txt.xz")], load_tokenizer("gpt2"), block_size=1024)

Documents are told apart by the end token. About one in a hundred, chosen by the hash of its text,
is held out: it is never trained on, whatever else is in the data. If that is none of them, the one
with the lowest hash is; of a single document the last hundredth.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mingpt_prefix.batch import Encoded, pack
from mingpt_prefix.data.text import documents
from mingpt_prefix.data.tokenizer import END_OF_TEXT, Tokenizer
from mingpt_prefix.errors import ConfigError, DataError
from mingpt_prefix.model import GPT2
from mingpt_prefix.step import SummedLoss

HELD_OUT_SHARE = 0.01
_ENCODE_AT_ONCE = 1_000
_GOLDEN = 0x9E3779B1  # 2**32 over the golden ratio: its multiples spread evenly


class Windows(Sequence[Encoded]):
    """Windows of `block_size` tokens that overlap by one, so that each token is predicted once.

    `spread`: window i begins at a position of its own in [0, spread], so that a model whose
    position limit is beyond the window learns all of its positions.
    """

    def __init__(self, stream: np.ndarray, block_size: int, spread: int = 0) -> None:
        self.stream, self.block_size, self.spread = stream, block_size, spread

    def __len__(self) -> int:
        return -(-(len(self.stream) - 1) // (self.block_size - 1))

    def __getitem__(self, index: int) -> Encoded:
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = index * (self.block_size - 1)
        ids = torch.from_numpy(self.stream[start : start + self.block_size].astype(np.int64))
        return Encoded(ids, 1, index * _GOLDEN % 2**32 % (self.spread + 1))


@dataclass(frozen=True)
class Corpus:
    """Windows to train on, windows held out, and how many bytes of text those hold; `note` says
    what was held out of few documents.
    """

    train: Windows
    held_out: Windows
    held_out_bytes: int
    note: str = ""


def is_held_out(document: str) -> bool:
    """Whether a document is set aside, by the hash of its text alone."""
    return _hash_of(document) < HELD_OUT_SHARE


def _hash_of(document: str) -> float:
    """A text's hash, in [0, 1)."""
    return int.from_bytes(hashlib.sha256(document.encode()).digest()[:4], "big") / 2**32


def read_corpus(
    paths: Sequence[Path], tokenizer: Tokenizer, block_size: int, n_positions: int
) -> Corpus:
    """Read and encode all documents of `paths`.

    Raises:
        DataError: when a file is missing or damaged, or too short to train on.
        ConfigError: when a window is longer than `n_positions`.
    """
    if not 2 <= block_size <= n_positions:
        raise ConfigError(f"block-size must lie in 2 to {n_positions}, not {block_size}")
    streams: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    hashes: list[float] = []
    for path in paths:
        for batch in _chunks(documents(path), _ENCODE_AT_ONCE):
            encoded = tokenizer.encoding.encode_ordinary_batch(batch)
            for document, ids in zip(batch, encoded, strict=True):
                hashes.append(_hash_of(document))
                held = hashes[-1] < HELD_OUT_SHARE
                streams[held].append(np.array([*ids, tokenizer.eos], np.uint16))
    note = ""
    if not all(streams):
        streams, note = _of_few([*streams[0], *streams[1]], hashes)
    decode = tokenizer.encoding.decode_bytes
    held_out_bytes = sum(len(decode(ids[:-1].tolist())) for ids in streams[1])
    names = ", ".join(path.name for path in paths)
    spread = n_positions - block_size
    train, held_out = (
        Windows(np.concatenate([np.array([tokenizer.eos], np.uint16), *parts]), block_size, room)
        for parts, room in zip(streams, (spread, 0), strict=True)
    )
    if len(train.stream) <= block_size:
        raise DataError(f"{names}: fewer than {block_size} tokens to train on")
    return Corpus(train, held_out, held_out_bytes, note)


def _of_few(
    documents: list[np.ndarray], hashes: list[float]
) -> tuple[tuple[list[np.ndarray], list[np.ndarray]], str]:
    """What to train on and what to hold out, and that in words: the document of the lowest hash,
    with all that are equal; of a single one the tail."""
    lowest, how = min(hashes), f"documents are separated by a line {END_OF_TEXT}"
    streams: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for ids, value in zip(documents, hashes, strict=True):
        streams[value == lowest].append(ids)
    if streams[0]:
        return streams, f"Held out: one document of {len(documents):,}; {how}."
    size = max(2, round(HELD_OUT_SHARE * len(documents[0])))
    streams = [ids[:-size] for ids in documents], [documents[0][-size:]]
    return streams, f"Held out: the last {size - 1:,} tokens of a single document; {how}."


@torch.inference_mode()
def bits_per_byte(model: GPT2, held_out: Windows, n_bytes: int, batch_size: int = 16) -> float:
    """The loss of `model` on `held_out`, end tokens included, in bits per byte of its text.

    Each window is read on its own, so a token sees at most `block_size - 1` before it.
    """
    nats, loss = 0.0, SummedLoss(model, autocasts=False)
    for indices in _chunks(range(len(held_out)), batch_size):
        nats += float(loss(pack([held_out[i] for i in indices]).to(model.device)))
    return nats / math.log(2) / n_bytes


def _chunks(items: Iterable, size: int) -> Iterator[list]:
    chunk = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
