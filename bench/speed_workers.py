"""A process for each method that is timed, as each has when people train with it.

    with Worker(args, "gpt2", "prefix") as worker:
        seconds = worker.run([[0, 1], [2, 3]])      # two steps, of two examples each
        row = worker.report([2, 3], [seconds])

In one process the methods would share the C library's memory, which one of them can leave in pieces
for the others, or set up better for them than their users have it.
"""

import contextlib
import dataclasses
import multiprocessing
import statistics
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch
from e2e_lengths import examples
from phases import shares
from speed_methods import OURS, POSTER_STEPS, Args, make_method
from timing import timed

from mingpt_prefix.accel.environment import keep_freed_memory, peak_memory
from mingpt_prefix.checkpoints.pretrained import choose_device
from mingpt_prefix.config import MODELS

_PATIENCE_S = 30  # with a process that is to end


class Worker:
    """One method in a process of its own; the examples of its batches are known by number."""

    def __init__(self, args: Args, model: str, name: str) -> None:
        self.name = name
        self.pipe, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self.process = context.Process(target=_serve, args=(theirs, args, model, name), daemon=True)
        self.process.start()
        theirs.close()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *exc: object) -> None:
        self.pipe.close()  # which ends the process
        self.process.join(_PATIENCE_S)
        self.process.kill()

    def run(self, batches: Sequence[Sequence[int]]) -> float:
        """Seconds of a step a batch."""
        return self._ask("run", batches)

    def report(self, batch: Sequence[int], seconds: Sequence[float]) -> dict:
        """What else is told of the method, whose steps took `seconds`; where the time of a step of
        `batch` goes is from a pass of its own."""
        told = self._ask("report", batch)
        minutes = POSTER_STEPS * statistics.median(seconds) / 60
        return {"method": self.name, "seconds": list(seconds), "poster_minutes": minutes, **told}

    def _ask(self, what: str, of: Sequence) -> Any:
        try:
            self.pipe.send((what, of))
            return self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(_PATIENCE_S)
            code = self.process.exitcode
            raise SystemExit(f"{self.name}: its process ended, with exit code {code}") from None


def _serve(pipe: Connection, args: Args, model: str, name: str) -> None:
    device = choose_device(args.device)
    if device.type == "cpu" and (name in OURS or args.peers_keep_memory):
        keep_freed_memory()
    data = examples(MODELS[model].vocab_size)
    method = make_method(args, model, name, data)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()  # a peer is built out of a model of ours

    def seconds(chosen: Sequence[Sequence[int]]) -> float:
        batches = [[data[i] for i in batch] for batch in chosen]
        return timed(lambda: method.run(batches))

    def report(chosen: Sequence[int]) -> dict:
        graphs, peak = method.captured, peak_memory(device)
        eager = method if graphs is None else make_method(args, model, name, data, graphs=False)
        return {
            "graphs": None if graphs is None else dataclasses.asdict(graphs),
            "shares": shares(lambda: eager.run([[data[i] for i in chosen]])),
            "optimizer_bytes": method.state_bytes(),
            "peak_memory": peak,
        }

    answers = {"run": seconds, "report": report}
    with contextlib.suppress(EOFError, OSError):  # the parent is done, or gone
        while True:
            what, of = pipe.recv()
            pipe.send(answers[what](of))
