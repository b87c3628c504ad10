"""What every benchmark's record begins with, and how nothing of it is lost.

record = Record("decode.py", device, args.json, decoding=[])
with record.part("PEFT, beam 5"):
    record["decoding"].append(...)
record.finish(decode_table)
"""

import json
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import torch

from mingpt_prefix.accel.environment import machine_line
from mingpt_prefix.checkpoints.atomic_write import write_atomically


class Record(dict):
    """What has been measured so far; in the file `path`, if there is one, after each `save`.

    What fails is under "failed", and keeps nothing else from being measured.
    """

    def __init__(self, script: str, device: torch.device, path: Path | None, /, **content) -> None:
        command = " ".join([f"python bench/{script}", *sys.argv[1:]])
        about = {"date": date.today().isoformat(), "machine": machine_line(device)}
        super().__init__(command=command, **about, **content)
        self.path = path

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A part that may fail; the record is saved at its end."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.fail(name, f"{type(error).__name__}: {error}")
        self.save()

    def fail(self, name: str, why: str) -> None:
        why = (why.splitlines() or [""])[0][:300]
        print(f"{name} failed: {why}", file=sys.stderr)
        self.setdefault("failed", []).append({"part": name, "why": why})
        self.save()

    def save(self) -> None:
        if self.path is not None:
            write_atomically(self.path, (json.dumps(self, indent=1) + "\n").encode())

    def finish(self, table: Callable[[dict], str]) -> None:
        """Print the table, and last the record as one line of JSON; exit code 1 if any failed."""
        with self.part("the table"):
            print(table(self))
        print(json.dumps(self))
        sys.exit(1 if self.get("failed") else 0)
