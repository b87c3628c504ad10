"""A training step of prefix-tuning against one of full fine-tuning, ours and, where they are
installed (the `peers` extra), PEFT's and transformers', on the same batches in the same run.

python bench/speed.py                             # GPT-2 small; on a GPU medium too
python bench/speed.py --dtype bf16 --json bench/results/speed.json --picture speed.png

Random weights serve for timing; the lengths are those of real E2E examples. Each method has a
process, and they take turns round after round, so that a slow moment of the machine hits all of
them: a round is a step, on a GPU several, of which none waits for the one before. On a GPU ours are
timed as CUDA graphs and eagerly, and after all else transformers' fine-tuning of the first model is
compiled. Losses are compared first. A method that fails is recorded, and the others are timed.
"""

import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import tyro
from measure.arithmetic import matmul_rate, step_flops
from measure.e2e_lengths import examples
from measure.record import Record
from methods.training import (
    COMPILED,
    EAGER,
    PEERS,
    POSTER_STEPS,
    TOLERANCE,
    Args,
    configure,
    losses,
    methods,
    mode_of,
)
from methods.workers import Worker
from reports.speed import speed_table

from mingpt_prefix.batch import batches
from mingpt_prefix.checkpoints.pretrained import DTYPES, choose_device
from mingpt_prefix.config import MODELS

WARM_UP = 2  # rounds that do not count
COMPILES_S = 100  # for which the compiled method is waited for


class Shape:
    """One model: what its methods are given, and what is found, which is a part of `record`."""

    def __init__(self, args: Args, model: str, record: Record) -> None:
        self.args, self.model, self.record = args, model, record
        device, config = choose_device(args.device), configure(args, model, "prefix")
        self.on_gpu = device.type == "cuda"
        self.data = examples(MODELS[model].vocab_size)
        order = batches(len(self.data), args.batch_size, seed=0)
        self.steps = args.steps or (20 if self.on_gpu else 1)
        n_rounds = WARM_UP + (3 if args.quick else args.rounds)
        self.rounds = [[next(order) for _ in range(self.steps)] for _ in range(n_rounds)]
        self.found = {
            "model": model,
            "dtype": config.dtype,
            "attention": config.attention,
            "batch_size": args.batch_size,
            "prefix_length": args.prefix_length,
            "peers_keep_memory": None if self.on_gpu else args.peers_keep_memory,
            "matmul_flops_per_second": matmul_rate(device, DTYPES[config.dtype]),
            "checks": [],
            "rows": [],
        }
        record["shapes"].append(self.found)
        if self.on_gpu:
            torch.cuda.empty_cache()  # of what the rate needed

    def measure(self, names: Sequence[str]) -> None:
        """The losses of these methods, and a row for each."""
        if self.on_gpu:
            self.time(names, checks=True)
            return
        # Not by the processes that are timed: it would count in their peak memory.
        batch, found = [self.data[i] for i in self.rounds[0][0]], {}
        for name in names:
            with self.record.part(f"{self.model}, {name}"):
                found[name] = losses(self.args, self.model, name, batch)
        self.compare(found)
        self.time(found)

    def compare(self, found: dict[str, list[float]]) -> None:
        """Losses of equal steps: of eager ones with replayed ones, and of peers' with ours."""
        for name, theirs in found.items():
            ours = "prefix" if mode_of(name) == "prefix" else "fine-tuning"
            if name == ours or ours not in found:
                continue
            # Others add up in another order, which a step of AdamW makes more of.
            count = 2 if name in EAGER else 1
            pairs = zip(theirs[:count], found[ours][:count], strict=True)
            passed = all(abs(a - b) < TOLERANCE[self.found["dtype"]] for a, b in pairs)
            check = {"method": name, "losses": theirs, "ours": found[ours], "passed": passed}
            self.found["checks"].append(check)
            if not passed:
                self.record.fail(f"{self.model}, losses of {name}", f"{theirs}, not {found[ours]}")
        self.record.save()

    def time(
        self, names: Iterable[str], checks: bool = False, patience: float | None = None
    ) -> None:
        """A row for each of these methods, which take turns."""
        with self.workers(names) as workers:
            rows = {name: {"method": name, "seconds": []} for name in workers}
            if checks:
                self.compare(dict(self.ask(workers, "losses", self.rounds[0][0])))
            every, warm = [batch for round_ in self.rounds for batch in round_], {}
            if self.on_gpu:  # each shape once
                warm = dict(self.ask(workers, "run", every, patience))
            for number, round_ in enumerate(self.rounds):
                for name, seconds in self.ask(workers, "run", round_):
                    if number >= WARM_UP:
                        rows[name]["seconds"].append(seconds / self.steps)
                        self.put(rows[name])
            for name, told in self.ask(workers, "report", self.rounds[-1][-1]):
                rows[name] |= told
                if name == COMPILED:
                    steps = len(every) * statistics.median(rows[name]["seconds"])
                    rows[name]["compile_seconds"] = warm.get(name, steps) - steps
                self.put(rows[name])

    @contextmanager
    def workers(self, names: Iterable[str]) -> Iterator[dict[str, Worker]]:
        with ExitStack() as stack:
            made = (Worker(self.args, self.model, name) for name in names)
            yield {worker.name: stack.enter_context(worker) for worker in made}

    def ask(
        self, workers: dict[str, Worker], what: str, of: Sequence, patience: float | None = None
    ) -> Iterator[tuple[str, Any]]:
        """Answers by method; one that fails is recorded, and asked no more."""
        for name, worker in list(workers.items()):
            try:
                answer = worker.ask(what, of, patience)
            except RuntimeError as error:
                workers.pop(name).process.kill()
                self.record.fail(f"{self.model}, {name}", str(error))
            else:
                yield name, answer

    def put(self, row: dict) -> None:
        """Record a row, with what follows from the seconds it has so far."""
        rounds = self.rounds[WARM_UP:][: len(row["seconds"])]
        counted = [[self.data[i] for i in batch] for round_ in rounds for batch in round_]
        mode, rows = mode_of(row["method"]), self.args.prefix_length
        flops = sum(step_flops(MODELS[self.model], batch, mode, rows) for batch in counted)
        spent = sum(row["seconds"]) * self.steps
        row["poster_minutes"] = POSTER_STEPS * statistics.median(row["seconds"]) / 60
        row["flops"] = flops / len(counted)
        row["tokens_per_second"] = sum(len(e.ids) for batch in counted for e in batch) / spent
        row["utilisation"] = flops / spent / self.found["matmul_flops_per_second"]
        if row not in self.found["rows"]:
            self.found["rows"].append(row)
        self.record.save()


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    device = choose_device(args.device)
    on_gpu, shapes = device.type == "cuda", []
    record = Record("speed.py", device, args.json, shapes=[])
    for model in args.model or (("gpt2", "gpt2-medium") if on_gpu else ("gpt2",)):
        with record.part(model):
            names = methods(args, model)
            if not set(PEERS) & set(names):
                print("Without the peers: pip install -e '.[peers]'", file=sys.stderr)
            shapes.append(Shape(args, model, record))
            shapes[-1].measure(names)
    if on_gpu and shapes and PEERS[1] in names:
        with record.part(COMPILED):
            shapes[0].time([COMPILED], patience=COMPILES_S)
    if args.picture is not None:
        with record.part("the picture"):
            from reports.pictures import speed_chart

            speed_chart(record, args.picture)
    record.finish(speed_table)


if __name__ == "__main__":
    main()
