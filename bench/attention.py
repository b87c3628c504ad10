"""One layer's attention with a prefix: this project's kernels against what else there is.

python bench/attention.py --json bench/results/attention.json    # on a GPU
TRITON_INTERPRET=1 python bench/attention.py                     # on a CPU: only correctness

Values and gradients are compared with the reference in float64 first. Small shapes are bound by
launches, so what counts is the replay of a CUDA graph of several calls; eager times stand beside.
Caches stay as warm as a call leaves them. TFLOP/s counts a causal half of the square, and backward
as 2.5 forwards; the ceiling is the larger of that work at the rate of a large matrix product and of
the least bytes at the rate of a large copy, which means nothing where the L2 cache holds them all.
A shape that fails is recorded, and the others are timed.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from measure.arithmetic import copy_rate, matmul_rate
from measure.e2e_lengths import examples
from measure.record import Record
from measure.timing import time_eagerly, time_replays
from methods.attention import (
    PEERS,
    Call,
    Shape,
    check,
    decode_by_cat,
    decode_inputs,
    exact,
    inputs,
    time_passes,
)
from methods.attention import packed as ours
from reports.attention import attention_table

from mingpt_prefix import kernels
from mingpt_prefix.checkpoints.pretrained import DTYPES, choose_device
from mingpt_prefix.kernels import reference

WORK = {"forward": 1.0, "backward": 2.5, "both": 3.5}  # of forward's products


@dataclass(frozen=True)
class Args:
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    samples: int = 30
    quick: bool = False
    """the shapes that matter most"""
    json: Path | None = None


def shapes(on_gpu: bool, quick: bool) -> Iterator[Shape]:
    """E2E's own first, then what is long."""
    lengths = tuple(len(e.ids) for e in examples(50257)[:10])
    if not on_gpu:
        yield Shape("E2E, three of a batch", tuple(n // 3 for n in lengths[:3]), 5, 2)
        yield Shape("B 2, T 40", (40,) * 2, 20, 2)
        return
    for heads in (12, 16):
        yield Shape("E2E, B 10", lengths, 5, heads)
    for heads in (12,) if quick else (12, 16):
        for count in (8,) if quick else (8, 64):
            for length in (128, 1024) if quick else (128, 512, 1024):
                for prefix in (5, 200) if quick else (0, 5, 20, 200):
                    yield Shape(f"B {count}, T {length}", (length,) * count, prefix, heads)


def check_all(
    shape: Shape, backend: str, device: torch.device, dtype: torch.dtype
) -> dict[str, str]:
    """Which peers cannot be compared, and why. Raises AssertionError if ours is wrong."""
    drawn, why_not = inputs(shape, device, dtype), {}
    wanted, low = exact(shape, drawn), ours(shape, "reference", *drawn).results()
    check("ours", ours(shape, backend, *drawn).results(), low, wanted)
    # Other kernels may round sums over the batch more coarsely than ours may.
    loose = tuple(w + 4 * (s.double() - w) for s, w in zip(low, wanted, strict=True))
    for name, make in PEERS.items():
        try:
            call = make(shape, *drawn)
            if name == "FlexAttention" and device.type == "cpu":  # it has no backward there
                with torch.no_grad():
                    found = (call.collect(call.forward(), call.leaves)[0], *low[1:])
            else:
                found = call.results()
            check(name, found, loose, wanted)
        except Exception as error:
            why_not[name] = f"{type(error).__name__}: {error}"
    return why_not


def least_bytes(shape: Shape, size: int, direction: str) -> int:
    """What must be read and written once, in numbers of `size` bytes."""
    token, rows = shape.heads * shape.dim, 2 * shape.prefix * shape.heads * shape.dim
    tokens = sum(shape.lengths) * token
    forward = 4 * tokens + rows
    backward = 8 * tokens + 2 * rows  # qkv, out, d_out in; d_qkv out
    return size * {"forward": forward, "backward": backward, "both": forward + backward}[direction]


def peak(run: Callable[[], object]) -> int:
    """Bytes that `run` allocates at most, beyond what there was."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated() - before


def time_call(call: Call, samples: int) -> dict[str, dict[str, tuple[float, ...]]]:
    """Seconds a pass: by replays of a graph, and eagerly."""
    replay, out = time_passes(call, samples, WORK), call.forward()
    return {
        name: {"replay": replay[name], "eager": time_eagerly(run, samples)}
        for name, run in call.passes(lambda: out).items()
    }


def ceiling(flops: float, least: int, rates: dict) -> tuple[float, bool]:
    """The seconds that a pass takes at least; whether they are of bytes that the cache holds."""
    by_work, by_bytes = flops / rates["matmul"], least / rates["copy"]
    return max(by_work, by_bytes), by_bytes > by_work and least <= rates["l2_bytes"]


def measure(
    shape: Shape, name: str, device: torch.device, dtype: torch.dtype, samples: int, rates: dict
) -> Iterator[dict]:
    """A method's rows at one shape: one a pass."""
    drawn, size = inputs(shape, device, dtype), dtype.itemsize
    call = PEERS[name](shape, *drawn) if name in PEERS else ours(shape, "triton", *drawn)
    times, most = time_call(call, samples), peak(call.both)
    for direction, found in times.items():
        flops, least = shape.flops() * WORK[direction], least_bytes(shape, size, direction)
        spent = found["replay"][1]
        shortest, in_cache = ceiling(flops, least, rates)
        copies = 2 * size * call.copied * (2 if direction == "both" else 1)
        yield {
            "shape": {"name": shape.name, "prefix": shape.prefix, "heads": shape.heads},
            "method": name,
            "pass": direction,
            **found,
            "tflops": flops / spent / 1e12,
            "share_of_ceiling": shortest / spent,
            "in_cache": in_cache,
            "bytes_moved": least + copies,
            "peak_bytes": most,
        }


def one_token(
    count: int, context: int, device: torch.device, dtype: torch.dtype, samples: int, on_gpu: bool
) -> Iterator[dict]:
    """One new token: ours against concatenation and SDPA on a static cache."""
    backend = "triton" if kernels.why_not_triton(device, dtype) is None else "reference"
    arguments = decode_inputs(count, context, 5, 12 if on_gpu else 2, device, dtype)
    runs = {
        "ours": lambda: kernels.decode_attention(**arguments, backend=backend),
        "cat + SDPA": decode_by_cat(arguments),
    }
    double = {k: v.double() if v.is_floating_point() else v for k, v in arguments.items()}
    wanted = reference.decode_attention(**double)
    for name, run in runs.items():
        error = float((run().double() - wanted).abs().max())
        assert error < (1e-4 if dtype == torch.float32 else 2e-2), f"{name}: {error:.2e}"
        if on_gpu:
            numbers = 2 * (context + 5) * arguments["qkv"][:, 0].numel()
            yield {
                "batch": count,
                "context": context,
                "method": name,
                "replay": time_replays(run, samples),
                "eager": time_eagerly(run, samples),
                "bytes_moved": numbers * dtype.itemsize * (1 if name == "ours" else 3),
                "peak_bytes": peak(run),
            }


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    device = choose_device(args.device)
    on_gpu = device.type == "cuda"
    dtype = DTYPES[args.dtype if args.dtype != "auto" else "bf16" if on_gpu else "fp32"]
    why = kernels.why_not_triton(device, dtype)
    backend = "triton" if why is None else "reference"
    name = str(dtype).removeprefix("torch.")
    record = Record("attention.py", device, args.json, dtype=name, attention=[], one_token=[])
    for sizes in ((8, 64), (8, 512), (40, 64), (40, 512)) if on_gpu else ((2, 9),):
        with record.part("one token, B {}, {} before".format(*sizes)):
            record["one_token"] += one_token(*sizes, device, dtype, args.samples, on_gpu)
    if on_gpu:
        record["rates"] = {"matmul": matmul_rate(device, dtype), "copy": copy_rate(device)}
        record["rates"]["l2_bytes"] = torch.cuda.get_device_properties(device).L2_cache_size
    for shape in shapes(on_gpu, args.quick):
        torch.compiler.reset()  # or FlexAttention gives up after a few shapes
        is_large = len(shape.lengths) > 10 and shape.width > 128
        where = f"{shape.name}, P {shape.prefix}, H {shape.heads}"
        with record.part(where):
            why_not = check_all(shape.first(2) if is_large else shape, backend, device, dtype)
            print(f"right: {where}", file=sys.stderr)
            for name, reason in why_not.items():
                record.fail(f"{where}, {name}", reason)
            for name in [name for name in ("ours", *PEERS) if name not in why_not]:
                with record.part(f"{where}, {name}"):
                    if on_gpu:
                        record["attention"] += measure(
                            shape, name, device, dtype, args.samples, record["rates"]
                        )
    if on_gpu or record.get("failed"):
        record.finish(attention_table)
    how = "the Triton kernels, interpreted" if backend == "triton" else f"the reference: {why}"
    print(f"Values and gradients are right ({how}); times need a GPU.")


if __name__ == "__main__":
    main()
