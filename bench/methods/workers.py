"""A process for each method that is timed, as each has when people train with it.

    with Worker(args, "gpt2", "prefix") as worker:
        seconds = worker.ask("run", [[0, 1], [2, 3]])   # two steps, of two examples each
        told = worker.ask("report", [2, 3])

In one process the methods would share the C library's memory, which one of them can leave in pieces
for the others, or set up better for them than their users have it.
"""

import contextlib
import dataclasses
import functools
import gc
import multiprocessing
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch
from measure.e2e_lengths import examples
from measure.phases import shares
from measure.timing import timed

from methods.training import COMPILED, OURS, Args, Method, losses, make_method
from mingpt_prefix.accel.environment import keep_freed_memory, peak_memory
from mingpt_prefix.checkpoints.pretrained import choose_device
from mingpt_prefix.config import MODELS

_PATIENCE_S = 5  # with a process that is to end


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

    def ask(self, what: str, of: Sequence, patience: float | None = None) -> Any:
        """
        run: seconds of a step for each of the batches `of`, in which examples are known by number.
        losses: of two steps on the batch `of`, by a method of its own, without dropout.
        report: what else is told of the method; its shares are those of another step, on `of`.

        Raises RuntimeError where the method fails, and if it takes more than `patience` seconds.
        """
        try:
            self.pipe.send((what, of))
            if not self.pipe.poll(patience):
                raise RuntimeError(f"no answer within {patience:.0f} s")
            answer = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(_PATIENCE_S)
            code = self.process.exitcode
            raise RuntimeError(f"its process ended, with exit code {code}") from None
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return answer


def forget_peaks() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _serve(pipe: Connection, args: Args, model: str, name: str) -> None:
    device = choose_device(args.device)
    if device.type == "cpu" and (name in OURS or args.peers_keep_memory):
        keep_freed_memory()
    data, on_gpu = examples(MODELS[model].vocab_size), device.type == "cuda"

    @functools.cache
    def method() -> Method:
        made = make_method(args, model, name, data)
        forget_peaks()  # a peer is built out of a model of ours
        return made

    def losses_of(chosen: Sequence[int]) -> list[float]:
        found = losses(args, model, name, [data[i] for i in chosen])
        forget_peaks()
        return found

    def seconds(chosen: Sequence[Sequence[int]]) -> float:
        batches = [[data[i] for i in batch] for batch in chosen]
        run = method().run
        return timed(lambda: run(batches))

    def report(chosen: Sequence[int]) -> dict:
        graphs, batch = method().captured, [data[i] for i in chosen]
        told = {
            "graphs": None if graphs is None else dataclasses.asdict(graphs),
            "optimizer_bytes": method().state_bytes(),
            "peak_memory": peak_memory(device),
            "reserved_memory": torch.cuda.max_memory_reserved() if on_gpu else None,
        }
        # No phase of a graph can be told from another.
        is_whole = graphs is not None or name == COMPILED
        return {**told, "shares": None if is_whole else shares(lambda: method().run([batch]))}

    answers = {
        "run": seconds,
        "report": report,
        "losses": losses_of,
    }
    if on_gpu:
        with contextlib.suppress(Exception):  # which the first question tells
            method()  # while other processes make theirs
    with contextlib.suppress(EOFError, OSError):  # the parent is done, or gone
        while True:
            what, of = pipe.recv()
            try:
                pipe.send(answers[what](of))
            except Exception as error:
                traceback.print_exc()
                pipe.send(f"{type(error).__name__}: {error}")
