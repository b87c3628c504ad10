"""The Triton backend: its checks in a process of their own, and what both backends refuse."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mingpt_prefix import kernels
from mingpt_prefix.checkpoints.pretrained import choose_attention, load_model
from mingpt_prefix.errors import ConfigError

ROOT = Path(__file__).parents[2]
HAS_GPU = torch.cuda.is_available()
CPU, FP32 = torch.device("cpu"), torch.float32


@pytest.mark.parametrize(
    "where",
    [
        "interpreter",
        pytest.param(
            "gpu",
            marks=[pytest.mark.gpu, pytest.mark.skipif(not HAS_GPU, reason="there is no GPU")],
        ),
    ],
)
def test_kernels(where: str) -> None:
    """kernel_checks.py, whose kernels are interpreted, or not, from their import on."""
    pytest.importorskip("triton")
    hidden = {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    # cuBLAS is deterministic with this, which the checks ask for.
    settings = hidden if where == "interpreter" else {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    result = subprocess.run(
        [*command, "tests/kernels/kernel_checks.py"],
        cwd=ROOT,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
    assert "passed" in result.stdout


def test_triton_is_imported_only_where_it_is_chosen() -> None:
    code = "import sys, mingpt_prefix.model; assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# The choice


def test_the_kernels_are_chosen_by_name(monkeypatch) -> None:
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: object())
    cuda = torch.device("cuda")
    assert choose_attention("auto", CPU, FP32) == "reference"
    assert choose_attention("auto", cuda, torch.bfloat16) == "reference"
    assert kernels.choose_backend(cuda, torch.bfloat16) == "triton"
    assert kernels.choose_backend(cuda, torch.float64) == "reference"
    assert choose_attention("reference", cuda, FP32) == "reference"
    assert choose_attention("triton", cuda, FP32) == "triton"
    with pytest.raises(ConfigError, match="no kernels for torch.float64"):
        choose_attention("triton", cuda, torch.float64)
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: None)
    assert choose_attention("auto", cuda, FP32) == "reference"
    with pytest.raises(ConfigError, match="not installed"):
        choose_attention("triton", cuda, FP32)


def test_triton_without_a_gpu_is_refused(monkeypatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ConfigError, match="attention triton, on cpu: it needs a GPU"):
        load_model("tiny", "cpu", attention="triton")
    with pytest.raises(ValueError, match="qkv: is torch.float32 on cpu"):
        kernels.prefix_attention(**PREFIX, backend="triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    wide = dict(PREFIX, qkv=torch.zeros(6, 3, 1, 300), prefix_kv=torch.zeros(2, 5, 1, 300))
    with pytest.raises(ValueError, match="qkv: D is 300"):
        kernels.prefix_attention(**wide, backend="triton")
    assert choose_attention("triton", CPU, FP32) == "triton"
    assert choose_attention("auto", CPU, FP32) == "reference"


# What is refused


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


PREFIX = dict(
    qkv=torch.zeros(6, 3, 2, 4),
    prefix_kv=torch.zeros(2, 5, 2, 4),
    cu_seqlens=ints(0, 4, 6),
    prefix_starts=ints(0, 5),
    prefix_ids=ints(0, -1),
    prefix_from=ints(0, 0),
    max_seq_len=4,
)
DECODE = dict(
    qkv=torch.zeros(2, 3, 2, 4),
    cache=torch.zeros(2, 9, 2, 4),
    block_table=torch.zeros(2, 4, dtype=torch.int32),
    lengths=ints(3, 1),
    prefix_kv=torch.zeros(2, 5, 2, 4),
    prefix_starts=ints(0, 5),
    prefix_ids=ints(0, -1),
)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("qkv", torch.zeros(6, 2, 2, 4), r"shape \(6, 3, H, D\), got \(6, 2, 2, 4\)"),
        ("qkv", torch.zeros(6, 3, 8), "shape"),
        ("qkv", torch.zeros(6, 3, 2, 4, dtype=torch.int32), "floating-point"),
        ("qkv", torch.zeros(6, 3, 4, 2).transpose(2, 3), "side by side"),
        ("prefix_kv", torch.zeros(2, 5, 2, 8), r"shape \(2, R, 2, 4\)"),
        ("prefix_kv", torch.zeros(2, 5, 2, 4, device="meta"), "is on meta"),
        ("cu_seqlens", ints(), "at least 1"),
        ("cu_seqlens", ints(0, 4, 3), "never fall"),
        ("cu_seqlens", ints(-1, 4, 6), "at 0 or above"),
        ("cu_seqlens", ints(2, 4, 6), "begins at 2"),
        ("cu_seqlens", ints(0, 4, 7), "7 of 6 tokens"),
        ("cu_seqlens", torch.zeros(3), "int32 or int64"),
        ("prefix_starts", ints(3, 0), "never fall"),
        ("prefix_starts", ints(0, 6), "6 of 5 rows"),
        ("prefix_ids", ints(0, 1), r"\[-1, 1\)"),
        ("prefix_ids", ints(-2, 0), r"\[-1, 1\)"),
        ("prefix_ids", ints(0), r"shape \(2,\)"),
        ("prefix_from", ints(0, 0, 0), r"shape \(2,\)"),
        ("prefix_from", ints(0, 9, 0, 9)[::2], "contiguous"),
        ("max_seq_len", 3, "a sequence has 4"),
        ("max_seq_len", -1, "negative"),
    ],
)
def test_bad_arguments(name: str, value, said: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: .*{said}"):
        kernels.prefix_attention(**{**PREFIX, name: value})


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("qkv", torch.zeros(2, 2, 2, 4), "shape"),
        ("cache", torch.zeros(2, 9, 2, 8), "shape"),
        ("cache", torch.zeros(2, 9, 2, 4, dtype=torch.float64), "qkv torch.float32"),
        ("block_table", ints(0, 0), "shape"),
        ("block_table", torch.zeros(3, 4, dtype=torch.int32), "shape"),
        ("lengths", ints(4, 1), r"\[0, 4\)"),
        ("lengths", torch.zeros(2), "int32 or int64"),
        ("prefix_ids", ints(0, 3), r"\[-1, 1\)"),
    ],
)
def test_bad_arguments_of_decoding(name: str, value, said: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: .*{said}"):
        kernels.decode_attention(**{**DECODE, name: value})


def test_unknown_backend() -> None:
    for call in (
        lambda: kernels.prefix_attention(**PREFIX, backend="flash"),
        lambda: kernels.decode_attention(**DECODE, backend="flash"),
    ):
        with pytest.raises(ValueError, match="^backend: 'flash' is not one of triton, reference"):
            call()
