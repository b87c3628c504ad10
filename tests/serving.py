"""`sample.py --serve` as a process, with two models, prefixes, and a fine-tuned run."""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import torch

from mingpt_prefix.adapters.prefix_file import PrefixInfo, save_prefix
from mingpt_prefix.checkpoints.pretrained import fingerprint, save_model
from mingpt_prefix.config import ModelConfig
from mingpt_prefix.data.tables import TEXT_FORMAT
from mingpt_prefix.model import GPT2

SCRIPT = Path(__file__).parents[1] / "sample.py"
# Of 2 layers, so that a heat map has rows to tell apart; sentences end by the limit or n_positions.
CONFIG = ModelConfig(2, 2, 32, 4096, n_positions=128, eos_token_id=4095, tokenizer="tiny")
PREFIXES = {"short": ("prefix", 2), "long": ("prefix", 7), "inner": ("infix", 4)}
FLAGS = ("--model", "model", "--prefix", "short.safetensors", "--beside", "long.safetensors")
FLAGS += ("inner.safetensors", "runs/tuned", "--dtype", "fp64", "--max-new-tokens", "12")


def make_files(folder: Path) -> Path:
    """model/, its prefixes of different lengths and placements, and runs/tuned/."""
    digest = _save_model(folder / "model", 0)
    for seed, (name, (placement, length)) in enumerate(PREFIXES.items()):
        generator = torch.Generator().manual_seed(seed)
        kv = torch.randn(2, 2, length, 2, 16, generator=generator)
        info = PrefixInfo("", digest, length, TEXT_FORMAT, placement, {})
        save_prefix(folder / f"{name}.safetensors", kv, info)
    run = folder / "runs" / "tuned"
    _save_model(run / "model", 1)
    content = {"config": {"mode": "finetune"}, "result": {"steps": 1}}
    run.joinpath("run.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def _save_model(folder: Path, seed: int) -> str:
    model, generator = GPT2(CONFIG), torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter.data, std=0.3, generator=generator)
    save_model(model, folder)
    return fingerprint(model)


class Server(subprocess.Popen):
    """What it says on stderr goes to a file, so that it never waits for a reader."""

    def __init__(self, command: list[str], cwd: Path, **options: object) -> None:
        self.log = cwd / f"{uuid.uuid4().hex}.log"
        with self.log.open("wb") as log:
            super().__init__(command, cwd=cwd, stderr=log, **options)

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def complaints(self) -> list[str]:
        """What it said beside its first two lines and those of the request log."""
        usual = re.compile(r"Using |Serving |\d{4}-\d\d-\d\d ")
        return [line for line in self.said().splitlines() if not usual.match(line)]


@contextlib.contextmanager
def serving(folder: Path, *flags: str, changes: str = "") -> Iterator[tuple[str, Server]]:
    """The address of a server started in `folder`, and its process, ended if it still runs.

    `changes` is Python that is run in it first.
    """
    code = f"import sys, sample; {changes}; sys.exit(sample.main())"
    program = ["-c", code] if changes else [str(SCRIPT)]
    command = [sys.executable, *program, "--serve", "--port", "0", *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parent)}
    process = Server(command, cwd=folder, env=environment)
    try:
        while not (found := re.search(r"at (http://\S+/) until", process.said())):
            assert process.poll() is None, process.said()
            time.sleep(0.05)
        yield found[1], process
    finally:
        process.kill()
        process.wait()
