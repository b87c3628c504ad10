"""What every benchmark's record begins with, and what is done with it at the end."""

import json
import sys
from datetime import date
from pathlib import Path

import torch

from mingpt_prefix.accel.environment import machine_line


def begin(script: str, device: torch.device) -> dict:
    """How the record was made, when, and on what."""
    return {
        "command": " ".join([f"python bench/{script}", *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "machine": machine_line(device),
    }


def finish(record: dict, table: str, path: Path | None) -> None:
    """Print the table, write the record to `path`, and end with it as one line of JSON."""
    print(table)
    save(record, path)
    print(json.dumps(record))


def save(record: dict, path: Path | None) -> None:
    """Write the record to `path`, if there is one: also while it is still growing."""
    if path is not None:
        path.write_text(json.dumps(record, indent=1) + "\n")
