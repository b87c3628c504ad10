"""The commands of README and docs/ as printed and in order, those of each page in a fresh clone.

A fenced block without a language holds commands; where a line of it begins with "$ ", the others
are output. What takes minutes gets flags that shorten it (SHORTER). The embedded model stands for
GPT-2, whose weights would be a download, and the sample for E2E, except in README where E2E is at
hand. Two guides have tests that look closer: test_serving_guide.py and test_your_own_task.py.
"""

import json
import lzma
import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path

import httpx
import pytest

from mingpt_prefix.data.datasets import e2e_available

pytestmark = pytest.mark.slow  # some forty processes, half of which train
ROOT = Path(__file__).parents[2]
ELSEWHERE = {"serving.md", "your-own-task.md"}
SET_UP = ("python3 -m venv ", "pip install ", ". .venv/")  # `clone` does it, from what is installed
SHORTER = (
    (r"^make train$", 'ARGS="--max-steps 2 --evals 1"'),
    (r"^make test$", 'ARGS="-n 0 --collect-only -q"'),
    (r"train\.py (?!--resume)", "--max-steps 2 --evals 1"),
    (r"^mingpt-prefix score |sample\.py .*--(data|input) ", "--max-new-tokens 8"),
    (r"call_training", "--steps 2 --own-texts 4"),
)
SERVERS = {"--serve": "/health", "--logdir": "/"}  # and the path that answers
SENTENCE = "The old mill stands by the river, and the river runs down to the sea.\n"
PROSE = "<|endoftext|>\n".join([SENTENCE * 50] * 4)
INNS = "mr,ref\n" + "".join(f"name[Inn {n}],Inn {n} is an inn.\n" for n in range(20))
BOOKS = "title,author,blurb\n" + "".join(f"River {n},Ann {n},By Ann {n}.\n" for n in range(20))
FILMS = [{"table": {"title": f"River {n}"}, "text": f"River {n} is a film."} for n in range(20)]
# The reader's own files, as the pages call them.
FILES = dict.fromkeys(("a.csv", "b.csv", "c.csv"), INNS.encode()) | {
    "books.csv": BOOKS.encode(),
    "films.jsonl": "\n".join(map(json.dumps, FILMS)).encode(),
    "tables.txt": b"name[The Mill]\nname[The Blue Door], eatType[pub]\n",
    "english.txt": PROSE.encode(),
    "english.txt.xz": lzma.compress(PROSE.encode()),
}


def commands_of(page: Path) -> list[str]:
    found = []
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    for block in (block for language, block in blocks if not language):
        lines = [line for line in block.splitlines() if line]
        if any(line.startswith("$ ") for line in lines):
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        found += [re.sub(r" +# .*", "", line) for line in lines]
    return [command for command in found if not command.startswith(SET_UP)]


def pages() -> list[str]:
    files = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [str(f.relative_to(ROOT)) for f in files if f.name not in ELSEWHERE and commands_of(f)]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone as `make setup` leaves it, but that what it depends on is where the tests have it."""
    place = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", ROOT, place], check=True)
    for name, content in FILES.items():
        (place / name).write_bytes(content)
    venv.create(place / ".venv", symlinks=True)
    python = place / ".venv" / "bin" / "python"
    where = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = subprocess.run(where, check=True, capture_output=True, text=True).stdout.strip()
    Path(site, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    program = python.with_name("mingpt-prefix")
    code = "import sys\nfrom mingpt_prefix.__main__ import main\nsys.exit(main())\n"
    program.write_text(f"#!{python}\n{code}")
    program.chmod(0o755)
    Path(site, "clone.pth").write_text(f"{place}\n")
    for name in ("ready", "ready-dev"):
        (place / ".venv" / name).touch()
    return place


@pytest.mark.parametrize("page", pages())
def test_a_page_s_commands(page: str, clone: Path, request: pytest.FixtureRequest) -> None:
    stands_for = {"gpt2": "tiny", "e2e": "sample"}
    if page == "README.md" and e2e_available():
        del stands_for["e2e"]
    programs = [str(clone / ".venv" / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    environment |= {"PATH": os.pathsep.join(programs), "CUDA_VISIBLE_DEVICES": ""}
    for printed in commands_of(clone / page):
        command = printed
        for name, other in stands_for.items():
            command = command.replace(name, other)
        for pattern, flags in SHORTER:
            if re.search(pattern, printed):
                command += f" {flags}"
        if "--resume" in command:
            stopped(clone / command.split()[-1])
        path = next((path for part, path in SERVERS.items() if part in command), None)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        if path:
            command = f"exec {command} --port {port}"
        process = subprocess.Popen(
            ["bash", "-c", command], cwd=clone, env=environment, start_new_session=True
        )
        request.addfinalizer(process.kill)
        if path:
            answers(f"http://127.0.0.1:{port}{path}", process)
            process.send_signal(signal.SIGINT)
        assert process.wait(timeout=1800) == 0, f"{page}: {printed}"


def stopped(run: Path) -> None:
    """Makes of a run that has ended one that was killed after its last checkpoint."""
    content = json.loads((run / "run.json").read_text(encoding="utf-8"))
    (run / "run.json").write_text(json.dumps({**content, "result": None}), encoding="utf-8")


def answers(url: str, server: subprocess.Popen) -> None:
    end = time.monotonic() + 300
    while server.poll() is None and time.monotonic() < end:
        try:
            assert httpx.get(url, trust_env=False).status_code == 200
            return
        except httpx.TransportError:
            time.sleep(0.2)
    raise AssertionError(f"{url} does not answer")
