"""The fast step beside a plain one: padded batches, a prefix for every row, logits everywhere.

The plain step shares nothing with the project but the parameters that it starts from. High learning
rates blow rounding up: parameters that differ by 1e-7 end at losses that differ by 1e-2. So float32
is compared at the rates of the paper's recipes, and high ones in float64.
"""

import gc
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_runs import FINETUNE, PREFIX, make
from torch import Tensor, nn
from torch.nn import functional as F

from mingpt_prefix.accel.cuda_graphs import GraphedStep
from mingpt_prefix.accel.environment import keep_freed_memory
from mingpt_prefix.batch import Encoded, batches
from mingpt_prefix.checkpoints.pretrained import load_model
from mingpt_prefix.cli.recipes import recipe
from mingpt_prefix.config import TrainConfig
from mingpt_prefix.evaluation import training_run as training
from mingpt_prefix.evaluation.tasks import load_task
from mingpt_prefix.evaluation.training_run import make_trainer
from mingpt_prefix.trainer import Trainer


def plain_logits(w: dict[str, Tensor], n_head: int, ids: Tensor, rows: Tensor | None) -> Tensor:
    """GPT-2 as its paper has it: ids (B, S), rows (L, 2, P, H, D) -> (B, S, V)."""
    n_seqs, width = ids.shape
    n_rows = 0 if rows is None else rows.shape[2]
    x = w["wte.weight"][ids] + w["wpe.weight"][n_rows : n_rows + width]

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    late = torch.ones(width, n_rows + width).triu(n_rows + 1).bool()
    for layer in range(sum(name.endswith("ln_1.weight") for name in w)):
        h = f"h.{layer}"
        qkv = linear(f"{h}.attn.c_attn", norm(f"{h}.ln_1", x)).view(n_seqs, width, 3, n_head, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, S, D)
        if rows is not None:
            front = rows[layer].transpose(1, 2)[:, None].repeat(1, n_seqs, 1, 1, 1)
            k, v = torch.cat([front[0], k], dim=2), torch.cat([front[1], v], dim=2)
        scores = (q @ k.transpose(2, 3)) / q.shape[-1] ** 0.5
        seen = scores.masked_fill(late, float("-inf")).softmax(-1) @ v
        x = x + linear(f"{h}.attn.c_proj", seen.transpose(1, 2).flatten(2))
        inner = F.gelu(linear(f"{h}.mlp.c_fc", norm(f"{h}.ln_2", x)), approximate="tanh")
        x = x + linear(f"{h}.mlp.c_proj", inner)
    return norm("ln_f", x) @ w["wte.weight"].T


def plain_rows(w: dict[str, Tensor], shape: tuple[int, ...], start: Tensor | None) -> Tensor:
    """The prefix's MLP, written out: rows (L, 2, P, H, D)."""
    n_layer, _, length, n_head, head_dim = shape
    inner = torch.tanh(w["embedding.weight"] @ w["transform.0.weight"].T + w["transform.0.bias"])
    rows = inner @ w["transform.2.weight"].T + w["transform.2.bias"]
    rows = rows.view(length, n_layer, 2, n_head, head_dim).permute(1, 2, 0, 3, 4)
    return rows if start is None else rows + start


def plain_losses(trainer: Trainer, steps: int) -> list[float]:
    """What training by the book gives from where `trainer` is."""
    config, model = trainer.config, trainer.model
    is_prefix = config.mode == "prefix"
    frozen = {name: p.detach().clone() for name, p in model.named_parameters()}
    trained = {
        name: p.detach().clone().requires_grad_()
        for name, p in trainer.trainable.named_parameters()
    }
    optimizer = torch.optim.AdamW(trained.values(), lr=config.lr, weight_decay=0.0)
    order, losses = batches(len(trainer.train_set), config.batch_size, config.seed), []
    for step in range(steps):
        chosen: list[Encoded] = [trainer.train_set[i] for i in next(order)]
        ids = nn.utils.rnn.pad_sequence([e.ids for e in chosen], batch_first=True)
        target = torch.full_like(ids, -100)
        for row, example in zip(target, chosen, strict=True):
            row[example.prompt_length - 1 : len(example.ids) - 1] = example.ids[
                example.prompt_length :
            ]
        rows = None
        if is_prefix:
            rows = plain_rows(trained, trainer.trainable.shape, trainer.trainable.start)
        logits = plain_logits(frozen if is_prefix else trained, model.config.n_head, ids, rows)
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained.values(), config.clip)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * (trainer.total_steps - step) / trainer.total_steps
        optimizer.step()
        losses.append(loss.item())
    return losses


def compare(trainer: Trainer, expected: list[float], allowed: float = 1e-4) -> None:
    found = [progress.loss for progress in trainer.steps()]
    assert found[-1] < found[0] and found == pytest.approx(expected, abs=allowed)


SMALL = [replace(c, dropout=0.0, max_steps=200, lr=2e-4, evals=1) for c in (PREFIX, FINETUNE)]


@pytest.mark.parametrize("config", SMALL, ids=["prefix", "finetune"])
def test_200_steps_give_a_plain_step_s_losses(config: TrainConfig, monkeypatch) -> None:
    expected = plain_losses(make(config), 200)
    for whole in (False, True):
        if whole:  # padded, as a GPU has them as graphs
            monkeypatch.setattr(training, "why_not_graphs", lambda *_: None)
        trainer = make(config)
        assert isinstance(trainer.stepper, GraphedStep) == whole
        compare(trainer, expected)


@pytest.mark.parametrize("config", SMALL, ids=["prefix", "finetune"])
def test_in_float64_they_agree_at_a_high_learning_rate_too(config: TrainConfig) -> None:
    trainer = make(replace(config, lr=1e-3), dtype=torch.float64)
    trainer.trainable.double()
    expected = plain_losses(trainer, 100)
    found = [progress.loss for progress, _ in zip(trainer.steps(), range(100), strict=False)]
    assert found == pytest.approx(expected, abs=2e-6)  # the losses themselves are float32


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "lr"), [("prefix", 8e-5), ("finetune", 5e-5)])
def test_200_steps_of_the_embedded_model_give_a_plain_step_s_losses(mode: str, lr: float) -> None:
    own = {"reparam": True} if mode == "prefix" else {}  # the plain step has the MLP written out
    settings = recipe(mode, True, lr=lr, max_steps=200, warmup=0.0, dropout=0.0, **own)
    config = TrainConfig(mode=mode, model="tiny", data=("sample",), **settings)
    model = load_model("tiny", "cpu")
    trainer = make_trainer(config, model, load_task(config, model.config).train_set, [])
    compare(trainer, plain_losses(trainer, 200))


def resident() -> int:
    """Bytes of this process that are in memory now."""
    gc.collect()
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_had_again_as_it_is() -> None:
    """Without page faults: the system clears nothing anew."""
    code = (
        "import resource, torch; from mingpt_prefix.accel.environment import keep_freed_memory\n"
        "def faults():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    torch.ones(12 << 20)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "keep_freed_memory(); torch.ones(48 << 20); print(faults())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 12  # 48 MiB in the largest pages would have 24


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell")
@pytest.mark.parametrize("config", SMALL, ids=["prefix", "finetune"])
def test_memory_is_flat_over_2000_steps(config: TrainConfig) -> None:
    keep_freed_memory()  # as train.py does
    trainer, held = make(replace(config, max_steps=2000)), {}
    for progress in trainer.steps():
        if progress.step in (200, 2000):
            held[progress.step] = resident()
    # A tensor of each step kept would be at least a batch's tokens, and what is saved for backward.
    assert held[2000] - held[200] < 4 << 20
