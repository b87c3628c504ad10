"""Runs of train.py and what comes of them on a test set: shared by table.py and ablation.py."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from mingpt_prefix.checkpoints.run_folder import RunFolder, read_run
from mingpt_prefix.cli.sweep import read_sweep
from mingpt_prefix.config import Decoding, Split
from mingpt_prefix.evaluation.pipeline import open_pipeline
from mingpt_prefix.evaluation.sample_config import SampleConfig
from mingpt_prefix.evaluation.test_set import TestSet

TRAIN = Path(__file__).parents[2] / "train.py"


@dataclass(frozen=True)
class Row:
    """One model on the test set. On the sample data `slot_errors` is the share of all slots that a
    sentence lacks or contradicts, `right` the share of tables without a fault, `faults` how many
    tables have a fault of each kind. Seconds of training; parameters trained and numbers kept;
    bytes. `trained_together`: the members of its sweep, of whose seconds it has its share, and
    whose memory is given."""

    method: str
    seed: int
    scores: dict[str, float]
    slot_errors: float | None = None
    right: float | None = None
    faults: dict[str, int] | None = None
    lr: float | None = None
    seconds: float | None = None
    trained: int = 0
    kept: int = 0
    peak_memory: int | None = None
    dev_loss: float | None = None
    trained_together: int = 1


class KeptTestSet(TestSet):
    """A test set that keeps in `out` what was said of it."""

    def __init__(self, data: str, out: Path, split: Split = "test") -> None:
        super().__init__(data, split)
        self.out = out
        out.mkdir(parents=True, exist_ok=True)

    def keep(self, name: str, said: Sequence[str]) -> dict:
        """What a Row says of these sentences."""
        (self.out / f"{name}-{self.split}.txt").write_text("".join(f"{text}\n" for text in said))
        return self.score_or_less(said)


def trained(
    test: KeptTestSet, name: str, model: str, beams: int, *flags: str, attention: str = "auto"
) -> Row:
    """A run of train.py in the test set's folder `name`, or the finished one there, scored by what
    is written with this `attention`."""
    folder = test.out / name
    _train(folder, model, flags, lambda: read_run(folder)["result"] is not None)
    return scored(test, folder, model, beams, attention)


def swept(
    folder: Path, model: str, *flags: str, **values: Sequence[object]
) -> dict[Path, dict[str, str]]:
    """A sweep of train.py in `folder`, or the finished one there, over these values of settings:
    the folder of each member, and what it sets."""
    texts = {name: [str(value) for value in own] for name, own in values.items()}
    flags = (*flags, "--sweep", *(f"{name}={','.join(own)}" for name, own in texts.items()))
    _train(folder, model, flags, lambda: read_sweep(folder).is_over)
    sweep = read_sweep(folder)
    found = [each["settings"] for each in sweep.content["members"]]
    if found != [dict(zip(texts, own, strict=True)) for own in product(*texts.values())]:
        raise SystemExit(f"{folder}: another sweep; name a new --out")
    return dict(zip(sweep.members, found, strict=True))


def _train(folder: Path, model: str, flags: Sequence[str], is_over: Callable[[], bool]) -> None:
    if not folder.exists():
        command = [sys.executable, str(TRAIN), "--model", model, *flags, "--out", str(folder)]
        subprocess.run(command, check=True)
    elif not is_over():
        subprocess.run([sys.executable, str(TRAIN), "--resume", str(folder)], check=True)


def scored(
    test: KeptTestSet,
    folder: Path,
    model: str,
    beams: int,
    attention: str = "auto",
    trained_together: int = 1,
) -> Row:
    """The run in a folder, on the test set. Raises RuntimeError if it stopped by itself."""
    content = read_run(folder)
    config, result = content["config"], content["result"]
    if (config["model"], config["data"]) != (model, [test.data]):
        raise SystemExit(
            f"{folder}: a run of {config['model']} on {config['data']}; name a new --out"
        )
    if result is None:
        raise RuntimeError(f"{folder} stopped at {content['stopped']['why']}")
    has_own_model = config["mode"] == "finetune"
    base = None if has_own_model else model
    writer = open_pipeline(SampleConfig(run=folder, model=base, attention=attention))
    said = [str(text) for text in writer.write(test.tables, Decoding(beams=beams))]
    name = "-".join(folder.relative_to(test.out).parts)
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
        trained_together=trained_together,
        **test.keep(f"{name}-beam{beams}", said),
    )
