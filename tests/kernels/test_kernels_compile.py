"""Every Triton kernel compiled ahead of time, for GPUs that need not be there."""

import importlib.util
import json
import os
from pathlib import Path

import pytest

# Triton 3.2 compiles them too, by other arguments than what bench/registers.py gives.
pytest.importorskip("triton", minversion="3.3")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("interpreted kernels cannot be compiled", allow_module_level=True)


def load_registers():
    path = Path(__file__).parents[2] / "bench" / "registers.py"
    spec = importlib.util.spec_from_file_location("registers", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


registers = load_registers()
KERNELS = {name.strip("_") for names in registers.KERNELS.values() for name in names}
KERNELS.add("prefix_kernel_alone")  # without the queries' kernel before it
COMMITTED = json.loads(registers.RESULTS.read_text(encoding="utf-8"))["rows"]


def check(rows: list[dict]) -> None:
    """All kernels are there, for all architectures; none spills in a 16-bit type."""
    assert {row["kernel"] for row in rows} == KERNELS
    assert {row["architecture"] for row in rows} == {"sm_80", "sm_90"}
    for row in rows:
        assert row["dtype"] == "fp32" or row["spilled_bytes"] == 0, row
        # The least that a program may have on a GPU from sm_80 on.
        assert row["shared_bytes"] <= 99 * 1024, row


@pytest.mark.parametrize("dtype", registers.DTYPES)
def test_kernels_compile_without_spills(dtype: str) -> None:
    check(list(registers.table({dtype: registers.DTYPES[dtype]})))


def test_the_committed_table() -> None:
    check(COMMITTED)
    assert {row["dtype"] for row in COMMITTED} == set(registers.DTYPES)
