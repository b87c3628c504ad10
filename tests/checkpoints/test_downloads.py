"""Downloads that go wrong, in real processes against a local server: the cache is never corrupt.

A connection that breaks off, a page that is gone, and no network at all are in test_data.py (the
E2E release) and test_weights.py (the hub).
"""

import hashlib
import io
import json
import os
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from safetensors.torch import load as load_tensors
from safetensors.torch import save
from test_weights import DRIVER, hub_form, make_model

from mingpt_prefix.checkpoints.pretrained import fingerprint, save_model

ROOT = Path(__file__).parents[2]

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PIECES = 16
GOOD, BAD = "gpt2", "gpt2-medium"
HUB = "/openai-community/{}/resolve/main/model.safetensors"


class Server(ThreadingHTTPServer):
    """Serves `files`, slowly; one that is not what was `promised` is so the next time."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.promised: dict[str, bytes] = {}
        self.begun = self.ended = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self.send_headers()

    def do_GET(self) -> None:
        if not (body := self.send_headers()):
            return
        self.server.begun += 1
        self.server.files[self.path] = self.server.promised.pop(self.path, body)
        size = -(-len(body) // PIECES)
        for start in range(0, len(body), size):
            try:
                self.wfile.write(body[start : start + size])
            except OSError:  # the one who asked was killed
                return
            time.sleep(0.05)
        self.server.ended += 1

    def send_headers(self) -> bytes:
        body = self.server.files.get(self.path, b"")
        digest = hashlib.sha256(self.server.promised.get(self.path, body)).hexdigest()
        self.send_response(200 if body else 404)
        self.send_header("ETag", f'"{digest}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(body)))
        if not body:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()
        return body

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def start(code: str, *arguments: str, **environment: str) -> subprocess.Popen:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGINGFACE_"))}
    command = [sys.executable, "-c", code, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env={**kept, "no_proxy": "*", **environment}, **pipes)


def kill_in_the_middle(process: subprocess.Popen, server: Server) -> None:
    while server.begun == 0 and process.poll() is None:
        time.sleep(0.005)
    time.sleep(0.3)
    assert process.poll() is None and (server.begun, server.ended) == (1, 0)
    process.kill()
    process.communicate()


def ends_well(process: subprocess.Popen) -> str:
    said, complaints = process.communicate(timeout=120)
    assert process.returncode == 0, complaints
    return said


# The E2E release

READ_E2E = """
import sys
from mingpt_prefix.data import datasets as data
data.E2E_SHA256 = sys.argv[1]
print(len(data.load_examples("e2e", "train", url=sys.argv[2])))
"""


def test_e2e_killed_and_then_by_two_at_once(server: Server, tmp_path: Path) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("e2e-dataset/trainset.csv", "mr,ref\nname[A],A pub.\n")
        archive.writestr("e2e-dataset/noise", os.urandom(200_000))
    release = server.files["/e2e.zip"] = out.getvalue()
    arguments = (READ_E2E, hashlib.sha256(release).hexdigest(), f"{server.url}/e2e.zip")
    cache = tmp_path / "cache"

    kill_in_the_middle(start(*arguments, MINGPT_PREFIX_CACHE=str(cache)), server)
    assert not cache.exists()
    both = [start(*arguments, MINGPT_PREFIX_CACHE=str(cache)) for _ in range(2)]
    assert [ends_well(process) for process in both] == ["1\n", "1\n"]
    assert [path.name for path in cache.iterdir()] == ["e2e-dataset.zip"]
    assert (cache / "e2e-dataset.zip").read_bytes() == release


# The hub


def load(server: Server, home: Path, *names: str) -> subprocess.Popen:
    calls = (f"load:{name}" for name in names)
    return start(DRIVER, *calls, HF_HOME=str(home), HF_ENDPOINT=server.url)


@pytest.fixture
def served(server: Server) -> bytes:
    """The weights that the hub has for `GOOD`; for `BAD` it sends others the first time."""
    named = {f"transformer.{n}": p.detach() for n, p in make_model().named_parameters()}
    body = save(hub_form(named), metadata={"format": "pt"})
    damaged = bytearray(body)
    damaged[-5] ^= 1  # a number that is a little off: still a model, and not the one promised
    server.files = {HUB.format(GOOD): body, HUB.format(BAD): bytes(damaged)}
    server.promised = {HUB.format(BAD): body}
    return body


def test_damaged_weights_do_not_stay(server: Server, served: bytes, tmp_path: Path) -> None:
    refused, loaded = ends_well(load(server, tmp_path, BAD, BAD)).splitlines()
    assert "is damaged (its SHA-256 differs)" in refused and fingerprint(make_model()) in loaded


@pytest.mark.slow
def test_weights_killed_and_then_by_two_at_once(server, served: bytes, tmp_path: Path) -> None:
    kill_in_the_middle(load(server, tmp_path, GOOD), server)
    both = [load(server, tmp_path, GOOD) for _ in range(2)]
    said = [ends_well(process) for process in both]
    assert all(fingerprint(make_model()) in line for line in said)
    whole = {path.name: path.read_bytes() for path in tmp_path.rglob("blobs/*")}
    assert whole[hashlib.sha256(served).hexdigest()] == served


def folder_of(path: Path, **changes: object) -> dict[str, bytes]:
    """The files of a small model as transformers saves it."""
    save_model(make_model(), path)
    config = json.loads((path / "config.json").read_text()) | changes
    (path / "config.json").write_text(json.dumps(config))
    return {file.name: file.read_bytes() for file in path.iterdir()}


def cache(home: Path, repo: str, files: dict[str, bytes]) -> None:
    """As `from_pretrained` fills it."""
    folder = home / "hub" / f"models--{repo.replace('/', '--')}"
    for name, content in files.items():
        path = folder / "snapshots" / COMMIT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(COMMIT)


# Whether the hub answers in time is not asked here.
PATIENT = f"from mingpt_prefix.checkpoints import hub\nhub._PROBE_S = 60.0\n{DRIVER}"


def test_models_that_other_programs_cached(server: Server, served: bytes, tmp_path: Path) -> None:
    """Under the hub's older names too, and under the newer when the older is asked for."""
    files = folder_of(tmp_path / "model")
    weights = {"model.safetensors": served}
    for repo, held in (
        ("gpt2", weights),
        ("openai-community/gpt2-medium", weights),
        ("distilgpt2", files),
        ("someone/tale", files),
    ):
        cache(tmp_path, repo, held)
    names = ["gpt2", "openai-community/gpt2", "openai-community/gpt2-medium"]
    names += ["distilgpt2", "distilbert/distilgpt2", "someone/tale"]
    known = ["gpt2", "gpt2", "gpt2-medium", "", "", ""]
    expected = [[name, fingerprint(make_model())] for name in known]
    calls = [*(f"load:{name}" for name in names), "at_hand:gpt2"]
    for env in ({"HF_ENDPOINT": server.url}, {"HF_HUB_OFFLINE": "1"}):
        said = ends_well(start(PATIENT, *calls, HF_HOME=str(tmp_path), **env)).splitlines()
        answers = [json.loads(line)[0] for line in said]
        assert answers == [*expected, [True, "in the Hugging Face cache"]]
    assert server.begun == 0


def test_any_gpt2_of_the_hub(server: Server, tmp_path: Path) -> None:
    files = folder_of(tmp_path / "model")
    tensors = load_tensors(files["model.safetensors"])
    first = dict(list(tensors.items())[:9])
    rest = {name: tensor for name, tensor in tensors.items() if name not in first}
    index = {name: "a.safetensors" if name in first else "b.safetensors" for name in tensors}
    large = {
        "config.json": files["config.json"],
        "model.safetensors.index.json": json.dumps({"weight_map": index}).encode(),
        "a.safetensors": save(first),
        "b.safetensors": save(rest),
    }
    pickled = {"config.json": files["config.json"], "pytorch_model.bin": b"x"}
    other = folder_of(tmp_path / "other", model_type="llama")
    repos = {"distilgpt2": files, "someone/large": large, "a/pickled": pickled, "a/llama": other}
    for repo, held in repos.items():
        repo = {"distilgpt2": "distilbert/distilgpt2"}.get(repo, repo)
        for name, content in held.items():
            for revision in ("main", COMMIT):
                server.files[f"/{repo}/resolve/{revision}/{name}"] = content
    asked = [*repos, "a/none", "distilgpt2"]
    env = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": server.url}
    calls = (f"load:{name}" for name in asked)
    said = ends_well(start(PATIENT, *calls, **env)).splitlines()
    answers = [json.loads(line)[0] for line in said]
    whole = ["", fingerprint(make_model())]
    assert answers[0] == answers[1] == answers[5] == whole
    assert "no model.safetensors" in answers[2] and "pickled weights are not read" in answers[2]
    assert "GPT-2 only: model_type is 'llama', not 'gpt2'" in answers[3]
    assert answers[4].startswith("unknown model 'a/none'; known: ") and "on the" in answers[4]
    assert server.begun == 2 + 4 + 1 + 1  # no weights of another architecture, nothing twice
    env = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    calls = ("load:distilgpt2", "load:someone/large")
    said = ends_well(start(DRIVER, *calls, **env)).splitlines()
    assert [json.loads(line)[0] for line in said] == [whole, whole]


RUN = """
import sys
import sample
import train
flags = sys.argv[1:]
assert train.main(["--mode", "prefix", "--max-steps", "1", "--prefix-length", "2", *flags]) == 0
next_command = ["--run", "run", "--model", "someone/small", "--beams", "1"]
sys.exit(sample.main([*next_command, "--max-new-tokens", "3", "--table", "name[A]"]))
"""


def test_a_run_on_a_model_of_the_hub(small_model, small_data, tmp_path: Path) -> None:
    cache(tmp_path, "someone/small", {p.name: p.read_bytes() for p in small_model.iterdir()})
    flags = ["--model", "someone/small", "--data", str(small_data), "--out", "run"]
    env = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    said = ends_well(start(f"import os; os.chdir({str(tmp_path)!r})\n{RUN}", *flags, **env))
    assert "sample.py --run run --model someone/small --table" in said


# GPT-2's tokenizer

LOAD_TOKENIZER = """
from mingpt_prefix.errors import DataError
from mingpt_prefix.data.tokenizer import load_tokenizer
try:
    print(load_tokenizer("gpt2").vocab_size)
except DataError as error:
    print(error)
"""


def test_damaged_files_of_the_tokenizer_are_not_taken(tmp_path: Path) -> None:

    addresses = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/{}"
    kept = []
    for name in ("vocab.bpe", "encoder.json"):
        key = hashlib.sha1(addresses.format(name).encode()).hexdigest()
        (tmp_path / key).write_text("damaged")
        kept.append(tmp_path / key)
    nowhere = {"https_proxy": "http://127.0.0.1:9", "no_proxy": "", "HTTPS_PROXY": ""}
    said = ends_well(start(LOAD_TOKENIZER, TIKTOKEN_CACHE_DIR=str(tmp_path), **nowhere))
    assert "cannot be downloaded" in said and said.count("\n") == 1
    assert not kept[0].exists()  # the first to be read
