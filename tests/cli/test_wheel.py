"""The package as a user installs it: the built wheel in an environment of its own, no checkout."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

import mingpt_prefix

ROOT = Path(__file__).parents[2]
USE = """
import sys
from pathlib import Path

import mingpt_prefix
from mingpt_prefix import generate, load_model, parse_table
from mingpt_prefix.data.encoding import encode_example, encode_prompt
from mingpt_prefix.config import TrainConfig
from mingpt_prefix.data.tables import Example
from mingpt_prefix.data.tokenizer import load_tokenizer
from mingpt_prefix.trainer import Trainer
from mingpt_prefix.evaluation.training_run import make_trainer

assert Path(mingpt_prefix.__file__).is_relative_to(sys.prefix), mingpt_prefix.__file__
assert mingpt_prefix.kernels and "train" not in sys.modules
model = load_model("tiny", "cpu")
tokenizer = load_tokenizer(model.config.tokenizer)
table = parse_table("name[The Mill], eatType[pub]")
examples = [encode_example(tokenizer, Example(table, "The Mill is a pub."))] * 2
config = TrainConfig("prefix", "tiny", ("none",), 0.01, 1, 2, 2, prefix_length=3, evals=1)
(progress,) = make_trainer(config, model, examples, examples).steps()
print(progress.loss, progress.dev_loss)
prefix = mingpt_prefix.load_prefix(mingpt_prefix.tiny.PREFIX)
(ids,) = generate(model, [encode_prompt(tokenizer, table)], prefix, max_new_tokens=20)
print(tokenizer.decode(ids).strip())
"""


def run(*command: object, cwd: Path) -> str:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=clean, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_in_a_clean_environment(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    offline = ("--no-deps", "--no-index", "--no-build-isolation")
    sources = tmp_path / "sources"  # setuptools leaves its build folder where it works
    tracked = run("git", "ls-files", cwd=ROOT).splitlines()
    for name in tracked:
        if (ROOT / name).is_file():
            (sources / name).parent.mkdir(parents=True, exist_ok=True)
            (sources / name).write_bytes((ROOT / name).read_bytes())
    run(*pip, "wheel", *offline, "-w", tmp_path / "dist", sources, cwd=tmp_path)
    (wheel,) = (tmp_path / "dist").iterdir()

    place = tmp_path / "clean"
    venv.create(place, with_pip=False, symlinks=True)
    bare = place / ("Scripts" if os.name == "nt" else "bin") / "python"
    site = Path(run(bare, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))",
                    cwd=tmp_path).strip())  # fmt: skip
    run(*pip, "--python", bare, "install", *offline[:2], wheel, cwd=tmp_path)
    # What it depends on is at hand: where the tests themselves have it from.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

    rows = (f"name[Inn {number}],Inn {number} is an inn." for number in range(6))
    (tmp_path / "few.csv").write_text("mr,ref\n" + "\n".join(rows) + "\n")

    losses, sentence = run(bare, "-c", USE, cwd=tmp_path).splitlines()
    assert all(0 < float(loss) < 20 for loss in losses.split())
    assert "The Mill" in sentence
    said = run(bare, "-m", "mingpt_prefix.metrics", "--help", cwd=tmp_path)
    assert "HYPOTHESES" in said

    def program(*flags: str) -> str:
        return run(bare.with_name("mingpt-prefix"), *flags, cwd=tmp_path)

    assert program("--version") == f"mingpt-prefix {mingpt_prefix.__version__}\n"
    small = "--device cpu --prefix-length 2 --limit-examples 8 --max-steps 1 --out run"
    said = program("train", "--data", "few.csv", "--model", "tiny", *small.split())
    assert "Next: mingpt-prefix sample --run run " in said
    by = ("--run", "run", "--beams", "1", "--max-new-tokens", "8", "--device", "cpu")
    assert program("sample", "--table", "name[The Mill], eatType[pub]", *by).count("\n") == 1
    assert "bleu " in program("score", "--data", "few.csv", *by)
    assert (tmp_path / "run" / "few-test" / "references.txt").is_file()
    program("export", "--to", "peft", "run", "adapter")
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()
    program("train", "--data", "few.csv", "--model", "tiny", *small.replace("run", "infix").split(),
            "--placement", "infix")  # fmt: skip
    assert "few: 2 rows" in program("bank", "prefixes", "--add", "few=infix")
    assert "--watch" in program("serve", "--help")
