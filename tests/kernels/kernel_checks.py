"""The Triton kernels against the reference, on a GPU or under Triton's interpreter on the CPU.

The interpreter is chosen by TRITON_INTERPRET=1 before the kernels are imported, so these checks are
collected by name only: test_kernels.py runs them in a process of their own. Uninitialized memory is
NaN here, so that what a kernel does not write is seen.
"""

import importlib
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from conftest import SMALL
from test_reference import CASES, Case, offsets
from torch import Tensor

from mingpt_prefix import kernels
from mingpt_prefix.batch import Encoded, PrefixKV
from mingpt_prefix.config import TrainConfig
from mingpt_prefix.evaluation import training_run as training
from mingpt_prefix.evaluation.training_run import make_trainer
from mingpt_prefix.generation.decoding import generate
from mingpt_prefix.kernels import decode, reference
from mingpt_prefix.model import GPT2

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NAMES = ("out", "dq", "dk", "dv", "d_prefix")
MIXED = Case(
    lengths=[113, 1, 0, 63, 17],
    prefixes=[5, 37, 0, 1],
    ids=[1, 0, 1, 2, 3],
    froms=[0, 0, 0, 3, 9],
    tail=5,
)
INFIX = Case([63, 113, 17, 17], [37, 5, 4], [0, 0, 1, -1], [40, 70, 20, 0])


@pytest.fixture(autouse=True)
def bfloat16_is_rounded(monkeypatch) -> None:
    """To nearest, as a GPU does: Triton 3.9's interpreter cuts the bits off."""
    if DEVICE == "cuda":
        return
    interpreter = importlib.import_module("triton.runtime.interpreter")
    builder, bfloat16 = interpreter.InterpreterBuilder, interpreter.tl.bfloat16
    cast = builder.cast_impl

    def round_and_cast(self, source, target):
        if target.scalar == bfloat16 and source.data.dtype == "float32":
            rounded = torch.from_numpy(source.data.copy()).bfloat16().float().numpy()
            source = interpreter.TensorHandle(rounded, source.dtype)
        return cast(self, source, target)

    monkeypatch.setattr(builder, "cast_impl", round_and_cast)


@pytest.fixture(autouse=True)
def nan_in_new_memory() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(9).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


def on_device(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    *tensors, max_seq_len = case.arguments()
    return *(t.to(DEVICE) for t in tensors), max_seq_len


def inputs(case: Case, dtype: torch.dtype, head_dim: int) -> tuple[Tensor, Tensor]:
    return tuple(x.detach().to(DEVICE).requires_grad_() for x in case.inputs(dtype, head_dim))


def d_output(out: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(out.shape, generator=generator).to(out.device, out.dtype)


def values_and_gradients(
    backend: str, qkv: Tensor, kv: Tensor, case: Case
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Output, dq, dk, dv, d prefix."""
    out = kernels.prefix_attention(qkv, kv, *on_device(case), backend=backend)
    d_qkv, d_kv = torch.autograd.grad(out, (qkv, kv), d_output(out).to(out.dtype))
    return out.detach(), *d_qkv.unbind(1), d_kv


def check(case: Case, dtype: torch.dtype, head_dim: int, kv_dtype: torch.dtype | None = None):
    """Errors against float64 at most twice those of PyTorch in the same dtype, and a little."""
    low = inputs(case, dtype, head_dim)
    low = low[0], low[1].detach().to(kv_dtype or dtype).requires_grad_()
    exact = values_and_gradients(
        "reference", *(x.detach().double().requires_grad_() for x in low), case
    )
    found = values_and_gradients("triton", *low, case)
    torchs = values_and_gradients("reference", *low, case)
    little = 1e-5 if dtype == torch.float32 else 1e-3
    for name, ours, theirs, wanted in zip(NAMES, found, torchs, exact, strict=True):
        assert ours.shape == wanted.shape and ours.dtype == theirs.dtype, name
        if wanted.numel():
            error = (ours.double() - wanted).abs().max()
            allowed = 2 * (theirs.double() - wanted).abs().max() + little
            assert error <= allowed, f"{name}: {error:.2e}, allowed {allowed:.2e}"
    for rows in found[:4]:
        assert not rows[sum(case.lengths) :].any()
    for number, start in enumerate(offsets(case.prefixes)[:-1].tolist()):
        if number not in case.ids:
            assert not found[4][:, start : start + case.prefixes[number]].any()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_layout(case: Case) -> None:
    check(case, torch.float32, 3)


@pytest.mark.parametrize(
    ("case", "dtype", "head_dim"),
    [
        (MIXED, torch.float32, 24),
        (INFIX, torch.float32, 64),
        (MIXED, torch.bfloat16, 64),
        (INFIX, torch.bfloat16, 24),
        (MIXED, torch.float16, 64),
        (replace(MIXED, slack=400), torch.float16, 24),  # the tiles of long sequences
    ],
)
def test_values_and_every_gradient(case: Case, dtype: torch.dtype, head_dim: int) -> None:
    check(case, dtype, head_dim)


@pytest.mark.skipif(DEVICE == "cpu", reason="takes minutes under the interpreter")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [32, 64, 80, 128])
def test_large_shapes(dtype: torch.dtype, head_dim: int) -> None:
    check(Case([1024, 700, 3, 129], [200, 5, 20], [0, 1, 0, 2]), dtype, head_dim)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_prefix_rows_of_another_dtype(dtype: torch.dtype) -> None:
    other = torch.bfloat16 if dtype == torch.float32 else torch.float32
    check(CASES["several prefixes, one unused"], dtype, 24, other)


def test_only_what_is_wanted_is_computed() -> None:
    case = CASES["all at once"]
    qkv, kv = inputs(case, torch.float32, 24)
    whole = values_and_gradients("triton", qkv, kv, case)
    for wanted in (0, 1):
        own = [x.detach().requires_grad_(i == wanted) for i, x in enumerate((qkv, kv))]
        out = kernels.prefix_attention(*own, *on_device(case), backend="triton")
        found = torch.autograd.grad(out, own[wanted], d_output(out))[0]
        expected = torch.stack(whole[1:4], 1) if wanted == 0 else whole[4]
        assert torch.equal(found, expected)


def test_equal_inputs_give_equal_bits() -> None:
    case = Case([17] * 6, [5], [0] * 6)  # several splits, for the prefix's gradient
    qkv, kv = inputs(case, torch.float32, 24)
    first, second = (values_and_gradients("triton", qkv, kv, case) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


def test_a_sum_and_strides() -> None:
    """The gradient of a sum has strides of 0; prefix rows may lie in any order."""
    case = CASES["one prefix, ragged"]
    qkv, kv = (x.detach() for x in inputs(case, torch.float32, 24))
    wide = torch.cat([qkv, qkv], dim=1)[:, :3].requires_grad_()
    turned = kv.permute(1, 2, 0, 3).contiguous().permute(2, 0, 1, 3).requires_grad_()
    results = []
    for backend, leaves in (("triton", (wide, turned)), ("reference", (qkv, kv))):
        leaves = [x.requires_grad_() for x in leaves]
        out = kernels.prefix_attention(*leaves, *on_device(case), backend=backend)
        results.append((out, *torch.autograd.grad(out.sum(), leaves)))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_unused_tokens_may_hold_anything() -> None:
    case = Case([3, 1], [2], [0, 0], tail=2)
    qkv, kv = inputs(case, torch.float32, 24)
    qkv.data[4:] = torch.nan
    for found in values_and_gradients("triton", qkv, kv, case):
        assert found.isfinite().all()


# The operators


def test_operators() -> None:
    case = CASES["all at once"]
    qkv, kv = inputs(case, torch.float32, 24)
    *layout, max_seq_len = on_device(case)
    ops = torch.ops.mingpt_prefix
    torch.library.opcheck(ops.prefix_attention, (qkv, kv, *layout, max_seq_len))
    saved = [x.detach() for x in (qkv, kv, *ops.prefix_attention(qkv, kv, *layout, max_seq_len))]
    for of_qkv, of_prefix in ((True, True), (True, False), (False, True)):
        arguments = (d_output(saved[2]), *saved, *layout, max_seq_len, of_qkv, of_prefix)
        torch.library.opcheck(ops.prefix_attention_backward, arguments)
    torch.library.opcheck(ops.decode_attention, decode_inputs([3, 1], [2], [0, -1], torch.float32))


def test_compile_traces_through() -> None:
    case = CASES["several prefixes, one unused"]
    qkv, kv = inputs(case, torch.float32, 24)
    arguments = on_device(case)

    def twice(qkv: Tensor, kv: Tensor) -> Tensor:
        out = kernels.prefix_attention(2 * qkv, kv, *arguments, backend="triton")
        return out.sin()

    compiled = torch.compile(twice, fullgraph=True, backend="aot_eager")
    results = []
    for function in (twice, compiled):
        out = function(qkv, kv)
        results.append((out, *torch.autograd.grad(out.square().sum(), (qkv, kv))))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


def test_compile_traces_a_model() -> None:
    model = GPT2(SMALL, "triton").initialize(0).to(DEVICE)
    model.attention = "reference"
    ids = torch.arange(9, device=DEVICE)
    case = Case([5, 4], [], [-1, -1])
    starts, _, *rest = on_device(case)
    layout = kernels.Layout(starts, *rest)

    def hidden() -> Tensor:
        call = kernels.bind(model.attention, 9, layout, starts[:1])
        kv = model.wte.weight.new_zeros(2, 0, SMALL.n_head, SMALL.head_dim)
        return model.trunk(model.embed(ids, ids), lambda layer, qkv: call(qkv, kv))

    expected = hidden()
    model.attention = "triton"
    found = torch.compile(hidden, fullgraph=True, backend="aot_eager")()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


# Decoding


def decode_inputs(
    lengths: list[int], prefixes: list[int], ids: list[int], dtype: torch.dtype, head_dim: int = 24
) -> tuple[Tensor, ...]:
    """Arguments of `decode_attention`: cached tokens anywhere, NaN in what is not written yet.

    Rows of the batch share the cache rows of the tokens that all have.
    """
    generator = torch.Generator().manual_seed(3)
    n_seqs, width = len(lengths), max(lengths) + 2
    slots = torch.randperm(n_seqs * width, generator=generator).view(n_seqs, width)
    slots[:, : min(lengths)] = slots[:1, : min(lengths)]
    cache = torch.full((2, n_seqs * width, 2, head_dim), torch.nan)
    for row, length in zip(slots, lengths, strict=True):
        cache[:, row[:length]] = torch.randn(2, length, 2, head_dim, generator=generator)
        row[length + 1 :] = -1
    qkv = torch.randn(n_seqs, 3, 2, head_dim, generator=generator)
    kv = torch.randn(2, sum(prefixes), 2, head_dim, generator=generator)
    ints = (torch.tensor(lengths), kv.to(dtype), offsets(prefixes), torch.tensor(ids))
    tensors = (qkv.to(dtype), cache.to(dtype), slots.int(), *ints)
    return tuple(t.to(DEVICE) for t in tensors)


@pytest.mark.parametrize("split", [32, 256])
@pytest.mark.parametrize(
    ("dtype", "head_dim"), [(torch.float32, 24), (torch.bfloat16, 64), (torch.float16, 24)]
)
def test_decoding(dtype: torch.dtype, head_dim: int, split: int, monkeypatch) -> None:
    monkeypatch.setattr(decode, "SPLIT", split)
    rows = [70, 113, 31, 32, 96], [5, 0, 37], [2, 1, 0, -1, 2]
    ours, theirs, exact = (decode_inputs(*rows, dtype, head_dim) for _ in range(3))
    exact = tuple(t.double() if t.is_floating_point() else t for t in exact)
    found = kernels.decode_attention(*ours, backend="triton")
    low = reference.decode_attention(*theirs)
    wanted = reference.decode_attention(*exact)
    little = 1e-5 if dtype == torch.float32 else 1e-3
    assert found.dtype == dtype
    error = (found.double() - wanted).abs().max()
    assert error <= 2 * (low.double() - wanted).abs().max() + little
    assert torch.equal(ours[1].nan_to_num(nan=9.0), theirs[1].nan_to_num(nan=9.0))


def test_decoding_a_row_does_not_depend_on_the_others(monkeypatch) -> None:
    monkeypatch.setattr(decode, "SPLIT", 32)
    qkv, cache, table, lengths, kv, starts, ids = decode_inputs(
        [40, 9, 100], [5], [0, 0, -1], torch.float32
    )
    whole = kernels.decode_attention(qkv, cache, table, lengths, kv, starts, ids, "triton")
    for i in range(3):
        one = (qkv[i : i + 1], cache, table[i : i + 1, : int(lengths[i]) + 1].contiguous())
        rest = (lengths[i : i + 1], kv, starts, ids[i : i + 1])
        assert torch.equal(kernels.decode_attention(*one, *rest, "triton")[0], whole[i])


def test_decoding_no_rows() -> None:
    arguments = decode_inputs([3], [2], [0], torch.float32)
    empty = (arguments[0][:0], arguments[1], arguments[2][:0], arguments[3][:0])
    rest = (arguments[4], arguments[5], arguments[6][:0])
    assert kernels.decode_attention(*empty, *rest, "triton").shape == (0, 2, 24)


# Whole runs


@pytest.mark.parametrize("mode", ["prefix", "finetune"])
@pytest.mark.parametrize("whole", [False, True], ids=["plain", "padded"])
def test_training_reaches_the_reference_s_losses(mode: str, whole: bool, monkeypatch) -> None:
    """Step by step, and in whole steps padded to buckets (on a GPU as CUDA graphs)."""
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(64, (n,), generator=generator) for n in (9, 17, 12, 5)]
    examples = [Encoded(i, len(i) // 2) for i in ids]
    losses = {}
    for backend in kernels.BACKENDS:
        why = None if whole and backend == "triton" else "they are not wanted"
        monkeypatch.setattr(training, "why_not_graphs", lambda *_, why=why: why)
        config = TrainConfig(
            mode=mode,
            model="small",
            data=("random",),
            lr=1e-2 if mode == "prefix" else 1e-3,
            epochs=3,
            batch_size=2,
            micro_batch_size=2,
            prefix_length=3 if mode == "prefix" else 0,
            device=DEVICE,
            attention=backend,
        )
        model = GPT2(SMALL, backend).initialize(0).to(DEVICE)
        model.requires_grad_(mode != "prefix")
        trainer = make_trainer(config, model, examples, [])
        losses[backend] = [progress.loss for progress in trainer.steps()]
    assert len(losses["triton"]) == 6 and losses["triton"][-1] < losses["triton"][0]
    torch.testing.assert_close(
        torch.tensor(losses["triton"]), torch.tensor(losses["reference"]), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("beams", [1, 3])
def test_generation_gives_the_reference_s_tokens(beams: int) -> None:
    model = GPT2(SMALL, "reference").initialize(0).to(DEVICE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8.0)
    kv = torch.randn(2, 2, 7, 2, 16, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    prefix = PrefixKV(kv, torch.tensor([0, 4, 7], dtype=torch.int32, device=DEVICE))
    prompts, said = [[1, 2, 3], [7, 5], [9]], {}
    for model.attention in kernels.BACKENDS:
        ids = [0, 1, -1]
        said[model.attention] = generate(model, prompts, prefix, ids, beams, max_new_tokens=5)
    assert said["triton"] == said["reference"]
    assert len({tuple(ids) for ids in said["triton"]}) == 3
