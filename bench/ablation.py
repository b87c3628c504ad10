"""What becomes of prefix-tuning when one setting changes: the paper's section 7, and the poster's.

python bench/ablation.py --quick      # three lengths, one epoch, the embedded model
python bench/ablation.py --what length --json bench/results/ablation.json --picture docs/length.png
python bench/ablation.py --model gpt2 --data e2e --out runs/ablation-gpt2 --json ablation.json

Lengths, placements (in front of the table, or between it and the sentence), depth (rows for every
layer, or virtual tokens alone), what rows begin as (noise, examples, or words), and few examples:
the values of a setting and all seeds are trained in one run (train.py --sweep), with the recipe and
maybe a flag more. Test tables are decoded by beam search. Finished runs in --out are taken as they
are. The picture goes there too.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import tyro
from measure.record import Record
from quality.experiment import KeptTestSet, scored, swept
from reports.quality import ablation_table

from mingpt_prefix.checkpoints.pretrained import choose_device

WORDS = "summarize the table in one sentence:"
What = Literal["length", "placement", "depth", "start", "examples"]


@dataclass(frozen=True)
class Args:
    model: str = "tiny"
    data: str = "sample"
    what: tuple[What, ...] = get_args(What)
    lengths: tuple[int, ...] = (1, 5, 10, 20, 50, 100)
    examples: tuple[int, ...] = (50, 100, 200, 500)
    """of the low-data runs, which take as many steps as one epoch over 2,000"""
    seeds: int = 1
    max_steps: int | None = None
    """in place of the recipe's epochs"""
    beams: int = 5
    quick: bool = False
    """only lengths 1, 10 and 100, one epoch"""
    out: Path = Path("runs/ablation")
    json: Path | None = None
    picture: Path | None = None
    """of BLEU by prefix length; in --out if not given"""


@dataclass(frozen=True)
class Sweep:
    """Runs of train.py that differ in one setting, and in their seeds."""

    what: What
    setting: str
    values: tuple[object, ...]
    flags: tuple[str, ...] = ()


def sweeps(args: Args) -> list[Sweep]:
    if args.quick:
        return [Sweep("length", "prefix_length", (1, 10, 100), ("--epochs", "1"))]
    same = ("--prefix-length", "20")
    few = ("--epochs", "1000000", "--max-steps", str(args.max_steps or 250))
    steps = ("--max-steps", str(args.max_steps)) if args.max_steps else ()
    found = [
        Sweep("length", "prefix_length", args.lengths, steps),
        Sweep("placement", "placement", ("prefix", "infix"), steps),
        Sweep("depth", "depth", ("all", "embedding"), steps),
        Sweep("start", "init", ("noise", "examples"), (*same, *steps)),
        Sweep("start", "init_text", (WORDS,), (*same, *steps)),
        Sweep("examples", "limit_examples", args.examples, few),
    ]
    return [sweep for sweep in found if sweep.what in args.what]


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    test = KeptTestSet(args.data, args.out)
    about = {"model": args.model, "data": args.data, "tables": len(test.tables)}
    about |= {"beams": args.beams, "ablation": []}
    record = Record("ablation.py", choose_device("auto"), args.json, **about)
    for sweep in sweeps(args):
        folder = test.out / (sweep.setting + ("-quick" if args.quick else ""))
        flags = ["--mode", "prefix", "--data", args.data, *sweep.flags]
        values = {sweep.setting: sweep.values, "seed": range(args.seeds)}
        members: dict[Path, dict[str, str]] = {}
        with record.part(sweep.setting):
            members = swept(folder, args.model, *flags, **values)
        for member, settings in members.items():
            with record.part(member.name):
                row = scored(test, member, args.model, args.beams, trained_together=len(members))
                row = {"setting": settings[sweep.setting], **dataclasses.asdict(row)}
                record["ablation"].append({"group": sweep.what, **row})
    if "length" not in args.what:  # which is what the picture shows
        record.finish(ablation_table)
    from reports.pictures import length_curve

    picture = args.picture or args.out / "length.png"
    with record.part("the picture"):
        length_curve(record, picture)
    record.finish(lambda record: f"{ablation_table(record)}\nDrawn: {picture}")


if __name__ == "__main__":
    main()
