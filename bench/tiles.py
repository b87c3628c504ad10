"""The kernels' block sizes, tried one after the other: what `choose_tiles` should say.

python bench/tiles.py --json bench/results/tiles.json     # on a GPU
python bench/tiles.py --resources                         # without one: registers and spills
TRITON_INTERPRET=1 python bench/tiles.py                  # without one: only correctness

A choice is (queries, keys, prefix rows at most, warps, stages); what `choose_tiles` says now is
marked. Every choice's values or gradients are compared with the reference in float64, as
bench/attention.py does, and then timed by replays of a CUDA graph. Kernels are compiled beforehand,
each choice's by a process of its own: the compiler itself may crash.
"""

import multiprocessing
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
import tyro
from measure.e2e_lengths import examples
from measure.record import Record
from methods.attention import Shape, check, exact, inputs, packed, time_passes
from triton.errors import TritonError

from mingpt_prefix import kernels
from mingpt_prefix.checkpoints.pretrained import choose_device
from mingpt_prefix.kernels import attention, blocks, prefix_gradient

Choice = tuple[int, int, int, int, int]  # queries, keys, prefix rows, warps, stages

CHOICES: dict[str, tuple[Choice, ...]] = {
    "forward": (
        (32, 32, 32, 2, 3), (32, 32, 32, 4, 3), (64, 32, 32, 4, 2), (64, 32, 32, 4, 3),
        (64, 64, 64, 4, 2), (64, 64, 64, 4, 3), (128, 32, 32, 4, 3), (128, 64, 64, 4, 3),
        (128, 64, 32, 8, 3), (128, 64, 64, 8, 2), (128, 64, 64, 8, 3), (128, 128, 64, 8, 2),
    ),
    "backward": (
        (32, 32, 32, 2, 3), (32, 32, 32, 4, 3), (64, 32, 32, 4, 2), (64, 32, 32, 4, 3),
        (64, 64, 32, 4, 2), (64, 64, 32, 4, 3), (64, 64, 64, 4, 3), (64, 64, 64, 8, 3),
        (128, 32, 32, 8, 3), (128, 64, 32, 8, 2), (128, 64, 64, 8, 2),
    ),
}  # fmt: skip
_COMPILERS = 12
KERNELS = (attention, prefix_gradient)


@dataclass(frozen=True)
class Args:
    samples: int = 30
    resources: bool = False
    """no GPU: compile for sm_90, in bf16, and tell registers, spills and shared memory"""
    json: Path | None = None


def shapes(on_gpu: bool) -> list[Shape]:
    lengths = tuple(len(e.ids) for e in examples(50257)[:10])
    if not on_gpu:
        return [Shape("E2E, two of a batch", tuple(n // 3 for n in lengths[:2]), 5, 1)]
    return [
        Shape("E2E, B 10", lengths, 5, 12),
        Shape("B 8, T 128", (128,) * 8, 5, 12),
        Shape("B 8, T 1024", (1024,) * 8, 5, 12),
        Shape("B 8, T 1024", (1024,) * 8, 200, 12),
    ]


@contextmanager
def chosen(choice: Choice, direction: str) -> Iterator[None]:
    """One direction's kernels launched with these sizes."""

    def choose(qkv, prefix_kv, max_seq_len, **way):
        tiles = blocks.choose_tiles(qkv, prefix_kv, max_seq_len, **way)
        if way["forward"] == (direction == "forward"):
            return blocks.make_tiles(*choice, tiles.D, prefix_kv.shape[1])
        return tiles

    with ExitStack() as patched:
        for module in KERNELS:
            patched.enter_context(mock.patch.object(module, "choose_tiles", choose))
        yield


def compile_all(choice: Choice, direction: str) -> None:
    """Run a choice's kernels once at every shape, which leaves them in Triton's cache."""
    for shape in shapes(on_gpu=True):
        with chosen(choice, direction), suppress(Exception):  # which `tried` tells
            packed(shape, "triton", *inputs(shape, torch.device("cuda"), torch.bfloat16)).results()


def end_of(target: Callable, *args) -> int:
    """The exit code of a process that does this, and nothing else."""
    process = multiprocessing.get_context("spawn").Process(target=target, args=args, daemon=True)
    process.start()
    process.join()
    return process.exitcode


def compile_beforehand() -> dict[tuple[str, Choice], int]:
    """All choices, several at a time; the exit codes of those that crash the compiler."""
    every = [(way, choice) for way, found in CHOICES.items() for choice in found]
    with ThreadPoolExecutor(_COMPILERS) as pool:
        codes = pool.map(lambda each: end_of(compile_all, *each[::-1]), every)
    return {each: code for each, code in zip(every, codes, strict=True) if code}


def tried(
    shape: Shape,
    device: torch.device,
    dtype: torch.dtype,
    direction: str,
    samples: int,
    crashed: Mapping[tuple[str, Choice], int],
) -> Iterator[dict]:
    """A row a choice, but for those that a short prefix makes equal: checked, and on a GPU timed;
    or what failed."""
    drawn = inputs(shape, device, dtype)
    wanted, low = exact(shape, drawn), packed(shape, "reference", *drawn).results()
    qkv, kv, _ = drawn
    usual = blocks.choose_tiles(qkv, kv, shape.width, direction == "forward")
    met = set()
    for choice in CHOICES[direction]:
        own = blocks.make_tiles(*choice, usual.D, shape.prefix)
        if own in met:
            continue
        met.add(own)
        row = {"shape": shape.name, "prefix": shape.prefix, "pass": direction}
        row |= {"choice": choice, "is_usual": own == usual}
        if code := crashed.get((direction, choice)):
            yield {**row, "failed": f"the compiler crashed, with exit code {code}"}
            continue
        with chosen(choice, direction):
            try:
                call = packed(shape, "triton", *drawn)
                check(f"{choice}", call.results(), low, wanted)
                if device.type == "cuda":
                    row["seconds"] = time_passes(call, samples, [direction])[direction]
            except (RuntimeError, TritonError, AssertionError) as error:
                row["failed"] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        yield row


def print_resources() -> None:
    """What each choice takes of an sm_90, by ahead-of-time compilation."""
    import registers

    wanted = {
        "forward": ("forward_kernel",),
        "backward": ("query_kernel", "key_kernel", "prefix_kernel"),
    }
    for direction, choices in CHOICES.items():
        for choice in choices:
            with chosen(choice, direction):
                launched = registers.launches(torch.bfloat16, 1024, 200)
            told = []
            for name, source, options in launched:
                if name in wanted[direction]:
                    used = registers.resources(source, options, 90)
                    numbers = " / ".join(f"{number:,}" for number in used.values())
                    told.append(f"{name.removesuffix('_kernel')} {numbers}")
            print(f"{direction} {choice}: {'; '.join(told)}", flush=True)


def show(record: dict) -> str:
    """The choices of each shape and pass, best first; `*` marks the usual one."""
    lines = []
    groups: dict[tuple, list[dict]] = {}
    for row in record["rows"]:
        groups.setdefault((row["shape"], row["prefix"], row["pass"]), []).append(row)
    for (shape, prefix, name), found in groups.items():
        lines.append(f"{shape}, P {prefix}, {name}:")
        found.sort(key=lambda row: row["seconds"][1] if "seconds" in row else float("inf"))
        for row in found:
            mark = "*" if row["is_usual"] else " "
            told = row.get("failed") or "right"
            if "seconds" in row:
                told = " / ".join(f"{1e6 * seconds:.1f}" for seconds in row["seconds"]) + " µs"
            lines.append(f"  {mark} {row['choice']}  {told}")
    return "\n".join(lines)


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    if args.resources:
        print_resources()
        return
    device = choose_device("auto")
    on_gpu = device.type == "cuda"
    dtype = torch.bfloat16 if on_gpu else torch.float32  # the interpreter rounds 16 bit wrongly
    if (why := kernels.why_not_triton(device, dtype)) is not None:
        sys.exit(f"bench/tiles.py: {why}")
    crashed = compile_beforehand() if on_gpu else {}
    name = str(dtype).removeprefix("torch.")
    record = Record("tiles.py", device, args.json, dtype=name, rows=[])
    for shape in shapes(on_gpu):
        for direction in CHOICES:
            where = f"{shape.name}, P {shape.prefix}, {direction}"
            with record.part(where):
                for row in tried(shape, device, dtype, direction, args.samples, crashed):
                    record["rows"].append(row)
                    record.save()
                    if "failed" in row:
                        record.fail(f"{where}, {row['choice']}", row["failed"])
    record.finish(show)


if __name__ == "__main__":
    main()
