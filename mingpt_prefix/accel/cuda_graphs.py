"""Whole training steps as CUDA graphs: forward, backward and optimizer in a single launch.

    graphed = GraphedStep(gradients, config, train_set)
    for work in prefetch(lambda plan: graphed.prepare(*plan), plans):   # packed on a thread, pinned
        pending = graphed.begin(work, seed)
        ...
        loss, norm = pending.read()                                     # some steps later

Launching its 400 or so kernels bounds a small model's step; a graph replays them at once. Graphs
have fixed shapes, so there is one per `Bucket`, captured when it is first needed.

The host does not wait: losses are read when they have arrived. A step whose loss or gradient is not
finite moves nothing, and neither does any step after it: when the host learns of it, the weights
and the optimizer's state are those of the last good step. Warming up relies on the same: its steps
move nothing.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor, nn

from mingpt_prefix.accel.buckets import Bucket
from mingpt_prefix.accel.distributed import World
from mingpt_prefix.batch import Encoded, PackedBatch, pack
from mingpt_prefix.config import TrainConfig
from mingpt_prefix.optim import make_optimizers, set_learning_rate
from mingpt_prefix.step import In, Out, PendingStep, TrainStep

LAG = 4  # steps that are begun before the loss of an earlier one is read
_DEPTH = 4  # batches that are packed ahead
_WARM_UP = 2
_LEAST = 0.75  # of a usual batch's tokens, in the smallest bucket


def why_not_graphs(config: TrainConfig, world: World) -> str | None:
    """Why a run's steps cannot be captured, in words; None if they can."""
    reasons = (
        (config.device != "cuda", "they need a GPU"),
        (config.attention != "triton", "the reference attention reads numbers back"),
        (world.size > 1, "several processes exchange gradients"),
        (config.optimizer != "adamw", f"the optimizer is {config.optimizer}"),
        (config.micro_batch_size < config.batch_size, "there are several micro-batches a step"),
        (config.grad_checkpoint, "activations are computed again"),
        (config.depth != "all", "the rows are computed by the model"),
    )
    return next((why for holds, why in reasons if holds), None)


def prefetch(make: Callable[[In], Out], inputs: Iterable[In], depth: int = _DEPTH) -> Iterator[Out]:
    """make(x) for each of the inputs, in order, made by another thread some steps ahead."""
    with ThreadPoolExecutor(1) as thread:
        waiting = deque()
        for each in inputs:
            waiting.append(thread.submit(make, each))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@cache
def _side_stream() -> torch.cuda.Stream:
    return torch.cuda.Stream()


def capture(
    run: Callable[[], object], warm_up: int = _WARM_UP, pool: tuple[int, int] | None = None
) -> torch.cuda.CUDAGraph:
    """`run` as a CUDA graph, after `warm_up` runs that are not captured.

    All of it, in every capture, happens on one stream: cuBLAS keeps some 64 MiB of workspace for
    each stream that it meets, and the allocator keeps memory apart.
    """
    side = _side_stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(warm_up):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # Threads that pack batches may ask for pinned memory meanwhile.
    how = dict(pool=pool, stream=side, capture_error_mode="thread_local")
    with torch.cuda.graph(graph, **how):
        run()
    return graph


@dataclass(frozen=True)
class HostBatch:
    """A batch, ready to be copied to the device."""

    bucket: Bucket
    row: Tensor


@dataclass
class Captured:
    """How many graphs there are, and the seconds that warming up and capturing took."""

    count: int = 0
    seconds: float = 0.0


@dataclass(eq=False)
class GraphedStep:
    """A stepper by one fused AdamW, on batches of at most `config.batch_size` of the examples in
    `train_set`; without a GPU the same padded steps are taken eagerly."""

    gradients: TrainStep
    config: TrainConfig
    train_set: Sequence[Encoded]
    captured: Captured = field(default_factory=Captured)

    lag = LAG

    def __post_init__(self) -> None:
        self.trainable = self.gradients.trainable
        self.optimizers = make_optimizers(self.trainable, self.config)
        (self.optimizer,) = self.optimizers
        lengths = [len(e.ids) for e in self.train_set]
        self.max_seq_len = max(lengths)
        # What is left for an epoch's last batch is not worth a graph of its own.
        usual = self.config.batch_size * sum(lengths) / len(lengths)
        self.least_tokens = int(_LEAST * usual)
        self.device = self.gradients.model.device
        self.on_gpu = self.device.type == "cuda"
        self.lr, self.bad = torch.zeros(2, device=self.device)
        self.said = torch.zeros(2, device=self.device)
        self.forget()

    def forget(self) -> None:
        """Drop all graphs: they read tensors that have been replaced."""
        self.graphs: dict[Bucket, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self.pool = torch.cuda.graph_pool_handle() if self.on_gpu else None
        self.bad.zero_()

    def prepare(self, examples: Sequence[Encoded], lr: float) -> HostBatch:
        """Pack a batch and pad it to its bucket, in pinned memory; on any thread."""
        batch = pack(examples, self.gradients.rows, self.config.placement)
        bucket = self.bucket_of(batch)
        row = bucket.flatten(batch, lr, 1 / batch.n_targets)
        return HostBatch(bucket, row.pin_memory() if self.on_gpu else row)

    def prefetch(self, make: Callable[[In], Out], inputs: Iterable[In]) -> Iterator[Out]:
        return prefetch(make, inputs)

    def bucket_of(self, batch: PackedBatch) -> Bucket:
        return Bucket.of(batch, self.config.batch_size, self.max_seq_len, self.least_tokens)

    def begin(self, work: HostBatch, seed: int) -> PendingStep:
        """Take a step, with dropout drawn by `seed`; on a GPU it is only begun."""
        if not self.on_gpu:
            self._train_mode()
            torch.manual_seed(seed)
            self._step(work.bucket, work.row)
            return PendingStep(self.said.clone())
        if work.bucket not in self.graphs:
            self.graphs[work.bucket] = self._capture(work)
        graph, row = self.graphs[work.bucket]
        row.copy_(work.row, non_blocking=True)
        torch.manual_seed(seed)
        graph.replay()
        said = torch.empty(2, pin_memory=True)
        said.copy_(self.said, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        return PendingStep(said, arrived)

    def _train_mode(self) -> None:
        self.gradients.model.train()
        self.trainable.train()

    def _step(self, bucket: Bucket, row: Tensor) -> None:
        """What a graph holds: nothing in it waits for the device, or asks what is in a tensor."""
        batch, lr, weight = bucket.unflatten(row)
        self.lr.copy_(lr)
        optimizer = self.optimizer
        optimizer.zero_grad(set_to_none=True)
        loss = self.gradients.add_gradients([(batch, weight)], 1)
        found = [p.grad for p in self.trainable.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(found)
        torch.maximum(self.bad, (~torch.isfinite(loss + norm)).float(), out=self.bad)
        # Both as a gradient scaler sets them: gradients are divided by the one where they are used,
        # which clips them without another pass, and nothing moves where the other is 1.
        # The optimizer reads both as float32, whatever the weights are.
        optimizer.grad_scale = ((norm + 1e-6) / self.config.clip).clamp(min=1.0).float()
        optimizer.found_inf = self.bad
        set_learning_rate(optimizer, self.lr)
        for group in optimizer.param_groups:
            group["capturable"] = self.on_gpu and torch.cuda.is_current_stream_capturing()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.said.copy_(torch.stack([loss, norm]))

    def _capture(self, work: HostBatch) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """The graph of a bucket, and the row that it reads; changes nothing that is trained."""
        torch.cuda.synchronize()
        started, bad = time.perf_counter(), self.bad.clone()
        self._train_mode()
        row = work.row.to(self.device)
        self.bad.fill_(1.0)
        graph = capture(lambda: self._step(work.bucket, row), pool=self.pool)
        self.bad.copy_(bad)
        torch.cuda.synchronize()
        self.captured.count += 1
        self.captured.seconds += time.perf_counter() - started
        return graph, row
