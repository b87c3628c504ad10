"""Byte-level BPE by tiktoken: GPT-2's encoding, and the embedded model's small one.

    tokenizer = load_tokenizer("gpt2")
    tokenizer.decode(tokenizer.encode(" The Mill is a pub"))

Text is always encoded as plain text: `<|endoftext|>` in it never becomes the end token.
"""

import base64
import functools
import os
from dataclasses import dataclass

import tiktoken

from mingpt_prefix import tiny
from mingpt_prefix.checkpoints.atomic_write import cache_dir
from mingpt_prefix.config import ModelConfig
from mingpt_prefix.errors import ConfigError, DataError, printable

END_OF_TEXT = "<|endoftext|>"
# How GPT-2 splits text before BPE.
PIECES = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class Tokenizer:
    """An encoding by name; `eos` is the id of its `<|endoftext|>`."""

    name: str
    encoding: tiktoken.Encoding

    @property
    def vocab_size(self) -> int:
        return self.encoding.n_vocab

    @property
    def eos(self) -> int:
        return self.encoding.eot_token

    def encode(self, text: str) -> list[int]:
        return self.encoding.encode_ordinary(text)

    def decode(self, ids: list[int]) -> str:
        """Text of `ids`; bytes that are not UTF-8 become U+FFFD."""
        return self.encoding.decode(ids, errors="replace")


@functools.cache
def load_tokenizer(name: str) -> Tokenizer:
    """The encoding `gpt2` (its files are downloaded once, to the cache folder) or one of the
    embedded model's.

    Raises:
        ConfigError: for another name.
        DataError: if GPT-2's files are not cached and cannot be downloaded.
    """
    if name in tiny.VOCABULARIES:
        return Tokenizer(name, _from_ranks(name, tiny.VOCABULARIES[name].read_bytes()))
    if name != "gpt2":
        raise ConfigError(f"unknown tokenizer '{printable(name)}'; known: gpt2, tiny-1024, tiny")
    if "TIKTOKEN_CACHE_DIR" not in os.environ:
        os.environ["TIKTOKEN_CACHE_DIR"] = str(cache_dir() / "tiktoken")
    folder = os.environ["TIKTOKEN_CACHE_DIR"]
    try:
        return Tokenizer(name, tiktoken.get_encoding("gpt2"))
    except (OSError, ValueError) as error:
        why = type(error).__name__
        raise DataError(
            f"GPT-2's tokenizer is not in {printable(folder, 200)} and cannot be downloaded ({why})"
        ) from None


def tokenizer_of(shape: ModelConfig) -> Tokenizer:
    """The tokenizer of a model of this shape.

    Raises:
        ConfigError: if it is unknown, or its vocabulary differs from the model's.
        DataError: like `load_tokenizer`.
    """
    if shape.tokenizer is None:
        raise ConfigError("the model goes with a tokenizer that is not known here: GPT-2's only")
    tokenizer = load_tokenizer(shape.tokenizer)
    if tokenizer.vocab_size != shape.n_tokens:
        sizes = f"{tokenizer.vocab_size} tokens, the model {shape.vocab_size}"
        raise ConfigError(f"the tokenizer {tokenizer.name} has {sizes}")
    return tokenizer


def _from_ranks(name: str, lines: bytes) -> tiktoken.Encoding:
    pairs = (line.split() for line in lines.splitlines())
    ranks = {base64.b64decode(token): int(rank) for token, rank in pairs}
    return tiktoken.Encoding(
        name, pat_str=PIECES, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: len(ranks)}
    )
