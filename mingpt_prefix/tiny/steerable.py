"""The second stage of the embedded model's pretraining: a base that is good to prefix-tune.

    torchrun --nproc-per-node 2 -m mingpt_prefix.tiny.steerable first/model text.txt.xz base 2000

Each of a pool of tasks (a domain, a table format, one to six authors) has its own prefix, trained
by the embedded model's prefix recipe for some 200 steps, then replaced. No task lasts long enough
to be memorized. What the base can learn is what the tasks have in common: to take from a prefix how
to read and describe a table. This is first-order meta-learning (Finn et al. 2017, section 5.2;
Nichol et al. 2018), with the prefix as the fast weights. A prefix learns from tables whose names
are made of few words, and comes to expect these. From further tables with any names, only the base
learns: to copy names that the prefix does not expect. A share of each step is plain text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

import torch
import tyro
from torch import Tensor, nn

from mingpt_prefix.accel.buckets import of_few_sizes
from mingpt_prefix.accel.distributed import ALONE, World, join
from mingpt_prefix.accel.environment import keep_freed_memory
from mingpt_prefix.adapters.learned import make_encoder
from mingpt_prefix.batch import Encoded, PackedBatch, PrefixKV, pack
from mingpt_prefix.checkpoints.checkpoint import load_newest, save_checkpoint
from mingpt_prefix.checkpoints.pretrained import load_model, save_model
from mingpt_prefix.checkpoints.resuming import load_trained_state, trained_state
from mingpt_prefix.cli.recipes import recipe
from mingpt_prefix.cli.terminal import say
from mingpt_prefix.config import TrainConfig
from mingpt_prefix.data.pretraining import read_corpus
from mingpt_prefix.data.text import documents
from mingpt_prefix.data.tokenizer import Tokenizer, load_tokenizer
from mingpt_prefix.model import GPT2
from mingpt_prefix.optim import learning_rate, make_optimizers, set_learning_rate
from mingpt_prefix.step import SummedLoss
from mingpt_prefix.tiny import corpus

LONGEST = 250  # tokens of an example: all of a step's are padded to the longest
WINDOW = 448  # tokens of text read at once
SAVE_EVERY = 25  # steps
_FIRST = 8  # examples, whose last tokens a prefix begins as


@dataclass(frozen=True)
class Args:
    steps: int
    lr: float = 1.5e-3
    pool: int = 20  # tasks at a time
    life: int = 220  # steps of each task's prefix
    tasks: int = 8  # in a step of each process
    examples: int = 3  # of each task in a step
    new: int = 2  # more of them, with any names
    windows: int = 4  # of text in a step of each process
    dtype: str = "fp32"  # or bf16
    seed: int = 0


@dataclass(frozen=True)
class Source:
    """What tasks are made of: everyday words, and what their texts must not contain."""

    tokenizer: Tokenizer
    words: Sequence[str]
    overlap: corpus.Overlap


class Life:
    """A task (a domain, the format of its tables, one to six authors) and its prefix so far."""

    def __init__(
        self, rng: Random, source: Source, model: GPT2, config: TrainConfig, age: int = 0
    ) -> None:
        self.source, self.config, self.age = source, config, age
        self.style = corpus.Style(rng, always_ends=True)
        authors, most = rng.choice((1, 3, 6)), rng.choice((2, 4, 8, 16))
        self.pairs = corpus.Describing(rng, source.words, authors, most)
        encoder = make_encoder(config, model, [self.draw() for _ in range(_FIRST)])
        self.encoder = encoder.to(model.device)
        (self.optimizer,) = make_optimizers(self.encoder, config)

    def draw(self, is_new: bool = False) -> Encoded:
        """A table and its text, in the form of `encode_example`; `is_new`: with any names."""
        tokenizer = self.source.tokenizer
        while True:
            rows, text = self.pairs.draw(is_new)
            context = [*tokenizer.encode(f" {self.style.write(rows)}"), tokenizer.eos]
            ids = [*context, *tokenizer.encode(f" {text}"), tokenizer.eos]
            if len(ids) <= LONGEST and not self.source.overlap.is_in(text):
                return Encoded(torch.tensor(ids), len(context))

    def step(self) -> None:
        """Apply the gradients; the learning rate is that of its age."""
        _step([self.optimizer], learning_rate(self.age, self.config.max_steps, self.config))
        self.age += 1


def _step(optimizers: Sequence[torch.optim.Optimizer], lr: float) -> None:
    for optimizer in optimizers:
        set_learning_rate(optimizer, lr)
        optimizer.step()
        optimizer.zero_grad()


def tables_batch(lives: Sequence[Life], examples: int, new: int) -> tuple[PackedBatch, PrefixKV]:
    """`examples` of each task behind its prefix, and `new` ones behind a frozen copy of it."""
    drawn, ids = [], []
    for number, life in enumerate(lives):
        drawn += [life.draw(is_new=at >= examples) for at in range(examples + new)]
        ids += [number] * examples + [number + len(lives)] * new
    rows = [life.encoder().kv for life in lives]
    prefix = PrefixKV.pack([*rows, *map(Tensor.detach, rows)])
    batch = pack(drawn, lives[0].config.prefix_length, prefix_ids=ids)
    return of_few_sizes(batch).to(prefix.kv.device), prefix


def train_together(
    model: GPT2,
    args: Args,
    text: Sequence[Encoded],
    source: Source,
    folder: Path | None = None,
    world: World = ALONE,
) -> GPT2:
    """`model`, trained in place; from where the last checkpoint in `folder` left off, with new
    tasks. Each rank of `world` has a pool of its own."""
    fixed = dict(model="tiny", data=(), dtype=args.dtype)
    of_base = recipe("pretrain", True, lr=args.lr, max_steps=args.steps)
    config = TrainConfig("pretrain", **fixed, **of_base)
    of_rows = TrainConfig("prefix", **fixed, **recipe("prefix", True, max_steps=args.life))
    model.requires_grad_(True)
    optimizers, first = make_optimizers(model, config), 0
    if folder is not None and (checkpoint := load_newest(folder)):
        load_trained_state(model, optimizers, checkpoint.tensors)
        first = checkpoint.step
    rng = Random((args.seed * 1_000_003 + first) * world.size + world.rank)

    born = partial(Life, rng, source, model, of_rows)
    pool = [born(rng.randrange(args.life)) for _ in range(args.pool)]
    summed_loss = SummedLoss(model, autocasts=args.dtype == "bf16")
    for step in range(first, args.steps):
        chosen = rng.sample(range(args.pool), args.tasks)
        tables, prefix = tables_batch([pool[i] for i in chosen], args.examples, args.new)
        plain = pack([rng.choice(text) for _ in range(args.windows)]).to(model.device)
        count = float(world.sum(torch.tensor(float(tables.n_targets + plain.n_targets))))
        losses: list[Tensor] = []
        for batch, rows in ((tables, prefix), (plain, None)):
            loss = summed_loss(batch, rows)
            (loss / count).backward()
            losses.append(loss.detach() / batch.n_targets)
        for parameter in model.parameters():
            parameter.grad = world.sum(parameter.grad)
        nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        _step(optimizers, learning_rate(step, args.steps, config))
        for i in chosen:
            pool[i].step()
            if pool[i].age >= args.life:
                pool[i] = born()
        if (step + 1) % SAVE_EVERY == 0:
            of_tables, of_text = map(float, losses)
            say(f"step {step + 1}/{args.steps}  tables {of_tables:.3f}  text {of_text:.3f}")
            if folder is not None and world.is_main:
                save_checkpoint(folder, step + 1, trained_state(model, optimizers), {})
    return model


def train(start: Path, text: Path, out: Path, args: Args) -> None:
    """Continue training the model in the folder `start` on `text`, and save it as `out`/model."""
    if (out / "model").exists():
        return
    out.mkdir(parents=True, exist_ok=True)
    keep_freed_memory()
    with join() as world:
        model = load_model(start, dtype="fp32")
        tokenizer = load_tokenizer(model.config.tokenizer)
        windows = read_corpus([text], tokenizer, WINDOW, model.config.n_positions).train
        words = corpus.everyday_words("\n".join(documents(text)))
        source = Source(tokenizer, words, corpus.overlap_with_sample())
        train_together(model, args, windows, source, out, world)
        if world.is_main:
            save_model(model, out / "model")


if __name__ == "__main__":
    tyro.cli(train, config=(tyro.conf.PositionalRequiredArgs, tyro.conf.OmitArgPrefixes))
