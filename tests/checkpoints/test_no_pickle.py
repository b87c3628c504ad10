"""No pickle is read in training, resuming and sampling: Python tells of each class one names."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
WATCHED = """
import pickle
from pathlib import Path
import sample, train

seen = []
sys.addaudithook(lambda event, args: seen.append(args) if event == "pickle.find_class" else None)
assert train.main(["--resume", "run-2"]) == 0
new = ["--mode", "finetune", "--model", "base", "--data", "tables.csv", "--device", "cpu"]
assert train.main([*new, "--max-steps", "2", "--out", "new"]) == 0
table = ["--table", "name[Inn 3]", "--max-new-tokens", "2"]
assert sample.main(["--run", "run-2", "--model", "base", *table]) == 0
assert sample.main(["--run", "new", *table]) == 0
assert not seen, seen
pickle.loads(pickle.dumps(Path))
assert seen  # that is how one would be noticed
"""


def test_no_pickle_is_read(tmp_path: Path) -> None:
    copy = "import shutil, sys; shutil.copytree(sys.argv.pop(), '.', dirs_exist_ok=True)"
    command = [sys.executable, "-c", copy + WATCHED, str(ROOT / "tests" / "kept")]
    environment = {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "PATH": "",
        "HOME": str(tmp_path),
    }
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
