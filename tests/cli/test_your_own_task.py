"""docs/your-own-task.md, as a new user would go through it: its commands, in an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mingpt_prefix import generate, load_model, load_prefix, tiny

pytestmark = pytest.mark.slow  # a minute, most of it to start eight processes
ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "your-own-task.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)
COMMANDS = "".join(text for kind, text in BLOCKS if not kind).splitlines()
MAKES_DATA, FILLS_CACHE = (text for kind, text in BLOCKS if kind == "python")


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Each command's stdout, by its beginning; run in a folder that holds the scripts alone."""
    folder = tmp_path_factory.mktemp("new")
    for name in ("train.py", "sample.py"):
        (folder / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "make.py").write_text(MAKES_DATA, encoding="utf-8")
    programs = {"python": f'"{sys.executable}"'}
    programs["mingpt-prefix"] = f"{programs['python']} -m mingpt_prefix"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    found = {"folder": str(folder)}
    for command in ("python make.py", *COMMANDS):
        program, flags = command.split(" ", 1)
        done = subprocess.run(
            f"{programs[program]} {flags}",
            shell=True,
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, (command, done.stderr)
        found[command] = done.stdout
    return found


def of(said: dict[str, str], part: str) -> str:
    (found,) = (out for command, out in said.items() if part in command)
    return found


def test_the_guide_s_commands(said: dict[str, str]) -> None:
    assert len(COMMANDS) == 6
    (bleu,) = re.findall(r"After training: dev BLEU (\d+\.\d)", of(said, "--out runs/books"))
    assert float(bleu) > 80
    assert of(said, "sample.py") == "The broken orchard is a book by Iris Vane.\n"
    # What was trained on begins where the first run ended.
    assert f"Before training: dev BLEU {bleu}." in of(said, "--out runs/more")
    folder = Path(said["folder"])
    kept = (folder / "runs" / "books" / "prefix.safetensors").read_bytes()
    assert (folder / "back.safetensors").read_bytes() == kept


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_guide_s_cache_generates_what_we_do(said: dict[str, str]) -> None:
    transformers = pytest.importorskip("transformers")
    folder = Path(said["folder"])
    names: dict = {}
    exec(FILLS_CACHE, names)
    peer = transformers.GPT2LMHeadModel.from_pretrained(tiny.MODEL).float().eval()
    ours = load_model("tiny", "cpu", "fp32")
    prefix = load_prefix(folder / "runs" / "books" / "prefix.safetensors")
    ids = torch.randint(1000, (2, 9), generator=torch.Generator().manual_seed(0))
    path = folder / "past.safetensors"
    flags = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    theirs = names["continue_after"](peer, ids, path, pad_token_id=0, **flags)
    assert theirs[:, 9:].tolist() == generate(
        ours, ids.tolist(), prefix, max_new_tokens=8, eos=None
    )
    logits = peer(ids, past_key_values=names["prefix_cache"](path, 2)).logits
    for row, expected in zip(logits, ours.logits(list(ids), prefix), strict=True):
        torch.testing.assert_close(row, expected, atol=1e-3, rtol=1e-4)
