"""What a call's embedding is trained by: when it is written, and what is said behind it.

ends = Ends.of(base, lessons)
loss = call_loss(model, ends, quiet) + behind_loss(model, prefix, lessons, eos)
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from mingpt_prefix.bank.calls import CallingGPT2
from mingpt_prefix.batch import PrefixKV
from mingpt_prefix.call_training.lessons import Lesson, States, pack_lessons, states
from mingpt_prefix.model import GPT2

_QUIET = 20.0  # what a place where nothing is called counts, beside the end of a slot
_BEHIND = 100.0  # what is said behind a call counts, for the two uses of a row pull it apart


@dataclass(frozen=True)
class Ends:
    """The states at the ends of tables, and the prefix (M,) that is to be called at each."""

    states: States
    prefix_ids: Tensor

    @classmethod
    def of(cls, base: GPT2, lessons: Sequence[Lesson], shorter: bool = False) -> "Ends":
        """`shorter`: also those of every table of two slots or more that begins a lesson's; behind
        one slot little tells tasks apart, or a table from prose."""
        tables = {tuple(lesson.table): lesson for lesson in lessons}
        ends = [lesson.slot_ends for lesson in tables.values()]
        places = [(own[1:] or own) if shorter else own[-1:] for own in ends]
        ids = [
            lesson.prefix_id
            for lesson, own in zip(tables.values(), places, strict=True)
            for _ in own
        ]
        return cls(states(base, list(tables), places), torch.tensor(ids, device=base.device))

    def with_dropout(self, share: float, draw: torch.Generator) -> "Ends":
        """With dropout on the hidden states alone: there are few, and what is learned is to hold
        for values that are not among them."""
        hidden = self.states.hidden
        kept = (torch.rand(hidden.shape, generator=draw) >= share).to(hidden)
        return replace(self, states=replace(self.states, hidden=hidden * kept / (1 - share)))


def call_loss(model: CallingGPT2, ends: Ends, quiet: States) -> Tensor:
    """Of saying the right call at `ends`, and, weighted, of one that is likelier than the likeliest
    word where it is `quiet`; in nats."""
    said = model.call_logits(ends.states.hidden)  # (M, N)
    total = torch.logaddexp(ends.states.total, said.logsumexp(-1))
    right = said.gather(1, ends.prefix_ids[:, None])[:, 0]
    unwanted = model.call_logits(quiet.hidden).logsumexp(-1)
    return (total - right).mean() + _QUIET * F.softplus(unwanted - quiet.top).mean()


def behind_loss(
    model: CallingGPT2, prefix: PrefixKV, lessons: Sequence[Lesson], eos: int
) -> Tensor:
    """How far what `model` says behind the calls is from what it says with the token `eos` in their
    place: the mean Kullback-Leibler divergence, in nats a token, weighted."""
    batch = pack_lessons(lessons, model.device)

    def shares(tokens: Tensor) -> Tensor:
        hidden = model(tokens, batch.positions, batch.layout, prefix, batch.target_index)
        return model.head(hidden)[:, : model.n_words].log_softmax(-1)  # (M, V)

    with torch.no_grad():
        wanted = shares(batch.tokens.masked_fill(batch.tokens >= model.n_words, eos))
    divergence = F.kl_div(shares(batch.tokens), wanted, reduction="sum", log_target=True)
    return _BEHIND * divergence / batch.n_targets


@torch.no_grad()
def right_calls(model: CallingGPT2, ends: Ends) -> float:
    """The share of table ends at which the likeliest token is the right call."""
    likeliest = model.head(ends.states.hidden.to(model.rows.dtype)).argmax(-1)
    return float((likeliest - model.n_words == ends.prefix_ids).float().mean())
