"""How well a base finds a table's value by its slot's name, in tables as prefixes meet them.

python bench/retrieval.py --model tiny

Five slots of random words, then "The NAME is": how often the value's first token is the likeliest
of all, and how often of the five values'. Chance is 20 % of the latter. Nothing is trained.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
import tyro

from mingpt_prefix.checkpoints.pretrained import load_model
from mingpt_prefix.data.tables import Table, linearize
from mingpt_prefix.data.tokenizer import load_tokenizer
from mingpt_prefix.tiny.corpus import everyday_words
from mingpt_prefix.tiny.names import Names

_KINDS = ("place", "person", "work", "year")
_PROSE = Path(__file__).with_name("prose.txt")


@dataclass(frozen=True)
class Args:
    model: str = "tiny"
    tables: int = 500
    seed: int = 0


@torch.no_grad()
def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    model, rng = load_model(args.model, "cpu", "fp32"), Random(args.seed)
    tokenizer = load_tokenizer(model.config.tokenizer)
    names = Names(rng, everyday_words(_PROSE.read_text(encoding="utf-8")))
    best = among = 0
    for _ in range(args.tables):
        slots = {names.plain(): names.draw(rng.choice(_KINDS))[0] for _ in range(5)}
        asked = rng.choice(tuple(slots))
        table = linearize(Table(tuple(slots.items())))
        prompt = [*tokenizer.encode(table), tokenizer.eos, *tokenizer.encode(f" The {asked} is")]
        logits = model.logits([prompt])[0][-1]
        first = {name: tokenizer.encode(f" {value}")[0] for name, value in slots.items()}
        best += int(logits.argmax()) == first[asked]
        among += max(first.values(), key=lambda token: float(logits[token])) == first[asked]
    found = {"likeliest_of_all": best / args.tables, "likeliest_of_five": among / args.tables}
    print(f"right: {best / args.tables:.0%} of all tokens, {among / args.tables:.0%} of the five")
    print(json.dumps({"model": args.model, "tables": args.tables, **found}))


if __name__ == "__main__":
    main()
