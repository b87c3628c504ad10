"""How good a language model a base is: bits per byte of text that was held out of its training.

python bench/language.py --model tiny --data english.txt.xz

About one document in a hundred is held out, by its hash; see mingpt_prefix/data/pretraining.py.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import tyro

from mingpt_prefix.checkpoints.pretrained import load_model
from mingpt_prefix.data.pretraining import bits_per_byte, read_corpus
from mingpt_prefix.data.tokenizer import load_tokenizer


@dataclass(frozen=True)
class Args:
    data: tuple[Path, ...]
    model: str = "tiny"
    block_size: int = 256


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    model = load_model(args.model)
    tokenizer = load_tokenizer(model.config.tokenizer)
    found = {}
    for path in args.data:
        corpus = read_corpus([path], tokenizer, args.block_size, model.config.n_positions)
        found[path.name] = bits_per_byte(model, corpus.held_out, corpus.held_out_bytes)
        print(f"{path.name}: {found[path.name]:.3f} bits per byte of {corpus.held_out_bytes:,}")
    print(json.dumps({"model": args.model, "block_size": args.block_size, "bits_per_byte": found}))


if __name__ == "__main__":
    main()
