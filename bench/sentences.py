"""What a model says of the first test tables of the sample data, and what is wrong with each.

python bench/sentences.py --json bench/results/sentences.json
"""

from dataclasses import dataclass
from pathlib import Path

import tyro
from measure.record import Record
from reports.quality import sentences_table

from mingpt_prefix import tiny
from mingpt_prefix.checkpoints.pretrained import choose_device
from mingpt_prefix.config import Decoding
from mingpt_prefix.data.datasets import Split, load_references
from mingpt_prefix.data.tables import format_table
from mingpt_prefix.evaluation.faults import faults
from mingpt_prefix.evaluation.pipeline import open_pipeline
from mingpt_prefix.evaluation.sample_config import SampleConfig


@dataclass(frozen=True)
class Args:
    prefix: Path = tiny.PREFIX
    split: Split = "test"
    count: int = 30
    beams: int = 5
    json: Path | None = None


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    tables = [table for table, _ in load_references("sample", args.split)]
    about = {"split": args.split, "beams": args.beams, "sentences": []}
    record = Record("sentences.py", choose_device("auto"), args.json, **about)
    pipeline = open_pipeline(SampleConfig(prefix=args.prefix))
    said = pipeline.write(tables[: args.count], Decoding(beams=args.beams))
    for table, text in zip(tables, map(str, said), strict=False):
        wrong = [list(fault) for fault in faults(table.slots, text)]
        row = {"table": format_table(table), "says": text, "faults": wrong}
        record["sentences"].append(row)
    record.finish(sentences_table)


if __name__ == "__main__":
    main()
