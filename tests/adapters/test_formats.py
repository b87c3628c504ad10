"""Files that each format version left: kept in tests/kept, and read for ever.

A run stopped after step 3 of 6 (its checkpoint, log and settings), the prefix that it came to, and
the base and tables that both runs began with. run-1: checkpoints without a SHA-256, run.json with
the digest of the training data alone. run-2: with a SHA-256 and what it was computed on, and
digests of the dev data and the base model too. prefix-N, lora-N and calls-N: a file of each version
of these formats, all with the same content, to which calls-3 adds quiet rows.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

import sample
import train
from mingpt_prefix.adapters import lora_file, prefix_file
from mingpt_prefix.adapters.prefix_file import load_prefix, read_prefix
from mingpt_prefix.bank import calls_file
from mingpt_prefix.batch import PrefixKV
from mingpt_prefix.checkpoints.checkpoint import load_newest, save_checkpoint
from mingpt_prefix.checkpoints.pretrained import load_model
from mingpt_prefix.errors import AdapterError

KEPT = Path(__file__).parents[1] / "kept"
EACH_KIND = pytest.mark.parametrize(
    ("name", "module", "read"),
    [
        ("prefix", prefix_file, read_prefix),
        ("lora", lora_file, lora_file.read_lora),
        ("calls", calls_file, calls_file.read_calls),
    ],
    ids=("prefix", "lora", "calls"),
)
RUNS = pytest.mark.parametrize("name", sorted(path.name for path in KEPT.glob("run-*")))


def tensors_of(content) -> list[torch.Tensor]:
    if isinstance(content, dict):
        return [content[name].row for name in sorted(content)]
    return [content.kv] if isinstance(content, PrefixKV) else content.tensors()


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


@EACH_KIND
def test_every_version_is_read_as_the_newest(name: str, module, read) -> None:
    kept = {f"{name}-{n}.safetensors" for n in range(1, module.VERSION + 1)}
    assert {path.name for path in KEPT.glob(f"{name}-*")} == kept
    found = [read(KEPT / file) for file in sorted(kept)]
    assert [info.version for _, info in found] == list(range(1, module.VERSION + 1))
    newest, told = found[-1]
    for content, info in found:
        assert dataclasses.replace(info, version=told.version) == told
        for one, other in zip(tensors_of(content), tensors_of(newest), strict=True):
            assert torch.equal(one, other)


def test_quiet_rows_came_with_version_3() -> None:
    found = [calls_file.read_calls(KEPT / f"calls-{n}.safetensors")[0] for n in (1, 2, 3)]
    shapes = [{tuple(call.quiet.shape) for call in calls.values()} for calls in found]
    assert shapes == [{(0, 4)}, {(0, 4)}, {(2, 4)}]


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_call_is_forgotten_in_files_of_any_version(version: int, tmp_path: Path) -> None:
    path = Path(shutil.copy(KEPT / f"calls-{version}.safetensors", tmp_path))
    before, told = calls_file.read_calls(path)
    calls_file.forget_call(path, "films")
    after, now = calls_file.read_calls(path)
    assert now == dataclasses.replace(told, names=["inns"], version=calls_file.VERSION)
    assert torch.equal(after["inns"].row, before["inns"].row)
    assert torch.equal(after["inns"].quiet, before["inns"].quiet)


@EACH_KIND
def test_a_changed_bit_anywhere_is_noticed(name: str, module, read, tmp_path: Path) -> None:
    whole = (KEPT / f"{name}-{module.VERSION}.safetensors").read_bytes()
    path = tmp_path / "changed.safetensors"
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        with pytest.raises(AdapterError):
            read(path)


def test_what_is_saved_now_is_as_the_newest_that_is_kept(tmp_path: Path) -> None:
    newest = load_newest(max(KEPT.glob("run-*")) / "checkpoint")
    save_checkpoint(tmp_path, newest.step, newest.tensors, newest.state)
    again = load_newest(tmp_path)
    assert again.state == newest.state and again.tensors.keys() == newest.tensors.keys()
    assert "machine" in again.state
    assert all(torch.equal(again.tensors[name], newest.tensors[name]) for name in again.tensors)
