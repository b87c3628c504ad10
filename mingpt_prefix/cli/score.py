"""Write sentences for all tables of a data set, and score them by the five metrics of E2E's script.
    mingpt-prefix score --run runs/prefix-gpt2-1 --data e2e --split test
    mingpt-prefix score --run runs/prefix-tiny-1 --data sample --beams 1
    mingpt-prefix score --run runs/books --data test.csv --text-field blurb --out books

Saves outputs.txt and references.txt, as the official script reads them, and scores.json. For the
sample data it also reports the share of right tables: those whose sentence says every slot once and
nothing else. METEOR, ROUGE-L and CIDEr need the extra `metrics`.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from mingpt_prefix.checkpoints.run_folder import kept_by
from mingpt_prefix.cli.terminal import complain, parse, run_script, say
from mingpt_prefix.errors import ConfigError, TableError, shown
from mingpt_prefix.evaluation.sample_config import SampleConfig

if TYPE_CHECKING:
    from mingpt_prefix.evaluation.table_to_text import Pipeline
    from mingpt_prefix.evaluation.test_set import TestSet

CHUNK = 64  # tables that are written together
GROUPS = ("data", "output", "model", "decoding", "machine")


@dataclass(frozen=True)
class OutputFlags:
    """output"""

    out: Annotated[Path | None, arg(metavar="DIR")] = None
    """the folder for outputs.txt, references.txt and scores.json"""


@dataclass(frozen=True)
class ScoreConfig(OutputFlags, SampleConfig):
    """What is scored, and where that goes."""

    DEFAULTS = {
        **SampleConfig.DEFAULTS,
        "out": "DATA-SPLIT in the run's folder, or in the current folder",
    }


def main(argv: Sequence[str] | None = None, prog: str = "mingpt-prefix score") -> int:
    """The whole program; returns the exit code."""
    return run_script(prog, lambda: run(parse(ScoreConfig, argv, prog, __doc__, GROUPS)))


def run(config: ScoreConfig) -> int:
    """The whole program, but for how it ends when something goes wrong."""
    if config.data is None:
        raise ConfigError("--data is needed: e2e, sample, a folder or a file")
    decoding = config.decoding
    # Imported here, for they bring torch, which takes seconds: bad flags are told before.
    from mingpt_prefix.evaluation.pipeline import open_pipeline
    from mingpt_prefix.evaluation.test_set import TestSet

    test = TestSet(config.data, config.split or "test", config.columns)
    beside = config.writing_run  # before another run finishes, which is then the newest
    warn_of_training_data(beside, test)
    pipeline = open_pipeline(config)
    print(f"Using {pipeline.origin}.", file=sys.stderr)
    said = write(pipeline, test, config)
    found = test.score_or_less(said)
    about = {"data": test.data, "split": test.split, "tables": len(said), "by": pipeline.origin}
    folder = config.out or (beside or Path()) / f"{Path(test.data).stem}-{test.split}"
    test.save(folder, said, {**about, "decoding": asdict(decoding), **found})
    for name, value in found["scores"].items():
        say(f"{name:<8}{value:.4f}")
    if "right" in found:
        say(f"right   {found['right']:.4f}")
    print(f"Saved outputs.txt, references.txt and scores.json in {folder}.", file=sys.stderr)
    return 0


def write(pipeline: "Pipeline", test: "TestSet", config: ScoreConfig) -> list[str]:
    """A sentence per table; for one that leaves no room for it, an empty one."""
    from rich.console import Console
    from rich.progress import track

    said: list[str | TableError] = []
    begins = range(0, len(test.tables), CHUNK)
    console = Console(stderr=True)
    for begin in track(begins, "writing", console=console, disable=not console.is_terminal):
        chunk = test.tables[begin : begin + CHUNK]
        # As sample numbers them, so that it samples the same.
        seeds = [config.seed_of(begin + number) for number in range(1, len(chunk) + 1)]
        said += pipeline.write(chunk, config.decoding, seeds)
    for number, text in enumerate(said, 1):
        if isinstance(text, TableError):
            complain(f"table {number}: {text}")
    return [text if isinstance(text, str) else "" for text in said]


def warn_of_training_data(run: Path | None, test: "TestSet") -> None:
    """On stderr: that a file which is used whole was trained on."""
    path = Path(test.data)
    if run is None or test.split != "test" or not path.is_file():
        return
    sources = kept_by(run).settings.get("data")
    if isinstance(sources, list) and path.resolve() in (Path(str(s)).resolve() for s in sources):
        what = "is a file this run was trained on; --split dev scores the rows held out"
        complain(f"warning: {shown(path)} {what}")
