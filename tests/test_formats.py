"""Files that each format version left: kept in tests/data, and read for ever.

A run stopped after step 3 of 6 (its checkpoint, log and settings), the prefix that it came to, and
the base and tables that both runs began with. run-1: checkpoints without a SHA-256, run.json with
the digest of the training data alone. run-2: with a SHA-256 and what it was computed on, and
digests of the dev data and the base model too.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch

import sample
import train
from mingpt_prefix.checkpoint import load_newest, save_checkpoint
from mingpt_prefix.prefix_file import VERSION, load_prefix, read_prefix
from mingpt_prefix.weights import load_model

KEPT = Path(__file__).parent / "data"
RUNS = pytest.mark.parametrize("name", sorted(path.name for path in KEPT.glob("run-*")))


@RUNS
def test_a_kept_run_goes_on_to_its_prefix(name: str, tmp_path: Path, monkeypatch, capsys) -> None:
    shutil.copytree(KEPT, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    expected = load_prefix(Path(name) / "prefix.safetensors").kv
    before = (tmp_path / name / "log.jsonl").read_text()
    assert train.main(["--resume", name]) == 0
    # Other processors and versions round otherwise.
    found = load_prefix(Path(name) / "prefix.safetensors").kv
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    log = (tmp_path / name / "log.jsonl").read_text()
    assert log.startswith(before) and len(log.splitlines()) == 6
    assert json.loads((tmp_path / name / "run.json").read_text())["result"]["steps"] == 6
    capsys.readouterr()
    flags = ["--run", name, "--model", "base", "--table", "name[Inn 3], eatType[pub]"]
    assert sample.main([*flags, "--max-new-tokens", "4"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


@RUNS
def test_a_kept_prefix_fits_its_base(name: str) -> None:
    prefix, info = read_prefix(KEPT / name / "prefix.safetensors")
    assert prefix.kv.shape == (1, 2, 2, 1, 4) and info.length == 2
    assert info.fingerprint == load_model(KEPT / "base").fingerprint


def test_every_format_version_is_kept() -> None:
    kept = {read_prefix(path)[1].version for path in KEPT.glob("run-*/prefix.safetensors")}
    assert kept == set(range(1, VERSION + 1))


def test_what_is_saved_now_is_as_the_newest_that_is_kept(tmp_path: Path) -> None:
    newest = load_newest(max(KEPT.glob("run-*")) / "checkpoint")
    save_checkpoint(tmp_path, newest.step, newest.tensors, newest.state)
    again = load_newest(tmp_path)
    assert again.state == newest.state and again.tensors.keys() == newest.tensors.keys()
    assert "machine" in again.state
    assert all(torch.equal(again.tensors[name], newest.tensors[name]) for name in again.tensors)
