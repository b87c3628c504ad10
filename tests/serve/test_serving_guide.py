"""docs/serving.md, as a new user would go through it: its commands, in an empty folder."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

pytest.importorskip("openai", reason="the extra dev is not installed")

pytestmark = pytest.mark.slow  # two trainings, three servers, and a client
ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)
COMMANDS = "".join(text for kind, text in BLOCKS if not kind).splitlines()
(CLIENT,) = (text for kind, text in BLOCKS if kind == "python")


def test_the_guide_s_commands(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Each as it is printed, but for Python's name and a port that is free."""
    for name in ("train.py", "sample.py"):
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    (tmp_path / "client.py").write_text(CLIENT.replace("8000", port), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    environment["NO_PROXY"] = "127.0.0.1"
    said, server = {}, None
    for command in [*COMMANDS, "python client.py"]:
        if is_server := "--serve" in command:
            stop(server)
            command += f" --port {port}"
        words = command.replace("8000", port).replace("python ", f'exec "{sys.executable}" ', 1)
        process = subprocess.Popen(
            words, shell=True, cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE
        )
        request.addfinalizer(process.kill)
        if is_server:
            server = process
            wait_for(f"http://127.0.0.1:{port}/health", server)
        else:
            said[command] = process.communicate(timeout=600)[0]
            assert process.returncode == 0, command
    stop(server)
    models, *texts = said["python client.py"].splitlines()
    assert models == "['few', 'frozen']" and re.search(r" stop \d+$", texts[0])
    (answer,) = (out for command, out in said.items() if "/generate" in command)
    assert json.loads(answer)["by"] == "few"


def wait_for(url: str, server: subprocess.Popen) -> None:
    end = time.monotonic() + 300
    while True:
        assert server.poll() is None and time.monotonic() < end
        try:
            assert httpx.get(url, trust_env=False).status_code == 200
            return
        except httpx.TransportError:
            time.sleep(0.2)


def stop(server: subprocess.Popen | None) -> None:
    if server is not None:
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=30) == 0
