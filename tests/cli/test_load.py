"""Many tables through sample.py: memory that does not grow, and bad lines that stop nothing."""

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from mingpt_prefix.checkpoints.pretrained import save_model
from mingpt_prefix.cli.sample import CHUNK
from mingpt_prefix.config import ModelConfig
from mingpt_prefix.model import GPT2

ROOT = Path(__file__).parents[2]
SHAPE = ModelConfig(1, 2, 8, 4096, n_positions=64, eos_token_id=4095, tokenizer="tiny")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    made = GPT2(SHAPE)
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter.data, std=0.3, generator=generator)
    save_model(made, tmp_path / "model")
    return tmp_path / "model"


def write_all(model: Path, tables: list[str]) -> tuple[int, list[str], list[str], int]:
    """sample.py's exit code, its lines on stdout and stderr, and its peak memory in bytes.

    The peak is read while it waits for more of its input, with all whole chunks written.
    """
    flags = ["--input", "-", "--model", str(model), "--max-new-tokens", "2", "--device", "cpu"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "sample.py"), *flags],
        cwd=model.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=(complaints := (model.parent / "stderr").open("w+")),
        text=True,
    )

    def feed() -> None:
        process.stdin.write("".join(f"{table}\n" for table in tables))
        process.stdin.flush()

    with process, complaints:
        feeder = threading.Thread(target=feed)
        feeder.start()
        out = [process.stdout.readline() for _ in range(len(tables) // CHUNK * CHUNK)]
        feeder.join()
        status = Path(f"/proc/{process.pid}/status").read_text()
        peak = 1024 * int(re.search(r"VmHWM:\s+(\d+)", status)[1])
        process.stdin.close()
        out += process.stdout.readlines()
        code = process.wait(60)
        complaints.seek(0)
        return code, out, complaints.read().splitlines(), peak


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc here")
def test_ten_thousand_tables(model: Path) -> None:
    tables = [f"name[Inn {number}], eatType[pub]" for number in range(10_000)]
    few = write_all(model, tables[:100])
    assert few[0] == 0 and len(few[1]) == 100
    bad = {1234: "name[The Mill", 5678: "", 8901: f"area[{'far ' * 100}]"}
    for number, table in bad.items():
        tables[number - 1] = table
    code, out, complaints, peak = write_all(model, tables)
    assert code == 1 and len(out) == 10_000
    assert [number for number, line in enumerate(out, 1) if not line.strip()] == list(bad)
    said = [line for line in complaints if line.startswith("sample.py: ")]
    assert [line.split(":")[1] for line in said] == [f" line {number}" for number in bad]
    assert "']' is missing" in said[0] and "empty" in said[1] and "has room for" in said[2]
    assert out[:100] == few[1]
    print(f"peak memory: {peak / 1e6:.1f} MB for 10,000 tables, {few[3] / 1e6:.1f} MB for 100")
    assert peak < few[3] + 16e6
