"""The public names, what is packed with them, and how the scripts end."""

import fnmatch
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import mingpt_prefix
from mingpt_prefix.cli.plots import save_loss_curve
from mingpt_prefix.cli.terminal import INTERRUPTED, PIPE_CLOSED, run_script
from mingpt_prefix.errors import TableError

ROOT = Path(__file__).parents[2]
TINY = ROOT / "mingpt_prefix" / "tiny"


# The public interface


def test_every_public_name_is_there() -> None:
    for name in mingpt_prefix.__all__:
        assert getattr(mingpt_prefix, name).__name__ == name and name in dir(mingpt_prefix)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        mingpt_prefix.nothing  # noqa: B018


def test_importing_is_light() -> None:
    code = "import sys, mingpt_prefix; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, check=True)


# The package


def data_files() -> list[Path]:
    files = [path for path in TINY.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return [path for path in files if path.suffix not in (".py", ".pyc")]


def test_all_embedded_files_are_package_data() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    patterns = settings["setuptools"]["package-data"]["mingpt_prefix.tiny"]
    files = [path.relative_to(TINY).as_posix() for path in data_files()]
    assert {"vocab-1024.tiktoken", "wordings.toml", "sample.toml", "sample/trainset.csv"} <= set(
        files
    )
    for name in files:
        assert any(fnmatch.fnmatch(f"/{name}", f"*/{p.removeprefix('**/')}") for p in patterns)


def test_the_page_is_package_data() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    pages = [path.name for path in (ROOT / "mingpt_prefix" / "serve").glob("*.html")]
    assert settings["setuptools"]["package-data"]["mingpt_prefix.serve"] == pages == ["page.html"]


def test_every_room_is_in_the_package() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    rooms = [path.parent.name for path in (ROOT / "mingpt_prefix").glob("*/__init__.py")]
    expected = {"mingpt_prefix", *(f"mingpt_prefix.{room}" for room in [*rooms, "kernels"])}
    assert expected <= set(settings["setuptools"]["packages"])


def test_all_embedded_files_have_25_mb_at_most() -> None:
    assert sum(path.stat().st_size for path in data_files()) <= 25_000_000


# How scripts end


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (TableError("no table", 0), 2, "a.py: no table\n"),
        (KeyboardInterrupt(), INTERRUPTED, ""),
        (BrokenPipeError(), PIPE_CLOSED, ""),
        (
            OSError(28, "No space left on device"),
            2,
            "a.py: cannot write: No space left on device\n",
        ),
        (OSError(13, "Permission denied", "x\ny"), 2, "a.py: x\\ny: Permission denied\n"),
        (MemoryError(), 2, "a.py: not enough memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 2, "a.py: not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "a.py: not enough memory"),
    ],
)
def test_endings(error: BaseException, code: int, said: str, capsys) -> None:
    def program() -> int:
        raise error

    assert run_script("a.py", program) == code
    err = capsys.readouterr().err
    assert err.startswith(said) and err.count("\n") == bool(said)


def test_a_mistake_of_ours_is_not_hidden() -> None:
    def program() -> int:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal"):
        run_script("a.py", program)


def test_no_picture_of_no_steps(tmp_path: Path) -> None:
    assert not save_loss_curve([], tmp_path / "a.png", "a run")
