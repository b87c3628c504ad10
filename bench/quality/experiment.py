"""Runs of train.py and what comes of them on a test set: shared by table.py and ablation.py."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mingpt_prefix.checkpoints.run_folder import RunFolder, read_run
from mingpt_prefix.config import Decoding
from mingpt_prefix.data.datasets import Split, group_references, load_split
from mingpt_prefix.data.tables import Table
from mingpt_prefix.errors import ConfigError
from mingpt_prefix.evaluation.faults import FAULTS, faults, slot_errors
from mingpt_prefix.evaluation.pipeline import open_pipeline
from mingpt_prefix.evaluation.sample_config import SampleConfig
from mingpt_prefix.metrics.scores import score

TRAIN = Path(__file__).parents[2] / "train.py"


@dataclass(frozen=True)
class Row:
    """One model on the test set. On the sample data `slot_errors` is the share of all slots that a
    sentence lacks or contradicts, `right` the share of tables without a fault, `faults` how many
    tables have a fault of each kind. Seconds of training; parameters trained and numbers kept;
    bytes."""

    method: str
    seed: int
    scores: dict[str, float]
    slot_errors: float | None
    right: float | None = None
    faults: dict[str, int] | None = None
    lr: float | None = None
    seconds: float | None = None
    trained: int = 0
    kept: int = 0
    peak_memory: int | None = None
    dev_loss: float | None = None


class TestSet:
    """The test tables, and the scores of sentences written for them; these are kept in `out`."""

    def __init__(self, data: str, out: Path, split: Split = "test") -> None:
        groups = group_references(load_split([data], split))
        self.tables: list[Table] = [table for table, _ in groups]
        self.references = [texts for _, texts in groups]
        self.data, self.has_slots = data, data == "sample"
        self.out, self.split = out, split
        out.mkdir(parents=True, exist_ok=True)

    def score(self, name: str, said: Sequence[str]) -> dict:
        """What a Row says of these sentences."""
        (self.out / f"{name}-{self.split}.txt").write_text("".join(f"{text}\n" for text in said))
        of_slots = {"slot_errors": None}
        if self.has_slots:
            pairs = list(zip((table.slots for table in self.tables), said, strict=True))
            found = [{fault.kind for fault in faults(*pair)} for pair in pairs]
            wrong = sum(len(slot_errors(*pair)) for pair in pairs)
            of_slots = {
                "slot_errors": wrong / sum(len(table.slots) for table in self.tables),
                "right": sum(not kinds for kinds in found) / len(found),
                "faults": {kind: sum(kind in kinds for kinds in found) for kind in FAULTS},
            }
        try:
            scores = score(said, self.references)
        except ConfigError as error:
            print(f"BLEU and NIST alone: {error}", file=sys.stderr)
            scores = score(said, self.references, ("bleu", "nist"))
        return {"scores": scores, **of_slots}


def trained(
    test: TestSet, name: str, model: str, beams: int, *flags: str, attention: str = "auto"
) -> Row:
    """A run of train.py in the test set's folder `name`, or the finished one there, scored by what
    is written with this `attention`."""
    folder = test.out / name
    if not folder.exists():
        command = [sys.executable, str(TRAIN), "--model", model, *flags, "--out", str(folder)]
        subprocess.run(command, check=True)
    elif read_run(folder)["result"] is None:
        subprocess.run([sys.executable, str(TRAIN), "--resume", str(folder)], check=True)
    content = read_run(folder)
    config, result = content["config"], content["result"]
    if (config["model"], config["data"]) != (model, [test.data]):
        raise SystemExit(
            f"{folder}: a run of {config['model']} on {config['data']}; name a new --out"
        )
    has_own_model = config["mode"] == "finetune"
    base = None if has_own_model else model
    writer = open_pipeline(SampleConfig(run=folder, model=base, attention=attention))
    said = [str(text) for text in writer.write(test.tables, Decoding(beams=beams))]
    log = RunFolder(folder).read_log()
    return Row(
        method=config["mode"],
        seed=config["seed"],
        lr=config["lr"],
        seconds=result["seconds"],
        trained=result["trained"],
        kept=result["kept"],
        peak_memory=result["peak_memory"],
        dev_loss=min(line["dev_loss"] for line in log if "dev_loss" in line),
        **test.score(f"{name}-beam{beams}", said),
    )
