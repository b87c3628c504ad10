"""OpenAI's `/v1/completions` and `/v1/models`: the model is a prefix, the prompt a table.

    client = openai.OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
    client.completions.create(model="shipped", prompt="name[The Mill], eatType[pub]")

A request is read as one to `/generate`, under other names. Fields of OpenAI's that this server has
no use for are accepted at their neutral values. The text is what the tokens say, with its leading
space; `logprobs` are the model's own, before temperature, top-k and top-p.
"""

import asyncio
import dataclasses
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from mingpt_prefix.config import Decoding
from mingpt_prefix.errors import printable
from mingpt_prefix.generation.sampling import Scored
from mingpt_prefix.serve.answers import FAILED, as_json, line
from mingpt_prefix.serve.batching import FunctionJob
from mingpt_prefix.serve.completion_texts import Text, chances, held_back, stop_at, text_of
from mingpt_prefix.serve.endpoints import Service, Told
from mingpt_prefix.serve.models import ServedModel
from mingpt_prefix.serve.requests import Query, Refusal, read_query

_OUR_NAMES = {"n": "num_return_sequences", "max_tokens": "max_new_tokens"}
_SHARED = {"seed", "stream", *(field.name for field in dataclasses.fields(Decoding))}
_OWN = {"model", "prompt", "stop", "logprobs", "stream_options", "user"}
_NEUTRAL = {
    "best_of": 1,
    "echo": False,
    "frequency_penalty": 0,
    "logit_bias": {},
    "presence_penalty": 0,
    "suffix": "",
}
_MOST_PROMPTS, _MOST_STOPS, _MOST_LOGPROBS = 32, 4, 5


@dataclass(frozen=True)
class Asked:
    """A request: a query for each of its prompts, and what becomes of their answers."""

    queries: list[Query]
    stops: tuple[str, ...]
    logprobs: int | None
    has_usage: bool

    @property
    def name(self) -> str:
        return self.queries[0].served.name


class Completions:
    """The endpoints, by the models and queues of `service`."""

    def __init__(self, service: Service) -> None:
        self.service, self.created = service, int(time.time())

    async def models(self, _request: Request) -> Response:
        """All models."""
        found = [self._about(served) for served in self.service.models]
        return line({"object": "list", "data": found})

    async def model(self, request: Request) -> Response:
        """One model, by name."""
        return line(self._about(_named(request.path_params["name"], self.service.models)))

    def _about(self, served: ServedModel) -> dict:
        own = {"id": served.name, "object": "model", "created": self.created}
        return {**own, "owned_by": "mingpt-prefix"}

    async def completions(self, request: Request) -> Response:
        """`n` texts for each prompt; or one, as a stream of server-sent events."""
        service, deadline = self.service, self.service.deadline()
        asked = self._read(await service.fields(request))
        request.state.model = asked.name
        head = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion"}
        head |= {"created": int(time.time()), "model": asked.name}
        if asked.queries[0].stream:
            events = _events(head, asked, service.stream(asked.queries[0], deadline))
            return StreamingResponse(events, media_type="text/event-stream")
        answers = [self._answer(query, asked, request, deadline) for query in asked.queries]
        found = [item for answer in await asyncio.gather(*answers) for item in answer]
        choices = [
            {"index": n, "text": own.text, "logprobs": logprobs, "finish_reason": own.finish_reason}
            for n, (own, logprobs) in enumerate(found)
        ]
        usage = _usage(asked, sum(len(own.ids) for own, _ in found))
        return line({**head, "choices": choices, "usage": usage})

    def _read(self, fields: dict) -> Asked:
        service = self.service
        fields = {name: value for name, value in fields.items() if value is not None}
        for name in fields.keys() - _SHARED - _OWN - _OUR_NAMES.keys():
            if name not in _NEUTRAL:
                raise Refusal(400, f"unknown field '{printable(name)}'")
            if fields[name] != _NEUTRAL[name]:
                raise Refusal(400, f"{name} is not supported here")
        if "model" not in fields or "prompt" not in fields:
            raise Refusal(400, "model and prompt are needed")
        served = _named(fields["model"], service.models)
        ours = {name: fields[name] for name in fields.keys() & _SHARED}
        ours |= {_OUR_NAMES[name]: fields[name] for name in fields.keys() & _OUR_NAMES.keys()}
        key = "model" if served.kind == "fine-tuned" else "prefix"
        ours[key] = None if served.kind == "frozen" else served.name
        prompts = _prompts(fields["prompt"])
        try:
            how = (service.models, service.defaults, service.seed, service.limits)
            queries = [read_query({**ours, "table": prompt}, *how) for prompt in prompts]
        except Refusal as error:
            why = str(error)
            for name, our_name in _OUR_NAMES.items():
                why = why.replace(our_name.replace("_", "-"), name)
            raise Refusal(error.status, why) from None
        options, logprobs = fields.get("stream_options"), _logprobs(fields)
        if queries[0].stream and (len(queries) > 1 or logprobs is not None):
            raise Refusal(400, "a stream is of one prompt, and without logprobs")
        has_usage = isinstance(options, dict) and options.get("include_usage") is True
        return Asked(queries, _stops(fields.get("stop", [])), logprobs, has_usage)

    async def _answer(
        self, query: Query, asked: Asked, request: Request, deadline: float
    ) -> list[tuple[Text, dict | None]]:
        """The texts for one prompt, with the log-probabilities that were asked for."""
        job = self.service.submit(query.served, self.service.job(query))
        found = await self.service.result(job, request, deadline)
        self.service.count(query, found)
        texts = [text_of(query, scored, asked.stops) for scored in found]
        if asked.logprobs is None:
            return [(text, None) for text in texts]
        job = FunctionJob(lambda: [chances(query, text, asked.logprobs) for text in texts])
        self.service.submit(query.served, job)
        return list(zip(texts, await self.service.result(job, request, deadline), strict=True))


def error_of(status: int, why: str) -> dict:
    """An error as OpenAI's clients read it."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    code = "model_not_found" if status == 404 else None
    return {"error": {"message": why, "type": kind, "param": None, "code": code}}


def _named(name: object, models: Sequence[ServedModel]) -> ServedModel:
    for served in models:
        if served.name == name:
            return served
    known = ", ".join(served.name for served in models)
    raise Refusal(404, f"no model '{printable(str(name))}' here; there is: {known}")


def _prompts(prompt: object) -> list:
    """Its tables: a list of text or objects is of several, any other value is one."""
    if not isinstance(prompt, list) or not prompt or isinstance(prompt[0], list):
        return [prompt]
    if len(prompt) > _MOST_PROMPTS:
        raise Refusal(400, f"at most {_MOST_PROMPTS} prompts in one request")
    return prompt


def _stops(stop: object) -> tuple[str, ...]:
    stops = [stop] if isinstance(stop, str) else stop
    if isinstance(stops, list) and len(stops) <= _MOST_STOPS:
        if all(isinstance(text, str) and text for text in stops):
            return tuple(stops)
    raise Refusal(400, f"stop must be text, or a list of at most {_MOST_STOPS}, none of it empty")


def _logprobs(fields: dict) -> int | None:
    count = fields.get("logprobs")
    if count is not None and (type(count) is not int or not 0 <= count <= _MOST_LOGPROBS):
        raise Refusal(400, f"logprobs must be a whole number from 0 to {_MOST_LOGPROBS}")
    return count


def _usage(asked: Asked, n_new: int) -> dict:
    n_prompt = sum(len(query.prompt) for query in asked.queries)
    said = {"prompt_tokens": n_prompt, "completion_tokens": n_new}
    return {**said, "total_tokens": n_prompt + n_new}


async def _events(
    head: dict, asked: Asked, told: AsyncIterator[Told | list[Scored]]
) -> AsyncIterator[bytes]:
    """Server-sent events: the text as it comes, why it ended, the usage if that is asked for."""
    text, sent, n_new, reason = "", 0, 0, None

    def choice(piece: str) -> bytes:
        own = {"index": 0, "text": piece, "logprobs": None, "finish_reason": reason}
        return _event({**head, "choices": [own]})

    try:
        async for item in told:
            if isinstance(item, Told):
                text, n_new = text + item.text, n_new + (not item.is_end)
                end = stop_at(text, asked.stops)
                upto = len(text) - held_back(text, asked.stops) if end is None else end
            else:
                end, upto = None, len(text)
                reason = "stop" if asked.queries[0].has_ended(item[0].ids) else "length"
            if upto > sent:
                piece, sent = text[sent:upto], upto
                yield choice(piece)
            if end is not None:
                reason = "stop"
                break
        yield choice("")
        if asked.has_usage:
            yield _event({**head, "choices": [], "usage": _usage(asked, n_new)})
        yield b"data: [DONE]\n\n"
    except Refusal as error:
        yield _event(error_of(error.status, str(error)))
    except Exception:
        yield _event(error_of(500, FAILED))
    finally:
        await told.aclose()


def _event(content: dict) -> bytes:
    return b"data: " + as_json(content) + b"\n\n"
