"""bench/gpu.sh rehearsed without a GPU: real processes and signals, and scripts that stand for
its parts.

Each of these leaves a row in its JSON, as the benchmarks do, and then ends in a way of its own.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"
WRITES = """
import os, pathlib, signal, subprocess, sys, time
path = pathlib.Path(sys.argv[sys.argv.index("--json") + 1])
path.write_text('{"rows": [1]}')
"""
PARTS = {
    "speed": f"{WRITES}sys.exit('no kernel')",
    "decode": f"{WRITES}child = subprocess.Popen(['sleep', '77']); "
    "path.with_suffix('.pid').write_text(str(child.pid)); child.wait()",
    "attention": f"{WRITES}os.kill(os.getpid(), signal.SIGKILL)",
    "tiles": f"import not_a_package\n{WRITES}",
    "bank": WRITES,
    "methods/peers": "",
}
KERNELS = "def test_kernel():\n    pass\n"
GRAPHS = "import pytest\n@pytest.mark.gpu\ndef test_graph():\n    pass\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The command among parts that stand for the real ones."""
    root = tmp_path / "tree"
    for folder in ("bench/methods", "tests/accel", "tests/kernels", "kernels", "mingpt_prefix"):
        (root / folder).mkdir(parents=True)
    for name in ("bench/gpu.sh", "bench/imports.py", "pyproject.toml"):
        shutil.copy(BENCH.parent / name, root / name)
    for name, code in PARTS.items():
        (root / "bench" / f"{name}.py").write_text(code)
    (root / "train.py").write_text("")
    (root / "tests/kernels/kernel_checks.py").write_text(KERNELS)
    (root / "tests/accel/test_graphs.py").write_text(GRAPHS)
    return root


def start(tree: Path, *arguments: str, **environment: str) -> subprocess.Popen:
    command = ["bash", str(tree / "bench" / "gpu.sh"), *arguments]
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "WORKERS": "1",
        **environment,
    }

    def heed_interrupts() -> None:  # which a shell has its background jobs ignore
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    pipes = dict(stdout=subprocess.PIPE, text=True, env=environment)
    return subprocess.Popen(command, preexec_fn=heed_interrupts, **pipes)


def packed(out: Path) -> set[str]:
    """What the archive holds, each as it lies in the folder."""
    with tarfile.open(f"{out}.tgz") as archive:
        files = {Path(m.name).name: archive.extractfile(m).read() for m in archive if m.isfile()}
    assert files == {path.name: path.read_bytes() for path in out.iterdir()}
    return set(files)


def is_gone(pid: int) -> bool:
    """Within a few seconds."""
    for _ in range(50):
        status = Path(f"/proc/{pid}/stat")
        if not status.exists() or status.read_text().split()[2] == "Z":
            return True
        time.sleep(0.1)
    return False


def test_what_fails_hangs_is_killed_or_lacks_an_import_takes_nothing_of_the_rest(tree, tmp_path):
    out = tmp_path / "out"
    parts = ["kernels", "speed", "decode", "attention", "tiles", "tests", "bank"]
    process = start(tree, str(out), *parts, LIMITS="decode=6")
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 4, said
    lines = said.splitlines()
    assert lines[1].startswith("Missing: not_a_package (bench/wheels.sh")
    assert lines[-4:] == [
        "Failed: speed (exit code 1)",
        "Failed: decode (stopped after 6 s)",
        "Failed: attention (exit code 137)",
        "Failed: tiles (missing: not_a_package)",
    ]
    for part in ("kernels", "tests", "bank"):
        assert any(line.startswith(f"{part}: exit code 0") for line in lines)
    assert "  no kernel" in lines
    measured = {f"{part}.json" for part in ("attention", "bank_gpu", "decode_gpu", "speed_gpu")}
    logs = {f"{part}.log" for part in parts if part != "tiles"}
    assert packed(out) == measured | logs | {"decode_gpu.pid"}
    assert all(json.loads((out / name).read_text()) == {"rows": [1]} for name in measured)
    assert is_gone(int((out / "decode_gpu.pid").read_text()))
    assert not list((tree / "mingpt_prefix").iterdir())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_loses_nothing(number: int, code: int, tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(tree, str(out), "speed", "decode", "attention")
    child = out / "decode_gpu.pid"
    for _ in range(1200):
        if child.exists() and child.read_text():
            break
        time.sleep(0.1)
    os.kill(process.pid, number)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == code, said
    assert said.splitlines()[-3:] == [
        "Failed: speed (exit code 1)",
        "Failed: decode (not finished)",
        "Failed: attention (not finished)",
    ]
    names = {"speed_gpu.json", "speed.log", "decode_gpu.json", "decode.log", "decode_gpu.pid"}
    assert packed(out) == names
    assert "KeyboardInterrupt" in (out / "decode.log").read_text()
    assert is_gone(int(child.read_text()))


def test_wheels_stand_for_what_is_missing(tree: Path, tmp_path: Path) -> None:
    wheels, out = tmp_path / "wheels", tmp_path / "out"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "not_a_package-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("not_a_package.py", "")
    process = start(tree, "--wheels", str(wheels), str(out), "tiles")
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and "Missing" not in said, said
    assert packed(out) == {"tiles.json", "tiles.log"}


def test_no_time_is_left_for_what_comes_last(tree: Path, tmp_path: Path) -> None:
    process = start(tree, str(tmp_path / "out"), "decode", "bank", LIMIT_S="6")
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 2
    assert said.splitlines()[-1] == "Failed: bank (no time left)"


def test_the_limits_of_the_parts_fit_into_that_of_the_whole(tree: Path) -> None:
    said, _ = start(BENCH.parent, "--list").communicate(timeout=60)
    limits = {part: int(seconds) for part, seconds in map(str.split, said.splitlines())}
    assert list(limits) == ["kernels", "speed", "decode", "attention", "tiles", "tests"]
    assert sum(limits.values()) <= 530 and min(limits.values()) >= 30
    process = start(tree, "out", "spede")
    process.communicate(timeout=60)
    assert process.returncode == 2


def test_what_a_script_lacks_is_found_without_running_it(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    import imports

    there, away = imports.find_spec, {"tyro", "triton", "nltk", "peft"}
    monkeypatch.setattr(imports, "find_spec", lambda name: None if name in away else there(name))
    for script in ("speed", "decode", "attention", "tiles", "table"):
        assert "tyro" in imports.missing(BENCH / f"{script}.py"), script
    assert imports.missing(BENCH / "methods" / "peers.py") == ["peft", "triton"]
    assert "peft" not in imports.missing(BENCH / "speed.py")
    assert "nltk" in imports.missing(BENCH.parent / "train.py")  # by a function, for BLEU
    script = tmp_path / "script.py"
    script.write_text("import math\nimport nltk.translate\ndef f():\n    import peft, no_package\n")
    assert imports.missing(script) == ["nltk"]
