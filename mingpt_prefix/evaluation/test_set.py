"""Tables with references, and how good the sentences that were written for them are.

test = TestSet("e2e", "test")
found = test.score(sentences)
test.save(Path("scores"), sentences, found)
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from mingpt_prefix.checkpoints.atomic_write import write_atomically
from mingpt_prefix.config import Split
from mingpt_prefix.data.datasets import load_references
from mingpt_prefix.data.rows import USUAL, Columns
from mingpt_prefix.errors import ConfigError
from mingpt_prefix.evaluation.faults import FAULTS, faults, slot_errors
from mingpt_prefix.evaluation.table_to_text import one_line
from mingpt_prefix.metrics.scores import METRICS, score


class TestSet:
    """The tables of one split, and their references; of the sample data, faults are known too."""

    __test__ = False  # for pytest, which takes classes of such a name for tests

    def __init__(self, data: str, split: Split = "test", columns: Columns = USUAL) -> None:
        groups = load_references(data, split, columns)
        self.tables = [table for table, _ in groups]
        self.references = [texts for _, texts in groups]
        self.data, self.split, self.has_slots = data, split, data == "sample"

    def score(self, said: Sequence[str], metrics: Sequence[str] = METRICS) -> dict:
        """`scores` of these sentences, and of the sample data: `slot_errors`, the share of all
        slots that a sentence lacks or contradicts; `right`, the share of tables without a fault;
        `faults`, how many tables have a fault of each kind.

        Raises:
            ConfigError: when what METEOR, ROUGE-L and CIDEr need is missing.
        """
        of_slots = {}
        if self.has_slots:
            pairs = list(zip((table.slots for table in self.tables), said, strict=True))
            found = [{fault.kind for fault in faults(*pair)} for pair in pairs]
            wrong = sum(len(slot_errors(*pair)) for pair in pairs)
            of_slots = {
                "slot_errors": wrong / sum(len(table.slots) for table in self.tables),
                "right": sum(not kinds for kinds in found) / len(found),
                "faults": {kind: sum(kind in kinds for kinds in found) for kind in FAULTS},
            }
        return {"scores": score(said, self.references, metrics), **of_slots}

    def score_or_less(self, said: Sequence[str]) -> dict:
        """As `score`; without METEOR, ROUGE-L and CIDEr, which is told, where they cannot be
        computed."""
        try:
            return self.score(said)
        except ConfigError as error:
            print(f"BLEU and NIST alone: {error}", file=sys.stderr)
            return self.score(said, ("bleu", "nist"))

    def save(self, folder: Path, said: Sequence[str], found: dict) -> None:
        """outputs.txt, references.txt and scores.json, the first two as the official script reads
        them."""
        items = ("".join(f"{one_line(text)}\n" for text in texts) for texts in self.references)
        files = {
            "outputs.txt": "".join(f"{text}\n" for text in said),
            "references.txt": "\n".join(items),
            "scores.json": json.dumps(found, indent=2) + "\n",
        }
        for name, text in files.items():
            write_atomically(folder / name, text.encode())
