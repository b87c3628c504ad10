"""What becomes of prefix-tuning when one setting changes: the paper's section 7, and the poster's.

python bench/ablation.py --quick      # three lengths, one epoch, the embedded model
python bench/ablation.py --model gpt2 --data e2e --out runs/ablation-gpt2 --json ablation.json

Lengths, placements (in front of the table, or between it and the sentence), depth (rows for every
layer, or virtual tokens alone), what rows begin as (noise, or words), and few examples, each by
train.py with its recipe and one flag more. Test tables are decoded by beam search. Finished runs in
--out are taken as they are. Pictures go there too.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import tyro
from measure.record import Record
from quality.experiment import KeptTestSet, trained
from reports.quality import ablation_table

from mingpt_prefix.checkpoints.pretrained import choose_device

WORDS = "summarize the table in one sentence:"


@dataclass(frozen=True)
class Args:
    model: str = "tiny"
    data: str = "sample"
    lengths: tuple[int, ...] = (1, 3, 5, 10, 20, 50, 200)
    examples: tuple[int, ...] = (50, 100, 200, 500)
    """of the low-data runs, which take as many steps as one epoch over 1,000"""
    seeds: int = 1
    beams: int = 5
    quick: bool = False
    """lengths 1, 10 and 100 alone, one epoch"""
    out: Path = Path("runs/ablation")
    json: Path | None = None
    picture: Path | None = None
    """of BLEU by prefix length; in --out if not given"""


def variants(args: Args) -> dict[str, dict[str, list[str]]]:
    """Groups of settings, each with what it is called and its flags."""
    lengths = {str(n): ["--prefix-length", str(n)] for n in args.lengths}
    if args.quick:
        lengths = {str(n): ["--prefix-length", str(n), "--epochs", "1"] for n in (1, 10, 100)}
        return {"length": lengths}
    same = ["--prefix-length", "20"]
    few = ["--epochs", "1000000", "--max-steps", "250"]
    return {
        "length": lengths,
        "placement": {name: ["--placement", name] for name in ("prefix", "infix")},
        "depth": {name: ["--depth", name] for name in ("all", "embedding")},
        "start": {
            "noise": ["--init", "noise", *same],
            "examples": ["--init", "examples", *same],
            "words": ["--init-text", WORDS, *same],
        },
        "examples": {str(n): ["--limit-examples", str(n), *few] for n in args.examples},
    }


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    test = KeptTestSet(args.data, args.out)
    about = {"model": args.model, "data": args.data, "tables": len(test.tables)}
    about |= {"beams": args.beams, "ablation": []}
    record = Record("ablation.py", choose_device("auto"), args.json, **about)
    for group, settings in variants(args).items():
        for setting, flags in settings.items():
            for seed in range(args.seeds):
                name = f"{group}-{setting}-{seed}" + ("-quick" if args.quick else "")
                fixed = ["--mode", "prefix", "--data", args.data, "--seed", str(seed)]
                with record.part(name):
                    row = trained(test, name, args.model, args.beams, *fixed, *flags)
                    row = {"group": group, "setting": setting, **dataclasses.asdict(row)}
                    record["ablation"].append(row)
    from reports.pictures import length_curve

    picture = args.picture or args.out / "length.png"
    with record.part("the picture"):
        length_curve(record, picture)
    record.finish(lambda record: f"{ablation_table(record)}\nDrawn: {picture}")


if __name__ == "__main__":
    main()
