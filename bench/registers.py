"""Registers, spills and shared memory of every Triton kernel, compiled ahead of time.

python bench/registers.py    # no GPU needed; writes bench/results/registers.json

The launchers run with kernels that note what they are called with in place of being run, so what is
compiled here is what a model's shapes ask for.
"""

import argparse
import contextlib
import json
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mingpt_prefix.checkpoints.atomic_write import write_atomically
from mingpt_prefix.kernels import Layout, attention, decode, prefix_gradient

RESULTS = Path(__file__).parent / "results" / "registers.json"
ARCHITECTURES = (80, 90)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# Longest sequence, prefix rows: E2E's, and the longest of each.
SHAPES = ((114, 5), (1024, 200))
_TYPES = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
_OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")
KERNELS = {
    attention: ("_forward_kernel", "_query_kernel", "_key_kernel"),
    prefix_gradient: ("_prefix_kernel", "_add_kernel"),
    decode: ("_decode_kernel", "_combine_kernel"),
}


class Recorder:
    """Stands for a kernel: notes each launch as what `triton.compile` takes."""

    def __init__(self, kernel, launches: list):
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid) -> Callable:
        return self.launch

    def launch(self, *args, **constants) -> None:
        options = {name: constants.pop(name) for name in _OPTIONS if name in constants}
        values = {**dict(zip(self.kernel.arg_names, args, strict=False)), **constants}
        signature, fixed, attrs = {}, {}, {}
        for parameter in self.kernel.params:
            name, value = parameter.name, values[parameter.name]
            if parameter.is_constexpr:
                signature[name], fixed[(parameter.num,)] = "constexpr", value
            elif isinstance(value, float):
                signature[name] = "fp32"
            elif isinstance(value, int):
                if value == 1 and not parameter.do_not_specialize:
                    signature[name], fixed[(parameter.num,)] = "constexpr", value
                    continue
                signature[name] = "i32"
                if value % 16 == 0 and not parameter.do_not_specialize:
                    attrs[(parameter.num,)] = [["tt.divisibility", 16]]
            else:
                signature[name] = _TYPES[value.dtype]
                attrs[(parameter.num,)] = [["tt.divisibility", 16]]
        source = ASTSource(self.kernel, signature, fixed, attrs)
        name = self.kernel.__name__.strip("_")
        alone = "" if constants.get("HAS_DELTA", True) else "_alone"
        self.launches.append((name + alone, source, options))


def launches(dtype: torch.dtype, max_seq_len: int, n_rows: int, head_dim: int = 64) -> list:
    """(kernel's name, source, options) of a forward, backward and decoding call."""
    n_seqs, n_head, noted = 10, 12, []

    def ints(*values: int) -> Tensor:
        return torch.tensor(values, dtype=torch.int32)

    qkv = torch.empty(n_seqs * max_seq_len, 3, n_head, head_dim, dtype=dtype)
    kv = torch.empty(2, n_rows, n_head, head_dim)  # float32: what is trained
    zeros, prefix_starts = ints(*[0] * n_seqs), ints(0, n_rows)
    layout = Layout(ints(*range(n_seqs + 1)), zeros, zeros, max_seq_len)
    table = torch.zeros(n_seqs, max_seq_len, dtype=torch.int32)
    with contextlib.ExitStack() as stack:
        for module, names in KERNELS.items():
            for name in names:
                recorder = Recorder(getattr(module, name), noted)
                stack.enter_context(mock.patch.object(module, name, recorder))
        output = attention.launch_forward(qkv, kv, layout, prefix_starts)
        inputs = (output[0], qkv, kv, output, layout, prefix_starts)
        _, delta = attention.launch_backward(*inputs)
        prefix_gradient.launch_prefix_backward(*inputs, delta)
        prefix_gradient.launch_prefix_backward(*inputs)  # as of a frozen model's first layer
        kv = kv.to(dtype)
        decode.launch_decode(qkv[:n_seqs], kv, table, table[:, 0], kv, prefix_starts, zeros)
    return noted


def resources(source: ASTSource, options: dict, architecture: int) -> dict[str, int]:
    """Registers of a thread, bytes spilled of them, bytes of shared memory of a program."""
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [tool, "--dump-resource-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {key: int(re.search(rf"\b{key}:(\d+)", said)[1]) for key in ("REG", "STACK", "LOCAL")}
    return {
        "registers": found["REG"],
        # No kernel has an array of its own: what lies on its stack are registers that were spilled.
        "spilled_bytes": found["STACK"] + found["LOCAL"],
        "shared_bytes": compiled.metadata.shared,
    }


def table(dtypes: dict[str, torch.dtype] = DTYPES) -> Iterator[dict]:
    """A row for each kernel, architecture, type and shape."""
    for dtype, max_seq_len, n_rows, architecture in (
        (d, *s, a) for d in dtypes for s in SHAPES for a in ARCHITECTURES
    ):
        for name, source, options in launches(dtypes[dtype], max_seq_len, n_rows):
            yield {
                "kernel": name,
                "architecture": f"sm_{architecture}",
                "dtype": dtype,
                "max_seq_len": max_seq_len,
                "prefix_rows": n_rows,
                "warps": options.get("num_warps", 4),
                **resources(source, options, architecture),
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, default=RESULTS)
    args = parser.parse_args()
    versions, lines = json.dumps({"triton": triton.__version__, "head_dim": 64}), []
    args.json.parent.mkdir(exist_ok=True)
    for row in table():
        lines.append(json.dumps(row))
        print(*row.values(), flush=True)
        rows = ",\n  ".join(lines)
        content = f'{{"versions": {versions}, "rows": [\n  {rows}\n]}}\n'
        write_atomically(args.json, content.encode())


if __name__ == "__main__":
    main()
