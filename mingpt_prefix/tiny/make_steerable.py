"""The last stage of the embedded model's pretraining: a base that is good to prefix-tune.

    python -m mingpt_prefix.tiny.make_steerable --model DIR --english TEXT --steps 5000 --out DIR

Base and prefixes are trained together. Each of a pool of tasks (a domain, a way to write its
tables, one to four authors) has a prefix of its own, trained by the embedded model's prefix recipe
over a short life; then both are thrown away, and a new task takes their place. No task lasts long
enough to be learned by heart: what the base can learn is what they have in common, to be told by
rows how a table is read and said. It is meta-learning to its first order (Finn et al. 2017, section
5.2; Nichol et al. 2018), with the prefix for the fast weights. English text, without a prefix,
keeps its share of the loss.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from torch import Tensor, nn

from mingpt_prefix.accel.buckets import of_few_sizes
from mingpt_prefix.adapters.learned import make_encoder
from mingpt_prefix.batch import Encoded, PackedBatch, PrefixKV, pack
from mingpt_prefix.checkpoints.pretrained import load_model, save_model
from mingpt_prefix.cli.recipes import recipe
from mingpt_prefix.cli.terminal import say
from mingpt_prefix.config import TrainConfig
from mingpt_prefix.data.pretraining import Windows, read_corpus
from mingpt_prefix.data.tokenizer import Tokenizer, load_tokenizer
from mingpt_prefix.model import GPT2
from mingpt_prefix.optim import learning_rate, make_optimizers, set_learning_rate
from mingpt_prefix.step import SummedLoss

from .mixture import Rows, Style, draw_domain, draw_facts
from .mixture_text import describe
from .mixture_values import Author

LONGEST = 200  # tokens of an example: all of a step's are padded to the longest
WINDOW = 256  # tokens of English read at once
_FIRST = 8  # examples, whose last tokens a prefix begins as


@dataclass(frozen=True)
class Args:
    """Tasks alive at once, and steps in the life of each; how many a step, with so many examples
    each, and windows of English; the share of domains that are coined."""

    steps: int
    lr: float = 1.5e-3
    pool: int = 24
    life: int = 250
    tasks: int = 4
    examples: int = 4
    windows: int = 2
    coined: float = 0.75
    seed: int = 0


class TableTask:
    """A domain whose tables are written in one way, and one to four who describe them."""

    def __init__(self, rng: Random, tokenizer: Tokenizer, coined: float) -> None:
        self.rng, self.tokenizer = rng, tokenizer
        self.domain, self.style = draw_domain(rng, coined), Style(rng, free=True)
        count = rng.choice((1, 2, 4))
        self.authors = [rng if rng.random() < 0.5 else Author(rng) for _ in range(count)]
        self.is_orderly = rng.random() < 0.7

    def draw(self) -> Encoded:
        """A table and its text, in the form of `encode_example`."""
        while True:
            rows, text = self._pair()
            context = [*self.tokenizer.encode(f" {self.style.write(rows)}"), self.tokenizer.eos]
            ids = [*context, *self.tokenizer.encode(f" {text}"), self.tokenizer.eos]
            if len(ids) <= LONGEST:
                return Encoded(torch.tensor(ids), len(context))

    def _pair(self) -> tuple[Rows, str]:
        rng, domain = self.rng, self.domain
        key, facts = draw_facts(domain, rng, self.is_orderly, nameless=0.03)
        rows = [(slot.name, value) for slot, value in facts]
        if key is not None:
            at = 0 if self.is_orderly else rng.randrange(len(rows) + 1)
            rows.insert(at, (domain.key.name, key))
        author = rng.choice(self.authors)
        told = rng.sample(facts, len(facts)) if author is rng else facts
        return rows, describe(domain, key, told, author)


class Life:
    """A task, and its prefix as far as it is learned."""

    def __init__(self, task: TableTask, model: GPT2, config: TrainConfig, age: int = 0) -> None:
        self.task, self.config, self.age = task, config, age
        self.encoder = make_encoder(config, model, [task.draw() for _ in range(_FIRST)])
        (self.optimizer,) = make_optimizers(self.encoder, config)

    @property
    def is_over(self) -> bool:
        return self.age >= self.config.max_steps

    def step(self) -> None:
        """Apply the gradients; the learning rate is that of its age."""
        _step([self.optimizer], learning_rate(self.age, self.config.max_steps, self.config))
        self.age += 1


def _step(optimizers: Sequence[torch.optim.Optimizer], lr: float) -> None:
    for optimizer in optimizers:
        set_learning_rate(optimizer, lr)
        optimizer.step()
        optimizer.zero_grad()


def _configs(args: Args) -> tuple[TrainConfig, TrainConfig]:
    """The settings of the base's training, and of a prefix's."""
    fixed = dict(model="tiny", data=(), dtype="bf16")
    base = recipe("pretrain", True, lr=args.lr, max_steps=args.steps)
    rows = recipe("prefix", True, max_steps=args.life)
    return (
        TrainConfig("pretrain", **fixed, **base),
        TrainConfig("prefix", **fixed, **rows),
    )


def tables_batch(lives: Sequence[Life], examples: int) -> tuple[PackedBatch, PrefixKV]:
    """`examples` of each life's task, each behind its prefix."""
    drawn = [life.task.draw() for life in lives for _ in range(examples)]
    ids = [number for number in range(len(lives)) for _ in range(examples)]
    prefix = PrefixKV.pack([life.encoder() for life in lives])
    batch = pack(drawn, lives[0].config.prefix_length, prefix_ids=ids)
    return of_few_sizes(batch), prefix


def train(model: GPT2, args: Args, english: Windows, tokenizer: Tokenizer) -> GPT2:
    """`model`, trained in place."""
    config, of_rows = _configs(args)
    rng = Random(args.seed)

    def live(age: int = 0) -> Life:
        return Life(TableTask(rng, tokenizer, args.coined), model, of_rows, age)

    model.requires_grad_(True)
    pool = [live(rng.randrange(args.life)) for _ in range(args.pool)]
    optimizers = make_optimizers(model, config)
    summed_loss = SummedLoss(model, autocasts=True)
    for step in range(args.steps):
        chosen = rng.sample(range(args.pool), args.tasks)
        tables, prefix = tables_batch([pool[i] for i in chosen], args.examples)
        text = pack([english[rng.randrange(len(english))] for _ in range(args.windows)])
        count = tables.n_targets + text.n_targets
        losses: list[Tensor] = []
        for batch, rows in ((tables, prefix), (text, None)):
            loss = summed_loss(batch, rows)
            (loss / count).backward()
            losses.append(loss.detach() / batch.n_targets)
        nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        _step(optimizers, learning_rate(step, args.steps, config))
        for i in chosen:
            pool[i].step()
            if pool[i].is_over:
                pool[i] = live()
        if (step + 1) % 100 == 0:
            of_tables, of_text = map(float, losses)
            say(f"step {step + 1}/{args.steps}  tables {of_tables:.3f}  English {of_text:.3f}")
    return model


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train a base that is good to prefix-tune.")
    parser.add_argument("--model", required=True, help="the base to go on from")
    parser.add_argument("--english", type=Path, nargs="+", required=True, help=".txt or .txt.xz")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    model, tokenizer = load_model(options.model, "cpu", "fp32"), load_tokenizer("tiny")
    english = read_corpus(options.english, tokenizer, WINDOW, model.config.n_positions).train
    args = Args(options.steps, seed=options.seed)
    save_model(train(model, args, english, tokenizer), options.out, torch.float16)


if __name__ == "__main__":
    main()
