"""Special tokens that call a prefix: ids behind a model's vocabulary, and prompts that name them.

    model = CallingGPT2(base, rows)          # ids V to V + N - 1 call prefix 0 to N - 1
    ids = encode_call(tokenizer, "<|prefix:films|> title[The River]", callees)
    generate(model, [ids], prefix, *called_in([ids], model))

A call's row is its embedding as input and, the head being tied, its row of the head. One row has to
serve as both, and the states at the ends of phrases in prose are much like those at a table's end:
so `quiet` rows, of the head alone, lower a call's logit there. While tokens are generated, a call
attaches its prefix to its sequence from its own query on; a sequence that has a prefix calls no
other. Calls are read from prompts alone: in a table's value their text is text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mingpt_prefix.data.spellings import table_from_line
from mingpt_prefix.data.tables import Table, linearize
from mingpt_prefix.data.tokenizer import Tokenizer
from mingpt_prefix.errors import PromptError, TableError, printable
from mingpt_prefix.generation.kv_cache import KVCache
from mingpt_prefix.model import GPT2

MAX_PROMPT_CHARS = 20_000
_CALL = re.compile(r"<\|prefix:([^|>]*)\|>")


class CallingCache(KVCache):
    """The cache of a `CallingGPT2`: an appended call attaches its prefix to the row."""

    may_hold_prefix = False
    model: CallingGPT2

    def step(self, tokens: Tensor) -> None:
        called = (tokens - self.model.n_words).to(self.prefix_ids.dtype)
        self.prefix_ids = torch.where(called >= 0, called, self.prefix_ids)
        super().step(tokens)

    def _head(self, hidden: Tensor) -> Tensor:
        logits = super()._head(hidden)
        has_prefix = (self.prefix_ids >= 0)[:, None]
        logits[:, self.model.n_words :].masked_fill_(has_prefix, -math.inf)
        return logits


class CallingGPT2(GPT2):
    """`base` with N more tokens in its vocabulary, which call prefixes; its weights are shared.

    rows (N, C): their embeddings, and `quiet` (N, J, C), of which J may be 0: the parameters here
    that `base` has not. `may_emit` (N,) bool: which calls the model may write; None: all. The
    others have the logit -inf.
    """

    cache_class = CallingCache

    def __init__(
        self,
        base: GPT2,
        rows: Tensor,
        may_emit: Sequence[bool] | None = None,
        quiet: Tensor | None = None,
    ):
        with torch.device("meta"):  # for every weight is the base's
            super().__init__(base.config, base.attention)
        self.wte, self.wpe, self.h, self.ln_f = base.wte, base.wpe, base.h, base.ln_f
        self.tied_head, self.name, self.fingerprint = base.tied_head, base.name, base.fingerprint
        self.n_words = base.config.vocab_size
        self.config = replace(base.config, vocab_size=self.n_words + len(rows))
        quiet = rows[:, None][:, :0] if quiet is None else quiet
        self.rows, self.quiet = (
            nn.Parameter(t.detach().to(base.wte.weight, copy=True), requires_grad=False)
            for t in (rows, quiet)
        )
        allowed = [True] * len(rows) if may_emit is None else list(may_emit)
        banned = ~torch.tensor(allowed, dtype=torch.bool, device=base.device)
        self.register_buffer("banned", banned, persistent=False)

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        calls = F.embedding((tokens - self.n_words).clamp(min=0), self.rows)
        words = self.wte(tokens.clamp(max=self.n_words - 1))
        x = torch.where((tokens >= self.n_words)[:, None], calls, words)
        return F.dropout(x + self.wpe(positions), self.dropout, self.training)  # (T, C)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (M, V + N) of hidden states (M, C)."""
        calls = self.call_logits(hidden).masked_fill(self.banned, -math.inf)
        return torch.cat([super().head(hidden), calls], dim=-1)

    def call_logits(self, hidden: Tensor) -> Tensor:
        """Logits (M, N) of the calls: h · row_n - log(1 + Σ_j exp(h · quiet_nj)), as if beside each
        call there were J ways of saying nothing."""
        said = F.linear(hidden, self.rows)
        if self.quiet.shape[1] == 0:
            return said
        unsaid = F.linear(hidden, self.quiet.flatten(0, 1)).unflatten(-1, self.quiet.shape[:2])
        return said - F.softplus(unsaid.logsumexp(-1))


@dataclass(frozen=True)
class Callee:
    """A prefix that can be called: by which id, and how it reads tables."""

    token: int
    text_format: str


def call_text(name: str) -> str:
    """How a call is written."""
    return f"<|prefix:{name}|>"


def encode_call(tokenizer: Tokenizer, text: str, callees: Mapping[str, Callee]) -> list[int]:
    """The ids of a prompt: plain text, with at most one call in it.

    What follows a call is a table as sample.py takes it: it is spelled as the called prefix reads
    it, and the call put behind it. The call is the last token.

    Raises:
        PromptError: for a prefix that is not in `callees`, an empty prompt, or a bad table.
        ConfigError: for a text format that this version does not know.
    """
    if len(text) > MAX_PROMPT_CHARS:
        raise PromptError(f"the prompt is longer than {MAX_PROMPT_CHARS:,} characters", 0)
    if surrogate := re.search(r"[\ud800-\udfff]", text):
        raise PromptError("the prompt is not UTF-8", surrogate.start())
    call = _CALL.search(text)
    if call is None:
        if not text.strip():
            raise PromptError("the prompt is empty", 0)
        return tokenizer.encode(text)
    before, name, after = text[: call.start()], call[1], text[call.end() :]
    if name not in callees:
        known = printable(", ".join(callees), 200)
        what = f"no prefix '{printable(name)}' in the bank; there is: {known}"
        raise PromptError(what, call.start())
    ids = tokenizer.encode(before)
    if not after.strip():
        return [*ids, callees[name].token]
    try:
        table = table_from_line(after.strip())
        return ids + encode_called_table(tokenizer, table, callees[name])
    except TableError as error:
        raise PromptError(f"after {call_text(name)}: {error}", call.end()) from None


def encode_called_table(tokenizer: Tokenizer, table: Table, callee: Callee) -> list[int]:
    """A table and, in the place of the end token, the call of the prefix that is to say it: there
    an infix begins.

    Raises:
        TableError: for a table without a slot that the prefix's template has a field for.
    """
    return [*tokenizer.encode(linearize(table, callee.text_format)), callee.token]


def called_in(prompts: Sequence[Sequence[int]], model: CallingGPT2) -> tuple[list[int], list[int]]:
    """What the prompts call: `prefix_ids` (B,), -1 for nothing, and `prefix_from` (B,), the place
    of the call."""
    first = model.n_words
    ids, places = [-1] * len(prompts), [0] * len(prompts)
    for number, prompt in enumerate(prompts):
        for place, token in enumerate(prompt):
            if token >= first:
                ids[number], places[number] = token - first, place
                break
    return ids, places


def decode_calls(tokenizer: Tokenizer, ids: Sequence[int], names: Mapping[int, str]) -> str:
    """Text of `ids`, calls among them as they are written; `names` are those of calls by id."""
    text, words = "", []
    for token in ids:
        if token not in names:
            words.append(token)
            continue
        text += tokenizer.decode(words) + call_text(names[token])
        words = []
    return text + tokenizer.decode(words)
