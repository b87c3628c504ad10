"""What a client may ask of the server: JSON, checked to the last field before it is queued.

    body = b'{"table": {"name": "The Mill"}, "prefix": "prefix-tiny-1"}'
    query = read_query(read_fields(body), models, defaults, seed, limits)

`table` is an object, triples, or text as `name[The Mill]`; `prefix` names a prefix, null the frozen
model, `model` a fine-tuned one in their place; without either it is the first model. The other
fields are those of `Decoding`, `seed`, `stream`, and `said` (whether to tell the slots that a
sentence says); `tokens` are those asked about. What is wrong is a `Refusal`, with the status it is
answered by.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from mingpt_prefix.config import MAX_SEED, Decoding, flag_name
from mingpt_prefix.data.spellings import as_table
from mingpt_prefix.data.tables import Table
from mingpt_prefix.errors import ConfigError, TableError, printable
from mingpt_prefix.serve.models import ServedModel

_RULES = {field.name: field.type for field in dataclasses.fields(Decoding)}
_OTHERS = ("table", "prefix", "model", "seed", "stream", "said", "tokens")


class Refusal(Exception):
    """A request that is answered by an HTTP status other than 200, and one line that says why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


@dataclass(frozen=True)
class Limits:
    """What one request may ask, how many may wait for each model, and how long: `seconds` for an
    answer, `body_seconds` for the body to arrive."""

    body_bytes: int = 1 << 16
    waiting: int = 512
    seconds: float = 60.0
    body_seconds: float = 10.0
    new_tokens: int = 400
    beams: int = 16
    sequences: int = 16


@dataclass(frozen=True)
class Query:
    """A request that can be answered: who writes, after which prompt, and how.

    `tokens` are new ones behind the prompt, asked about; empty where some are to be written.
    """

    served: ServedModel
    table: Table
    prompt: list[int]
    decoding: Decoding
    seed: int
    stream: bool
    said: bool
    tokens: list[int]

    @property
    def prefix_from(self) -> int | None:
        """The first token of the prompt that sees an infix: the last one; else None."""
        return len(self.prompt) - 1 if self.served.pipeline.is_infix else None

    def has_ended(self, ids: Sequence[int]) -> bool:
        """Whether new `ids` ended by an end token (it is not among them), not by the limit."""
        room = self.served.pipeline.room - len(self.prompt)
        return len(ids) < min(self.decoding.max_new_tokens, room)


def read_fields(body: bytes) -> dict:
    """The JSON object in `body`; raises Refusal for anything else."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        raise Refusal(400, "the body is not valid JSON") from None
    if not isinstance(fields, dict):
        raise Refusal(400, "the body must be a JSON object")
    return fields


def read_query(
    fields: dict, models: Sequence[ServedModel], defaults: Decoding, seed: int, limits: Limits
) -> Query:
    """The request of these fields; `defaults` and `seed` are for what it does not say.

    Raises:
        Refusal: naming what is wrong with it.
    """
    if unknown := fields.keys() - {*_RULES, *_OTHERS}:
        raise Refusal(400, f"unknown field '{printable(min(unknown))}'")
    served = _choose(fields, models)
    seed = fields.get("seed", seed)
    if any(fields.get(name) is not None for name in ("temperature", "top_k", "top_p")):
        fields = {"beams": 1, **fields}
    elif type(count := fields.get("num_return_sequences")) is int and not defaults.samples:
        fields = {"beams": max(defaults.beams, count), **fields}
    decoding = _decoding(fields, defaults, limits)
    if type(seed) is not int or not 0 <= seed <= MAX_SEED:
        raise Refusal(400, f"seed must be a whole number from 0 to {MAX_SEED}")
    flags = {name: fields.get(name, False) for name in ("stream", "said")}
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise Refusal(400, f"{name} must be true or false")
    if flags["stream"] and decoding.num_return_sequences > 1:
        raise Refusal(400, "a stream is of one sentence")
    table, prompt = _prompt(fields, served)
    if flags["said"] and table.is_triples:
        raise Refusal(400, "said is for tables of slots, not for triples")
    tokens = _tokens(fields, served, served.pipeline.room - len(prompt))
    return Query(served, table, prompt, decoding, seed, **flags, tokens=tokens)


def _choose(fields: dict, models: Sequence[ServedModel]) -> ServedModel:
    if "prefix" in fields and "model" in fields:
        raise Refusal(400, "prefix and model exclude each other")
    if "prefix" not in fields and "model" not in fields:
        return models[0]
    key = "prefix" if "prefix" in fields else "model"
    name, kinds = fields[key], {"prefix": ("prefix",), "model": ("fine-tuned",)}[key]
    if key == "prefix" and name is None:
        name, kinds = "frozen", ("frozen",)
    if not isinstance(name, str):
        raise Refusal(400, f"{key} must be a name")
    for served in models:
        if served.kind in kinds and served.name == name:
            return served
    known = ", ".join(served.name for served in models if served.kind in kinds) or "none"
    raise Refusal(404, f"no {key} '{printable(name)}' here; there is: {known}")


def _decoding(fields: dict, defaults: Decoding, limits: Limits) -> Decoding:
    given = {name: fields[name] for name in _RULES if name in fields}
    for name, value in given.items():
        kind = _RULES[name] | int  # a whole number is good for a float too
        if isinstance(value, bool) or not isinstance(value, kind):
            wanted = "a whole number" if _RULES[name] in (int, int | None) else "a number"
            raise Refusal(400, f"{flag_name(name)} must be {wanted}")
    try:
        decoding = dataclasses.replace(defaults, **given)
    except ConfigError as error:
        raise Refusal(400, printable(str(error), 200)) from None
    most = {
        "max_new_tokens": (1, limits.new_tokens),
        "beams": (1, limits.beams),
        "num_return_sequences": (1, limits.sequences),
        "temperature": (0.01, 100) if decoding.temperature else (0, 0),
        "top_k": (1, math.inf),
    }
    for name, (low, high) in most.items():
        value = getattr(decoding, name)
        if value is not None and not low <= value <= high:
            shown = printable(str(value))
            raise Refusal(400, f"{flag_name(name)} must lie in {low} to {high} here, not {shown}")
    return decoding


def _prompt(fields: dict, served: ServedModel) -> tuple[Table, list[int]]:
    if "table" not in fields:
        raise Refusal(400, "a table is missing")
    table = fields["table"]
    try:
        table = as_table(table)
        return table, served.pipeline.prompt(table)
    except TableError as error:
        raise Refusal(400, f"table: {error}") from None


def _tokens(fields: dict, served: ServedModel, room: int) -> list[int]:
    tokens = fields.get("tokens", [])
    size = served.pipeline.model.config.n_tokens
    if not isinstance(tokens, list) or len(tokens) > room:
        raise Refusal(400, f"tokens must be a list of at most {room} here")
    if not all(type(token) is int and 0 <= token < size for token in tokens):
        raise Refusal(400, f"tokens must be whole numbers from 0 to {size - 1}")
    return tokens
