"""Benchmarks as they are started: what they do on a machine without a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).parents[2] / "bench"


def run(script: str, *flags: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(BENCH / script), *flags]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


@pytest.mark.parametrize("interpreted", ["0", "1"])
def test_attention_is_checked_where_it_cannot_be_timed(interpreted: str, tmp_path: Path) -> None:
    if interpreted == "1":
        pytest.importorskip("triton")
    path = tmp_path / "attention.json"
    done = run("attention.py", "--quick", "--json", str(path), TRITON_INTERPRET=interpreted)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Values and gradients are right (the ")
    assert ("interpreted" in done.stdout) == (interpreted == "1")
    assert done.stdout.endswith("times need a GPU.\n") and done.stderr.count("right: ") == 2
    assert json.loads(path.read_text())["attention"] == []


def test_block_sizes_are_checked_where_they_cannot_be_timed(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    path = tmp_path / "tiles.json"
    done = run("tiles.py", "--json", str(path), TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr
    rows = json.loads(path.read_text())["rows"]
    for name in ("forward", "backward"):
        found = [row for row in rows if row["pass"] == name]
        assert len(found) > 5 and sum(row["is_usual"] for row in found) == 1
        assert not any("failed" in row or "seconds" in row for row in found)
    done = run("tiles.py", TRITON_INTERPRET="0")
    assert done.returncode == 1 and done.stderr.startswith("bench/tiles.py: it needs a GPU")


@pytest.mark.slow
def test_steps_are_timed_beside_the_peers_in_processes_of_their_own(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    path = tmp_path / "speed.json"
    done = run("speed.py", "--model", "tiny", "--quick", "--json", str(path))
    assert done.returncode == 0, done.stderr
    (shape,) = json.loads(path.read_text())["shapes"]
    assert "- PEFT prefix / prefix: " in done.stdout
    names = ["prefix", "fine-tuning", "PEFT prefix", "transformers fine-tuning"]
    assert [row["method"] for row in shape["rows"]] == names
    for row in shape["rows"]:
        assert len(row["seconds"]) == 3 and min(row["seconds"]) > 0
        assert 0.5 < sum(row["shares"].values()) <= 1.05
        assert row["peak_memory"] is None or row["peak_memory"] > 50e6
    checks = {check["method"]: check for check in shape["checks"]}
    assert list(checks) == names[2:] and all(check["passed"] for check in checks.values())
    for check in checks.values():  # the second is that of weights that have moved
        assert check["losses"] == pytest.approx(check["ours"], abs=1e-3)
        assert check["losses"][1] < check["losses"][0]
    ours, theirs = shape["rows"][1], shape["rows"][3]  # both with two moments of every weight
    assert ours["optimizer_bytes"] == pytest.approx(theirs["optimizer_bytes"], rel=1e-3)


def test_a_method_that_fails_or_ends_says_so(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    from methods.training import Args
    from methods.workers import Worker

    with Worker(Args(), "tiny", "prefix") as worker:
        with pytest.raises(RuntimeError, match="IndexError: "):
            worker.ask("run", [[10**9]])  # there is no such example
        worker.process.kill()
        with pytest.raises(RuntimeError, match="its process ended, with exit code -9"):
            worker.ask("run", [[0]])


BROKEN = {
    "import": "raise ImportError('of another version')",
    # Its first steps, in which losses are compared, are well.
    "step": """
import torch
class PrefixTuningConfig:
    def __init__(self, **_): pass
def get_peft_model(base, _):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.prompt_encoder = {"default": torch.nn.Module()}
            self.prompt_encoder["default"].load_state_dict = lambda state: None
            self.own, self.steps = torch.nn.Parameter(torch.ones(())), 0
        def forward(self, **batch):
            self.steps += 1
            if self.steps > 2:
                raise RuntimeError("no third step")
            out = base(**batch)
            out.loss = out.loss * self.own
            return out
        def generate(self, **_):
            raise RuntimeError("no third step")
    return Model()
""",
}


@pytest.fixture
def broken_peft(request, tmp_path: Path) -> tuple[str, str]:
    """How PEFT fails, and the path of a package that does so in its place."""
    pytest.importorskip("transformers")
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft" / "__init__.py").write_text(BROKEN[request.param])
    return request.param, str(tmp_path)


@pytest.mark.parametrize(
    "broken_peft", ["import", pytest.param("step", marks=pytest.mark.slow)], indirect=True
)
def test_ours_are_timed_whatever_a_peer_raises(broken_peft, tmp_path: Path) -> None:
    how, package = broken_peft
    path, flags = tmp_path / "speed.json", ["--model", "tiny", "--quick", "--batch-size", "2"]
    done = run("speed.py", *flags, "--json", str(path), PYTHONPATH=package)
    assert done.returncode == 1, done.stderr
    record = json.loads(path.read_text())
    (shape,) = record["shapes"]
    rows = {row["method"]: row for row in shape["rows"]}
    assert {"prefix", "fine-tuning"} <= set(rows) and "- fine-tuning / prefix: " in done.stdout
    assert all(len(rows[name]["seconds"]) == 3 for name in ("prefix", "fine-tuning"))
    why = {each["part"]: each["why"] for each in record["failed"]}
    expected = (
        "ImportError: of another version" if how == "import" else "RuntimeError: no third step"
    )
    assert why["tiny, PEFT prefix"] == expected
    assert ("transformers fine-tuning" in rows) == (how == "step")
    assert f"- failed: tiny, PEFT prefix: {expected}" in done.stdout


@pytest.mark.parametrize("broken_peft", BROKEN, indirect=True)
def test_ours_decode_whatever_a_peer_raises(broken_peft, tmp_path: Path) -> None:
    how, package = broken_peft
    path, flags = tmp_path / "decode.json", ["--model", "tiny", "--quick", "--new-tokens", "2"]
    done = run("decode.py", *flags, "--json", str(path), PYTHONPATH=package)
    assert done.returncode == 1, done.stderr
    record = json.loads(path.read_text())
    assert [(row["method"], row["beams"]) for row in record["decoding"]] == [
        ("ours", 1),
        ("ours", 5),
    ]
    assert all(len(row["seconds"]) == 2 for row in record["decoding"])
    expected = (
        "ImportError: of another version" if how == "import" else "RuntimeError: no third step"
    )
    assert expected in [each["why"] for each in record["failed"]]
    assert "| 5 | ours |" in done.stdout and expected in done.stdout


def test_decoding_is_timed_beside_peft_and_says_what_the_reference_says(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    pytest.importorskip("triton")
    path = tmp_path / "decode.json"
    flags = ["--model", "tiny", "--quick", "--new-tokens", "2", "--batch-size", "2", "--beams", "1"]
    flags += ["--attention", "triton", "--json", str(path)]
    done = run("decode.py", *flags, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr
    record = json.loads(path.read_text())
    assert [row["method"] for row in record["decoding"]] == ["ours", "PEFT"]
    assert [check["against"] for check in record["checks"]] == ["PEFT", "reference"]
    assert all(check["equal_tokens"] == 1.0 and check["passed"] for check in record["checks"])


def test_decoded_tokens_are_compared(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    import decode
    from measure.record import Record

    assert decode.agreement([[1, 2], [3, 4]], [[1, 2], [3, 4]])["first_difference"] is None
    found = Record("decode.py", torch.device("cpu"), None, checks=[])
    about = {"model": "m", "beams": 1, "against": "reference"}
    decode.compare(found, [[1, 2, 3], [4, 5, 6]], [[1, 2, 3], [4, 7, 8]], False, **about)
    decode.compare(found, [[1, 2, 3], [4, 5, 6]], [[1, 2, 3], [4, 7, 8]], True, **about)
    for check in found["checks"]:
        assert (check["equal_rows"], check["first_difference"]) == (0.5, 1)
        assert check["equal_tokens"] == pytest.approx(4 / 6)
    assert [check["passed"] for check in found["checks"]] == [True, False]
    assert [each["part"] for each in found["failed"]] == ["m, beam 1, against reference"]


def test_a_replayed_step_is_compared_with_an_eager_one(monkeypatch) -> None:
    """Where graphs are taken eagerly, as without a GPU; and it is told when they differ."""
    monkeypatch.syspath_prepend(str(BENCH))
    import speed
    from measure.e2e_lengths import examples
    from measure.record import Record
    from methods import training as methods

    from mingpt_prefix.evaluation import training_run as training

    monkeypatch.setattr(training, "why_not_graphs", lambda *_: None)
    monkeypatch.setattr(methods, "why_not_graphs", lambda *_: None)
    monkeypatch.setattr(speed, "matmul_rate", lambda *_: 1e12)
    args, batch = methods.Args(batch_size=2), examples(1024)[:2]
    assert methods.methods(args, "tiny")[:4] == methods.OURS + methods.EAGER
    names = ("prefix", "prefix, eager")
    losses = {name: methods.losses(args, "tiny", name, batch) for name in names}
    found = Record("speed.py", torch.device("cpu"), None, shapes=[])
    shape = speed.Shape(args, "tiny", found)
    shape.compare(losses)
    losses["prefix"][1] += 0.1
    shape.compare(losses)
    first, second = found["shapes"][0]["checks"]
    assert first["passed"] and not second["passed"] and len(found["failed"]) == 1


@pytest.mark.parametrize(
    ("flops", "least", "in_cache"), [(1e3, 10**6, True), (1e3, 10**8, False), (1e12, 10**6, False)]
)
def test_the_rate_of_memory_is_no_ceiling_for_what_a_cache_holds(
    flops: float, least: int, in_cache: bool, monkeypatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    import attention

    rates = {"matmul": 1e12, "copy": 1e9, "l2_bytes": 5 * 10**7}
    assert attention.ceiling(flops, least, rates) == (max(flops / 1e12, least / 1e9), in_cache)


def test_a_part_that_fails_is_recorded_and_what_was_measured_is_kept(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    from measure.record import Record

    path = tmp_path / "x.json"
    record = Record("x.py", torch.device("cpu"), path, rows=[])
    with record.part("first"):
        record["rows"].append(1)
        record["rows"].append([][0])
    assert json.loads(path.read_text())["rows"] == [1]
    with record.part("second"):
        record["rows"].append(2)
    with pytest.raises(SystemExit, match="1"):
        record.finish(lambda record: record["no such thing"])
    kept = json.loads(path.read_text())
    assert kept["rows"] == [1, 2] and json.loads(capsys.readouterr().out) == kept
    assert [each["part"] for each in kept["failed"]] == ["first", "the table"]


def test_a_finished_sweep_is_taken_as_it_is(
    small_model: Path, small_data: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    from quality import experiment

    folder, flags = tmp_path / "sweep", ["--mode", "prefix", "--data", str(small_data)]
    flags += ["--max-steps", "2", "--device", "cpu"]
    values = {"prefix_length": (1, 2), "seed": range(1)}
    members = experiment.swept(folder, str(small_model), *flags, **values)
    assert [each["prefix_length"] for each in members.values()] == ["1", "2"]
    assert all((member / "prefix.safetensors").is_file() for member in members)
    monkeypatch.setattr(experiment, "TRAIN", Path("none"))
    assert experiment.swept(folder, str(small_model), *flags, **values) == members
    with pytest.raises(SystemExit, match="another sweep; name a new --out"):
        experiment.swept(folder, str(small_model), *flags, prefix_length=(1, 3), seed=range(1))
