"""The same numbers as transformers' GPT-2 and PEFT's prefix tuning, and packing that mixes nothing.

The peers are given padded batches, ours are packed. Prefix gradients are tiny where a model has
random weights, so they are compared relative to the largest one of their row.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from mingpt_prefix.batch import Encoded, PackedBatch, PrefixKV, pack
from mingpt_prefix.checkpoints.atomic_write import cache_dir
from mingpt_prefix.checkpoints.pretrained import load_model, save_model
from mingpt_prefix.config import MODELS, ModelConfig
from mingpt_prefix.data.datasets import e2e_available, load_examples
from mingpt_prefix.data.encoding import encode_example
from mingpt_prefix.data.tokenizer import load_tokenizer
from mingpt_prefix.model import GPT2
from mingpt_prefix.prefix import PrefixEncoder

# PEFT calls transformers in ways that it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

P, MID = 5, 32
LITTLE = ModelConfig(3, 3, 24, vocab_size=61, n_positions=64, eos_token_id=60, tokenizer=None)
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}


def random_examples(vocab_size: int, lengths: Sequence[int], seed: int = 0) -> list[Encoded]:
    """Ids of these lengths, about half of each to be predicted."""
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(vocab_size, (length,), generator=generator) for length in lengths]
    return [Encoded(i, max(1, len(i) // 2)) for i in ids]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[GPT2, torch.nn.Module]]:
    """GPT-2 small with random weights, as ours loaded it and as transformers did, in float32."""
    folder = tmp_path_factory.mktemp("small")
    transformers.set_seed(0)
    peer = transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval()
    peer.save_pretrained(folder)
    ours = load_model(folder, device="cpu", dtype="fp32")
    shutil.rmtree(folder)  # 0.5 GB
    assert ours.config == MODELS["gpt2"]
    yield ours, peer


@pytest.fixture
def little(tmp_path: Path) -> tuple[GPT2, torch.nn.Module]:
    """A small model with wide random weights, in float64."""
    source = GPT2(LITTLE)
    generator = torch.Generator().manual_seed(0)
    for parameter in source.parameters():
        torch.nn.init.normal_(parameter.data, std=0.3, generator=generator)
    save_model(source, tmp_path / "model")
    ours = load_model(tmp_path / "model", device="cpu", dtype="fp64")
    peer = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "model")
    return ours, peer.double().eval()


def e2e_examples(indices: Sequence[int]) -> list[Encoded]:
    """Rows of the official training set; skips where they or GPT-2's tokens are missing."""
    if not e2e_available():
        pytest.skip(f"the cache folder {cache_dir()} does not hold e2e-dataset.zip")
    kept = os.environ.get("TIKTOKEN_CACHE_DIR") or cache_dir() / "tiktoken"
    if not Path(kept).is_dir():
        pytest.skip(f"the cache folder {kept} does not hold GPT-2's tokenizer")
    tokenizer = load_tokenizer("gpt2")
    rows = load_examples("e2e", "train")
    return [encode_example(tokenizer, rows[index]) for index in indices]


# The peers' padded batches


def padded(examples: Sequence[Encoded]) -> dict[str, Tensor]:
    """input_ids, attention_mask and labels (B, S); -100 marks what is not predicted."""
    width = max(len(e.ids) for e in examples)
    out = {
        "input_ids": torch.zeros(len(examples), width, dtype=torch.long),
        "attention_mask": torch.zeros(len(examples), width, dtype=torch.long),
        "labels": torch.full((len(examples), width), -100),
    }
    for row, e in enumerate(examples):
        out["input_ids"][row, : len(e.ids)] = e.ids
        out["attention_mask"][row, : len(e.ids)] = 1
        out["labels"][row, e.prompt_length : len(e.ids)] = e.ids[e.prompt_length :]
    return out


def our_loss(model: GPT2, batch: PackedBatch, prefix: PrefixKV | None) -> Tensor:
    """Mean over the target tokens, with logits of those positions alone."""
    inputs = (batch.tokens, batch.positions, batch.layout, prefix, batch.target_index)
    return cross_entropy(model.head(model(*inputs)), batch.target_tokens)


def their_loss(out, labels: Tensor) -> Tensor:
    """The peer's own loss, computed again in the logits' precision, where it takes float32."""
    targets = labels[:, 1:].flatten()
    loss = cross_entropy(out.logits[:, :-1].flatten(0, 1), targets, ignore_index=-100)
    torch.testing.assert_close(loss.float(), out.loss.float(), atol=1e-5, rtol=1e-5)
    return loss


def assert_same_logits(ours: list[Tensor], peer: Tensor) -> None:
    for row, logits in enumerate(ours):
        tolerance = TOLERANCE[logits.dtype]
        expected = peer[row, : len(logits)]
        torch.testing.assert_close(logits, expected, atol=tolerance, rtol=tolerance)


def assert_same_gradients(ours: Tensor, peer: Tensor) -> None:
    """Each row (last dimension) of the two, relative to the largest gradient in it."""
    scale = peer.abs().amax(dim=-1, keepdim=True)
    assert (scale > 0).all()
    assert ((ours - peer).abs() / scale).max() < TOLERANCE[ours.dtype]


def with_peft(peer: torch.nn.Module, projection: bool) -> torch.nn.Module:
    """PEFT's prefix tuning around `peer`, which it leaves as it is but frozen."""
    config = peft.PrefixTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=P,
        prefix_projection=projection,
        encoder_hidden_size=MID,
    )
    torch.manual_seed(1)
    model = peft.get_peft_model(peer, config)
    return model.to(next(peer.parameters()).dtype).eval()


def our_encoder(model: GPT2, peer: torch.nn.Module, projection: bool) -> PrefixEncoder:
    """Our encoder with the parameters of PEFT's."""
    theirs = peer.prompt_encoder["default"]
    encoder = PrefixEncoder(model.config, P, MID, reparam=projection).to(model.wte.weight.dtype)
    if projection:
        encoder.load_state_dict(theirs.state_dict())
    else:
        kv = as_rows(model.config, theirs.embedding.weight.detach()) / encoder.lr_scale
        matrices = kv.transpose(2, 3).flatten(0, 2)
        encoder.load_state_dict({f"rows.{i}": matrix for i, matrix in enumerate(matrices)})
    return encoder


def as_rows(config: ModelConfig, flat: Tensor) -> Tensor:
    """PEFT's direct prefix (P, 2 * L * C) as (L, 2, P, H, D)."""
    rows = flat.view(P, config.n_layer, 2, config.n_head, config.head_dim)
    return rows.permute(1, 2, 0, 3, 4)


def assert_same_as_peft(
    model: GPT2, peer: torch.nn.Module, examples: Sequence[Encoded], projection: bool
) -> None:
    """Logits, loss, and the gradient of every trained number."""
    wrapped = with_peft(peer, projection)
    encoder = our_encoder(model, wrapped, projection)
    batch = padded(examples)
    theirs = wrapped(**batch)
    expected_loss = their_loss(theirs, batch["labels"])
    expected_loss.backward()
    with torch.no_grad():
        assert_same_logits(model.logits([e.ids for e in examples], encoder()), theirs.logits)
    rows = encoder()
    rows.kv.retain_grad()
    loss = our_loss(model, pack(examples, P), rows)
    loss.backward()
    tolerance = TOLERANCE[loss.dtype]
    torch.testing.assert_close(loss, expected_loss, atol=tolerance, rtol=tolerance)
    expected = {n: p.grad for n, p in wrapped.prompt_encoder["default"].named_parameters()}
    if projection:
        for name, parameter in encoder.named_parameters():
            assert_same_gradients(parameter.grad, expected[name])
    else:
        expected = as_rows(model.config, expected["embedding.weight"])
        assert_same_gradients(rows.kv.grad, expected)
    assert all(p.grad is None for p in model.parameters())


# GPT-2 small, float32


def test_logits_of_ragged_batches(small: tuple[GPT2, torch.nn.Module]) -> None:
    model, peer = small
    examples = random_examples(50257, [1, 57, 2, 33, 114])
    with torch.no_grad():
        expected = peer(**padded(examples)).logits
        assert_same_logits(model.logits([e.ids for e in examples]), expected)


def test_logits_of_e2e(small: tuple[GPT2, torch.nn.Module]) -> None:
    model, peer = small
    examples = e2e_examples([0, 9_999, 20_000, 42_060])
    assert len({len(e.ids) for e in examples}) > 2
    with torch.no_grad():
        expected = peer(**padded(examples))
        assert_same_logits(model.logits([e.ids for e in examples]), expected.logits)
        loss = our_loss(model, pack(examples), None)
    torch.testing.assert_close(loss, expected.loss, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("projection", [False, True])
def test_small_against_peft(small: tuple[GPT2, torch.nn.Module], projection: bool) -> None:
    assert_same_as_peft(*small, random_examples(50257, [3, 41, 20]), projection)


@pytest.mark.parametrize("projection", [False, True])
def test_e2e_against_peft(small: tuple[GPT2, torch.nn.Module], projection: bool) -> None:
    assert_same_as_peft(*small, e2e_examples([1, 30_000, 42_000]), projection)


# A little model, float64: the same to the last digits


def test_little_logits(little: tuple[GPT2, torch.nn.Module]) -> None:
    model, peer = little
    examples = random_examples(61, [1, 64, 2, 33])
    with torch.no_grad():
        expected = peer(**padded(examples))
        assert_same_logits(model.logits([e.ids for e in examples]), expected.logits)


@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("lengths", [[2, 59, 17, 30], [8, 8], [12]])
def test_little_against_peft(
    little: tuple[GPT2, torch.nn.Module], projection: bool, lengths: list[int]
) -> None:
    assert_same_as_peft(*little, random_examples(61, lengths), projection)


# Packing


def prefixes(config: ModelConfig, lengths: Sequence[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    shape = (config.n_layer, 2, -1, config.n_head, config.head_dim)
    sizes = [[length if s == -1 else s for s in shape] for length in lengths]
    return [torch.randn(size, generator=generator).double().requires_grad_() for size in sizes]


def test_neighbours_do_not_matter(little: tuple[GPT2, torch.nn.Module]) -> None:
    model, _ = little
    ids = [e.ids for e in random_examples(61, [5, 1, 23, 40, 8])]
    rows = prefixes(LITTLE, [3, 7, 1])
    which = [1, -1, 0, 2, 1]
    packed = model.logits(ids, PrefixKV.pack(rows), which)
    turned = model.logits(ids[::-1], PrefixKV.pack(rows), which[::-1])[::-1]
    for i, own, together, elsewhere in zip(ids, which, packed, turned, strict=True):
        prefix = None if own < 0 else PrefixKV.from_tensor(rows[own])
        (alone,) = model.logits([i], prefix)
        torch.testing.assert_close(together, alone, atol=1e-11, rtol=1e-11)
        torch.testing.assert_close(elsewhere, alone, atol=1e-11, rtol=1e-11)
    other = [torch.tensor([9] * 30), *ids[1:]]
    for before, after in zip(
        packed[1:], model.logits(other, PrefixKV.pack(rows), which)[1:], strict=True
    ):
        torch.testing.assert_close(before, after, atol=1e-11, rtol=1e-11)


def test_gradients_stay_with_their_prefix(little: tuple[GPT2, torch.nn.Module]) -> None:
    model, _ = little
    ids = [e.ids for e in random_examples(61, [5, 9, 23, 4])]
    which = [1, 0, -1, 1]
    weights = [torch.randn(len(i), 61, generator=torch.Generator().manual_seed(4)) for i in ids]
    rows = prefixes(LITTLE, [3, 7, 2])

    def gradients(chosen: Sequence[int]) -> list[Tensor]:
        """Of a loss on the chosen sequences alone."""
        out = model.logits(ids, PrefixKV.pack(rows), which)
        return torch.autograd.grad(sum((out[b] * weights[b]).sum() for b in chosen), rows)

    first, second, unused = gradients([0, 3])
    assert not first.any() and not unused.any() and second.abs().amax((-1, -2)).all()
    first, second, unused = gradients([1])
    assert first.abs().amax((-1, -2)).all() and not second.any() and not unused.any()
    assert not any(gradient.any() for gradient in gradients([2]))
    alone = model.logits([ids[1]], PrefixKV.from_tensor(rows[0]))[0]
    (expected,) = torch.autograd.grad((alone * weights[1]).sum(), rows[0])
    torch.testing.assert_close(first, expected, atol=1e-10, rtol=1e-10)
    both = gradients([0, 1, 3])
    torch.testing.assert_close(both[0], first, atol=1e-10, rtol=1e-10)
