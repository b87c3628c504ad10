"""Makes the embedded model's vocabulary: byte-level BPE, in tiktoken's file form.

    python -m mingpt_prefix.tiny.make_vocab --data TEXT [TEXT ...] --out vocab.tiktoken

The first 256 ranks are the bytes, the others the merges in the order they were learned. Of each
file the first 25 MB are read: more text hardly changes so few merges.
"""

import argparse
import base64
from collections.abc import Iterator, Sequence
from pathlib import Path

from mingpt_prefix.data.text import documents
from mingpt_prefix.data.tokenizer import END_OF_TEXT, PIECES

LIMIT_BYTES = 25_000_000


def learn(texts: Sequence[Path], size: int) -> dict[bytes, int]:
    """Ranks of `size - 1` tokens, so that the end token makes it `size`."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - 1, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    bpe.train_from_iterator((text for path in texts for text in _first(path)), trainer)
    raw = _bytes_of_letters()
    ids = sorted((rank, token) for token, rank in bpe.get_vocab().items())
    merged = [bytes(raw[letter] for letter in token) for _, token in ids if len(token) > 1]
    return {token: rank for rank, token in enumerate([*map(_byte, range(256)), *merged])}


def _first(path: Path) -> Iterator[str]:
    """The documents of the file's first `LIMIT_BYTES`, the last of them cut off."""
    left = LIMIT_BYTES
    for document in documents(path):
        yield document.encode()[:left].decode(errors="ignore")
        left -= len(f"{document}\n{END_OF_TEXT}\n".encode())
        if left <= 0:
            return


def _byte(value: int) -> bytes:
    return bytes([value])


def _bytes_of_letters() -> dict[str, int]:
    """Byte-level BPE spells each byte as a printable letter: this reads them back."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(256 + place): byte for place, byte in enumerate(others)}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Learn the embedded model's vocabulary.")
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--size", type=int, default=4096, help="with the end token")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("vocab.tiktoken"))
    options = parser.parse_args(argv)
    ranks = learn(options.data, options.size)
    lines = (base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items())
    options.out.write_bytes(b"".join(lines))


if __name__ == "__main__":
    main()
