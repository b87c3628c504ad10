"""What the endpoints answer with, as JSON on one line."""

import functools
import json

from starlette.responses import Response

from mingpt_prefix.data.datasets import load_references
from mingpt_prefix.data.tables import parse_table
from mingpt_prefix.data.templates import TEMPLATE_FORMAT, template_fields
from mingpt_prefix.evaluation.faults import slots_said
from mingpt_prefix.evaluation.table_to_text import one_line
from mingpt_prefix.evaluation.tasks import EXAMPLE
from mingpt_prefix.generation.sampling import Scored
from mingpt_prefix.serve.models import ServedModel
from mingpt_prefix.serve.requests import Query

FAILED = "the server failed at this request"


def as_json(content: dict) -> bytes:
    """`content` as UTF-8, with no more escapes than JSON needs."""
    return json.dumps(content, allow_nan=False, ensure_ascii=False).encode()


def line(content: dict, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """`content` as JSON on one line."""
    headers = {**(headers or {}), **({"Retry-After": "1"} if status == 503 else {})}
    return Response(as_line(content), status, headers, media_type="application/json")


def as_line(content: dict) -> bytes:
    """As `as_json`, with a line break."""
    return as_json(content) + b"\n"


def answer(query: Query, found: list[Scored]) -> dict:
    """The sentences for a query, with their scores and, if asked for, the slots that they say."""
    decode = query.served.pipeline.tokenizer.decode
    sentences = [{"text": one_line(decode(s.ids)), "score": s.score} for s in found]
    if query.said:
        for sentence in sentences:
            sentence["said"] = slots_said(query.table.slots, sentence["text"])
    return {"by": query.served.name, "sentences": sentences}


@functools.cache
def test_tables() -> list[list[list[str]]]:
    """The slots of each table of the sample's test set."""
    return [[list(slot) for slot in table.slots] for table, _ in load_references("sample", "test")]


def usual_slots(served: ServedModel) -> list[list[str]]:
    """A table to begin with: an example, or the empty fields of the model's template."""
    text_format = served.pipeline.text_format
    if text_format.startswith(TEMPLATE_FORMAT):
        return [[name, ""] for name in template_fields(text_format)]
    return [list(slot) for slot in parse_table(EXAMPLE).slots]
