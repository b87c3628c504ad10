"""The second stage of the embedded model's pretraining: a base that is good to prefix-tune.

    train(Path("first/model"), Path("text.txt.xz"), Path("base"), Args(steps=2000))

Base and prefixes are trained together. Each of a pool of tasks (a domain, a way to write its
tables, one to six authors) has a prefix of its own, trained by the embedded model's prefix recipe
over a short life; then both are thrown away, and a new task takes their place. No task lasts long
enough to be learned by heart: what the base can learn is what they have in common, to be told by
rows how a table is read and said. It is meta-learning to its first order (Finn et al. 2017, section
5.2; Nichol et al. 2018), with the prefix for the fast weights. A prefix learns from tables whose
names are made of few words, and comes to expect these; from other tables, which it does not learn
from, the base learns to say any names behind it. The text of the first stage, without a prefix,
keeps its share of the loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

import torch
from torch import Tensor, nn

from mingpt_prefix.accel.buckets import of_few_sizes
from mingpt_prefix.accel.distributed import ALONE, World
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
    """Tasks alive at once, and steps in the life of each; how many a step, with so many examples
    each, and so many with new names; and windows of text."""

    steps: int
    lr: float = 1.5e-3
    pool: int = 20
    life: int = 220
    tasks: int = 8
    examples: int = 3
    new: int = 2
    windows: int = 4
    dtype: str = "bf16"
    seed: int = 0


@dataclass(frozen=True)
class Source:
    """What tasks are made of: everyday words, and what must not be said."""

    tokenizer: Tokenizer
    words: Sequence[str]
    overlap: corpus.Overlap


class Life:
    """A task, and its prefix as far as it is learned.

    The task is a domain whose tables are written in one way, and one to six who describe them.
    """

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
    """`examples` of each life's task behind its prefix, and `new` ones with new names, behind a
    copy of it that is not learned."""
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


def train(start: Path, text: Path, out: Path, args: Args, world: World = ALONE) -> None:
    """Train the model in the folder `start` on, and save it as `out`/model."""
    if (out / "model").exists():
        return
    out.mkdir(exist_ok=True)
    model = load_model(start, dtype="fp32")
    tokenizer = load_tokenizer(model.config.tokenizer)
    windows = read_corpus([text], tokenizer, WINDOW, model.config.n_positions).train
    words = corpus.everyday_words("\n".join(documents(text)))
    source = Source(tokenizer, words, corpus.overlap_with_sample())
    train_together(model, args, windows, source, out, world)
    if world.is_main:
        save_model(model, out / "model")
