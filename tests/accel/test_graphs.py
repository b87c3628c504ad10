"""Steps padded to buckets and taken whole: as graphs on a GPU, and eagerly here."""

import json
import math
import signal
import statistics
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE

import pytest
import torch
from processes import finish, logged, start_training
from small_runs import (
    BOTH,
    DIRECT,
    FINETUNE,
    PREFIX,
    SHAPE,
    examples,
    learned,
    losses,
    make,
)

from mingpt_prefix.accel import cuda_graphs
from mingpt_prefix.accel.buckets import Bucket, round_up
from mingpt_prefix.accel.cuda_graphs import LAG, GraphedStep, capture, prefetch, why_not_graphs
from mingpt_prefix.accel.distributed import ALONE, World
from mingpt_prefix.batch import Encoded, Layout, PackedBatch, PrefixKV, batches, pack
from mingpt_prefix.checkpoints.checkpoint import load_newest, save_checkpoint
from mingpt_prefix.checkpoints.resuming import restore, run_state
from mingpt_prefix.config import ModelConfig, TrainConfig
from mingpt_prefix.data.datasets import e2e_available, load_split
from mingpt_prefix.data.encoding import encode_example
from mingpt_prefix.data.tokenizer import load_tokenizer
from mingpt_prefix.errors import TrainingError
from mingpt_prefix.evaluation import training_run as training
from mingpt_prefix.evaluation.training_run import make_trainer
from mingpt_prefix.loss import IGNORE_INDEX
from mingpt_prefix.model import GPT2
from mingpt_prefix.step import EagerStep, PendingStep, SummedLoss
from mingpt_prefix.trainer import Trainer

HAS_GPU = torch.cuda.is_available()
CONFIGS = pytest.mark.parametrize(
    "config",
    [PREFIX, DIRECT, BOTH, FINETUNE],
    ids=["prefix", "direct", "prefix+lora", "finetune"],
)


@pytest.fixture
def graphed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainers take whole padded steps, which a GPU would have as graphs."""
    monkeypatch.setattr(training, "why_not_graphs", lambda *_: None)


def plain(
    monkeypatch: pytest.MonkeyPatch, config: TrainConfig, dtype: torch.dtype = torch.float32
) -> Trainer:
    with monkeypatch.context() as context:
        context.setattr(training, "why_not_graphs", lambda *_: "they are not wanted")
        return make(config, dtype=dtype)


# Buckets


def test_sizes_are_few_and_near() -> None:
    for n in range(5000):
        assert n <= round_up(n) < max(1.25 * n, n + 8) + 1
        assert round_up(round_up(n)) == round_up(n)
    assert len({round_up(n) for n in range(513, 1025)}) == 4
    assert [round_up(n) for n in (0, 1, 535, 512, 640, 641)] == [8, 8, 640, 512, 640, 768]


def bucket_for(batch: PackedBatch, n_seqs: int = 8) -> Bucket:
    return Bucket.of(batch, n_seqs, max_seq_len=40)


def test_a_row_of_numbers_and_back() -> None:
    batch = pack(examples(5), 4, "infix")
    bucket = bucket_for(batch)
    found, lr, weight = bucket.unflatten(bucket.flatten(batch, 3e-4, 1 / 7))
    assert (float(lr), float(weight)) == pytest.approx((3e-4, 1 / 7))
    assert len(found.tokens) == bucket.n_tokens >= len(batch.tokens)
    assert found.layout.max_seq_len == 40 and len(found.layout.prefix_ids) == 8
    for name in ("tokens", "positions", "target_index", "target_tokens"):
        own = getattr(batch, name)
        assert torch.equal(getattr(found, name)[: len(own)], own)
    assert torch.equal(found.layout.cu_seqlens[:6], batch.layout.cu_seqlens)
    assert set(found.layout.cu_seqlens[6:].tolist()) == {len(batch.tokens)}
    assert found.layout.prefix_ids.tolist() == [0] * 5 + [-1] * 3
    assert set(found.target_tokens[batch.n_targets :].tolist()) == {IGNORE_INDEX}


def test_what_does_not_fit_is_refused() -> None:
    small, large = pack(examples(2)), pack(examples(8))
    with pytest.raises(ValueError, match="^batch: .* do not fit"):
        bucket_for(small, 2).flatten(large, 0.0, 0.0)
    with pytest.raises(ValueError, match="do not fit"):
        replace(bucket_for(small), max_seq_len=3).flatten(small, 0.0, 0.0)


@pytest.mark.parametrize("placement", ["prefix", "infix", None])
@pytest.mark.parametrize("count", [1, 5, 8])
def test_padding_changes_neither_loss_nor_gradients(placement: str | None, count: int) -> None:
    model = GPT2(SHAPE).initialize(1).double()
    loss_of, results = SummedLoss(model, autocasts=False), []
    rows = torch.randn(2, 2, 3, 2, 8, generator=torch.Generator().manual_seed(0)).double()
    batch = pack(examples(count), 3 if placement else None, placement or "prefix")
    bucket = bucket_for(batch)
    for each in (batch, bucket.unflatten(bucket.flatten(batch, 0.0, 0.0))[0]):
        kv = rows.clone().requires_grad_()
        prefix = PrefixKV.from_tensor(kv) if placement else None
        loss = loss_of(each, prefix)
        wanted = [*model.parameters(), *([kv] if placement else [])]
        results.append((loss, *torch.autograd.grad(loss, wanted)))
    assert bucket.n_tokens > len(batch.tokens) or count == 8
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def lengths_at_hand() -> list[tuple[int, int]]:
    """(context, targets) of a thousand of E2E's examples."""
    path = Path(__file__).parents[2] / "bench" / "measure" / "e2e_lengths.json"
    return json.loads(path.read_text())["lengths"]


def lengths_of_e2e() -> list[tuple[int, int]]:
    if not e2e_available():
        pytest.skip("the cache folder does not hold e2e-dataset.zip")
    tokenizer = load_tokenizer("gpt2")
    encoded = [encode_example(tokenizer, e) for e in load_split(["e2e"], "train")]
    return [(e.prompt_length, e.n_targets) for e in encoded]


def engine_for(lengths: list[tuple[int, int]]) -> GraphedStep:
    """Of a run on examples of these lengths; needs the fixture `graphed`."""
    data = [Encoded(torch.zeros(context + n, dtype=int), context) for context, n in lengths]
    model = GPT2(replace(SHAPE, n_positions=1024))
    config = replace(PREFIX, batch_size=10, micro_batch_size=10)
    return make_trainer(config, model, data, []).stepper


def buckets_of(engine: GraphedStep, lengths: list[tuple[int, int]], count: int) -> list[Bucket]:
    """Of a run's first `count` batches, of which a bucket sees sizes alone."""
    order, found, none = batches(len(lengths), 10, seed=0), [], torch.empty(0)
    for _ in range(count):
        chosen = [lengths[i] for i in next(order)]
        tokens, targets = (
            torch.empty(n) for n in (sum(map(sum, chosen)), sum(n for _, n in chosen))
        )
        layout = Layout(none, none, none, max(map(sum, chosen)))
        found.append(engine.bucket_of(PackedBatch(tokens, tokens, layout, targets, targets)))
    return found


@pytest.mark.parametrize("lengths", [lengths_at_hand, lengths_of_e2e])
def test_a_run_on_e2e_needs_few_buckets(lengths, graphed) -> None:
    lengths = lengths()
    found = buckets_of(engine_for(lengths), lengths, 20_000)
    assert 2 <= len(set(found)) <= 8
    usual = 10 * statistics.fmean(map(sum, lengths))
    assert sum(b.n_tokens for b in found) < 1.15 * 20_000 * usual


def test_one_long_example_changes_the_graphs_of_its_own_batches_alone(graphed) -> None:
    blocks = pytest.importorskip("mingpt_prefix.kernels.blocks")
    lengths = lengths_at_hand()
    usual = buckets_of(engine_for(lengths), lengths, 100)
    others = buckets_of(engine_for([*lengths, (300, 300)]), lengths, 100)
    (long,) = buckets_of(engine_for([*lengths, (300, 300)]), [*lengths[:9], (300, 300)], 1)
    qkv, rows = torch.empty(640, 3, 12, 64).bfloat16(), torch.empty(2, 5, 12, 64)

    def launches(bucket: Bucket) -> list[tuple]:
        """Block sizes, and how many blocks of them a grid has for the longest sequence."""
        longest = bucket.max_seq_len
        tiles = [blocks.choose_tiles(qkv, rows, longest, forward=way) for way in (True, False)]
        return [(each, -(-longest // each.M)) for each in tiles]

    assert [launches(b) for b in others] == [launches(b) for b in usual]
    assert long.max_seq_len == 600 and launches(long) != launches(usual[0])
    assert {b.max_seq_len for b in usual} == {max(map(sum, lengths))}


# Steps


@CONFIGS
def test_whole_padded_steps_give_the_losses_of_plain_ones(config, graphed, monkeypatch) -> None:
    config = replace(config, dropout=0.0, lora_dropout=0.0, clip=0.3)  # clipped, in most steps
    # In float32 such a rate makes much of sums that padding adds up in another order.
    ours, theirs = make(config, dtype=torch.float64), plain(monkeypatch, config, torch.float64)
    for trainer in (ours, theirs):
        trainer.trainable.double()
    assert isinstance(ours.stepper, GraphedStep) and isinstance(theirs.stepper, EagerStep)
    assert losses(ours) == pytest.approx(losses(theirs), abs=1e-5)
    assert ours.best_loss == pytest.approx(theirs.best_loss, abs=1e-5)


def test_losses_arrive_late_and_in_order_and_can_be_waited_for(graphed, monkeypatch) -> None:
    trainer = make(replace(PREFIX, epochs=10, evals=1))  # 40 steps
    seen, saved = [], []
    read, begin = [], PendingStep.read
    monkeypatch.setattr(PendingStep, "read", lambda self: read.append(self) or begin(self))
    for progress in trainer.steps():
        seen.append(progress)
        assert trainer.step == progress.step == len(seen)
        if progress.step in (7, 20):
            assert len(read) == progress.step - LAG
            trainer.synchronize()
            saved.append(progress.step)
            assert len(read) == progress.step
    assert len(read) == trainer.step == 40 and saved == [7, 20]
    assert read == [progress.pending for progress in seen]


@CONFIGS
def test_a_run_cut_goes_on_to_the_same_bytes(config, graphed, tmp_path: Path) -> None:
    config = replace(config, evals=1)
    whole, first, second = (make(config) for _ in range(3))
    expected, seen = losses(whole), []
    for progress in first.steps():
        seen.append(progress.loss)
        if len(seen) == 5:
            break
    first.synchronize()
    save_checkpoint(tmp_path, first.step, *run_state(first))
    restore(second, load_newest(tmp_path))
    assert second.step == len(seen) == 5
    assert seen + losses(second) == expected and learned(second) == learned(whole)


def test_a_step_that_is_not_finite_moves_nothing_and_none_after_it_does(
    graphed, monkeypatch
) -> None:
    config = replace(PREFIX, epochs=5, evals=1)
    good, trainer = make(config), make(config)
    for progress in good.steps():
        if progress.step == 5:
            break
    good.synchronize()
    prepare, asked = GraphedStep.prepare, []

    def spoil(self, batch, lr):
        work = prepare(self, batch, lr)
        asked.append(lr)
        if len(asked) == good.step + 1:
            work.row[-1] = torch.tensor([lr, math.nan]).view(torch.int64)
        return work

    monkeypatch.setattr(GraphedStep, "prepare", spoil)
    seen = []
    with pytest.raises(TrainingError, match=f"step {good.step + 1}: the loss is nan"):
        seen.extend(trainer.steps())
    assert len(asked) > good.step + 1  # some were begun after it
    assert trainer.step == good.step
    for name, tensor in run_state(good)[0].items():
        assert torch.equal(run_state(trainer)[0][name], tensor), name


def test_warming_up_moves_nothing(graphed) -> None:
    trainer = make(FINETUNE)
    before, engine = learned(trainer), trainer.stepper
    engine.bad.fill_(1.0)
    work = engine.prepare(trainer.train_set[:6], 0.1)
    for _ in range(3):
        engine._step(work.bucket, work.row)
    assert learned(trainer) == before
    assert all(not slot.any() for s in engine.optimizer.state.values() for slot in s.values())
    assert all(p.grad is None for p in trainer.trainable.parameters())


def test_where_graphs_can_be() -> None:
    config = replace(PREFIX, device="cuda", attention="triton")
    assert why_not_graphs(config, ALONE) is None
    assert "GPU" in why_not_graphs(replace(config, device="cpu"), ALONE)
    assert "processes" in why_not_graphs(config, World(0, 2))
    for other in (
        dict(attention="reference"),
        dict(micro_batch_size=2),
        dict(grad_checkpoint=True),
        dict(depth="embedding"),
    ):
        assert why_not_graphs(replace(config, **other), ALONE)
    assert isinstance(make(PREFIX).stepper, EagerStep)


class FakeStream:
    made = 0

    def __init__(self) -> None:
        FakeStream.made += 1

    def wait_stream(self, other: object) -> None:
        pass


def test_all_warm_ups_and_captures_share_one_stream(monkeypatch) -> None:
    """With a CUDA that notes which stream is the current one."""
    main, current, seen = FakeStream(), [], []

    @contextmanager
    def on(stream: object) -> Iterator[None]:
        current.append(stream)
        yield
        current.pop()

    fakes = {
        "Stream": FakeStream,
        "stream": on,
        "current_stream": lambda: main,
        "CUDAGraph": object,
        "graph": lambda graph, pool, stream, capture_error_mode: on(stream),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    cuda_graphs._side_stream.cache_clear()
    try:
        for _ in range(3):
            capture(lambda: seen.append(current[-1]), warm_up=2)
    finally:
        cuda_graphs._side_stream.cache_clear()
    assert len(seen) == 9 and len(set(map(id, seen))) == 1 and seen[0] is not main
    assert FakeStream.made == 2 and not current


# The worker


def test_ahead_keeps_the_order_and_is_another_thread() -> None:
    made = []

    def make_one(x: int) -> tuple[int, int]:
        made.append(x)
        return x, threading.get_ident()

    results = prefetch(make_one, range(20), depth=3)
    first = next(results)
    assert first[0] == 0 and first[1] != threading.get_ident()
    assert len(made) <= 4
    assert [x for x, _ in results] == list(range(1, 20))
    broken = prefetch(lambda x: 1 // x, [1, 0, 1])
    assert next(broken) == 1
    with pytest.raises(ZeroDivisionError):
        next(broken)


# On a GPU

GPU_SHAPE = ModelConfig(2, 2, 128, vocab_size=512, n_positions=64, eos_token_id=49)
GPU = replace(PREFIX, device="cuda", attention="triton", dtype="bf16", mid_dim=64, evals=1)


def make_on_gpu(config: TrainConfig, data: Sequence[Encoded] | None = None) -> Trainer:
    model = GPT2(GPU_SHAPE, "triton").initialize(1).to("cuda")
    if config.mode == "prefix" and config.dtype == "bf16":
        model = model.bfloat16()
    return make_trainer(config, model, examples(200) if data is None else data, [])


def on_gpu(test):
    return pytest.mark.gpu(pytest.mark.skipif(not HAS_GPU, reason="there is no GPU")(test))


GPU_CONFIGS = pytest.mark.parametrize(
    "config",
    [replace(GPU, **given, dtype=dtype, lr=1e-3) for dtype in ("fp32", "bf16") for given in (
        {}, dict(mode="finetune", prefix_length=0), dict(mode="finetune", prefix_length=0,
                                                         dropout=0.1),
        dict(mode="prefix+lora", lora_rank=2, lora_alpha=4.0, lora_targets=("attn.c_attn",)))],
    ids=lambda config: f"{config.mode}-{config.dtype}-{config.dropout}",
)  # fmt: skip


@on_gpu
@GPU_CONFIGS
def test_replays_give_the_losses_of_eager_steps(config: TrainConfig) -> None:
    graphs, eager = make_on_gpu(config), make_on_gpu(config)
    assert isinstance(graphs.stepper, GraphedStep)
    eager.stepper = EagerStep(eager.gradients, config)
    ours, theirs = losses(graphs), losses(eager)
    assert graphs.stepper.captured.count >= 1
    if config.dropout:  # padding moves the masks
        assert sum(ours) == pytest.approx(sum(theirs), rel=0.02)
    else:
        bound = 1e-3 if config.dtype == "fp32" else 5e-2
        assert ours == pytest.approx(theirs, abs=bound)


@on_gpu
def test_equal_runs_on_a_gpu_give_equal_bytes() -> None:
    first, second = make_on_gpu(GPU), make_on_gpu(GPU)
    assert losses(first) == losses(second) and learned(first) == learned(second)


@on_gpu
@pytest.mark.parametrize("mode", ["prefix", "finetune"])
def test_nothing_is_captured_compiled_or_allocated_after_a_while(mode: str) -> None:
    triton = pytest.importorskip("triton")
    config = replace(GPU, mode=mode, prefix_length=4 if mode == "prefix" else 0, max_steps=2200)
    # Of two lengths: a few buckets, all of them met within 200 steps.
    trainer, compiled, held = make_on_gpu(config, examples(2) * 99), [], {}
    runtime = triton.knobs.runtime
    before = runtime.jit_post_compile_hook
    runtime.jit_post_compile_hook = lambda **_: compiled.append(1)
    try:
        for progress in trainer.steps():
            if progress.step in (200, 2199):
                torch.cuda.synchronize()
                held[progress.step] = (
                    torch.cuda.memory_allocated(),
                    torch.cuda.memory_reserved(),
                    trainer.stepper.captured.count,
                    len(compiled),
                )
    finally:
        runtime.jit_post_compile_hook = before
    assert held[200] == held[2199]


@on_gpu
@pytest.mark.parametrize("mode", ["prefix", "finetune"])
def test_a_stopped_run_of_graphs_ends_at_the_bytes_of_a_whole_one(
    mode: str, small_model, small_data, tmp_path: Path
) -> None:
    flags = ["--mode", mode, "--model", str(small_model), "--data", str(small_data)]
    flags += ["--device", "cuda", "--attention", "triton", "--dtype", "bf16"]
    flags += ["--batch-size", "8", "--micro-batch-size", "8", "--optimizer", "adamw"]
    flags += ["--lr", "0.001", "--epochs", "100", "--evals", "2"]
    said = finish(start_training(1, *flags, "--out", str(tmp_path / "whole"), stdout=PIPE))
    assert "Each step is a CUDA graph." in said
    process = start_training(1, *flags, "--out", str(tmp_path / "cut"), stdout=PIPE)
    for line in process.stdout:
        if line.startswith("step "):
            break
    process.send_signal(signal.SIGTERM)
    assert "Stopped after step" in process.communicate(timeout=120)[0]
    finish(start_training(1, "--resume", str(tmp_path / "cut")))
    kept = "prefix.safetensors" if mode == "prefix" else "model/model.safetensors"
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert logged(whole) == logged(cut)
    assert (whole / kept).read_bytes() == (cut / kept).read_bytes()
