"""The endpoints: from a request that has come to the answer, by the queue of the model asked.

Several requests are answered at a time, in one event loop; each model has a thread of its own
(batching.py), and results come back from there. A client that goes away gives its place up.
"""

import asyncio
import codecs
import json
import math
from collections.abc import AsyncIterator, Sequence

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from mingpt_prefix.batch import PrefixKV
from mingpt_prefix.data.tables import parse_table
from mingpt_prefix.data.templates import TEMPLATE_FORMAT, template_fields
from mingpt_prefix.evaluation.sample_config import SampleConfig
from mingpt_prefix.evaluation.table_to_text import one_line
from mingpt_prefix.evaluation.tasks import EXAMPLE
from mingpt_prefix.generation.sampling import Scored
from mingpt_prefix.serve.attention_heatmap import prefix_shares
from mingpt_prefix.serve.batching import Batcher, FunctionJob, Job, QueueFull, Stopped
from mingpt_prefix.serve.models import ServedModel
from mingpt_prefix.serve.requests import Limits, Query, Refusal, read_query

_FAILED = "the server failed at this request"


class Service:
    """The queues of all models, and what answers by them. `close` ends their threads."""

    def __init__(self, models: Sequence[ServedModel], config: SampleConfig, limits: Limits) -> None:
        self.models, self.limits = models, limits
        self.defaults, self.seed = config.decoding, config.seed
        self.batchers: dict[int, Batcher] = {}
        self.prefix_ids: dict[str, int] = {}
        for model in {id(v.pipeline.model): v.pipeline.model for v in models}.values():
            own = [v for v in models if v.pipeline.model is model]
            with_prefix = [v for v in own if v.pipeline.prefix is not None]
            self.prefix_ids |= {v.name: number for number, v in enumerate(with_prefix)}
            prefix = None
            if with_prefix:
                prefix = PrefixKV.pack([v.pipeline.prefix for v in with_prefix])
                prefix = prefix.to(model.device, model.wte.weight.dtype)
            eos = own[0].pipeline.tokenizer.eos
            self.batchers[id(model)] = Batcher(model, prefix, eos, limits.waiting)

    def close(self) -> None:
        for batcher in self.batchers.values():
            batcher.close()

    async def about(self, _request: Request) -> Response:
        """Which models there are, the slots each is used to, and the settings to begin with."""
        models = [
            {"name": v.name, "kind": v.kind, "origin": v.pipeline.origin, "slots": _slots(v)}
            for v in self.models
        ]
        most = self.limits.new_tokens
        defaults = {
            "max_new_tokens": min(self.defaults.max_new_tokens, most),
            "temperature": self.defaults.temperature,
            "beams": self.defaults.beams,
            "seed": self.seed,
        }
        return line({"voices": models, "defaults": defaults, "most_new_tokens": most})

    async def generate(self, request: Request) -> Response:
        """Sentences for a table; as a stream, a line for each token and then one for the whole."""
        deadline = asyncio.get_running_loop().time() + self.limits.seconds
        query = await self._read(request)
        if query.tokens:
            raise Refusal(400, "tokens are for /attention")
        if query.stream:
            told: asyncio.Queue[tuple[int, float] | None] = asyncio.Queue()
            job = self._submit(query.served, self._job(query, told))
            lines = self._lines(query, job, told, deadline)
            return StreamingResponse(lines, media_type="application/x-ndjson")
        job = self._submit(query.served, self._job(query))
        return line(_answer(query, await self._result(job, request, deadline)))

    async def attention(self, request: Request) -> Response:
        """(L, N): of N new tokens the share of attention that the prefix got as each was chosen,
        the mean over a layer's heads."""
        deadline = asyncio.get_running_loop().time() + self.limits.seconds
        query = await self._read(request)
        pipeline, first = query.served.pipeline, len(query.prompt) - 1
        if pipeline.prefix is None or not query.tokens:
            raise Refusal(400, "attention is asked for with tokens, of a prefix")

        def shares() -> list[list[float]]:
            # What chose a token is the query of the one before it.
            ids, infix = (
                [*query.prompt, *query.tokens[:-1]],
                first if query.served.pipeline.is_infix else None,
            )
            found = prefix_shares(pipeline.model, ids, pipeline.prefix, prefix_from=infix)
            return found[:, :, first:].mean(1).tolist()

        job = self._submit(query.served, FunctionJob(shares))
        layers = await self._result(job, request, deadline)
        return line({"by": query.served.name, "layers": layers})

    async def _read(self, request: Request) -> Query:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Refusal(415, "the body must be of content-type application/json")
        body, most = bytearray(), self.limits.body_bytes
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                async for part in request.stream():
                    body += part
                    if len(body) > most:
                        raise Refusal(413, f"the body has more than {most:,} bytes")
        except TimeoutError:
            raise Refusal(408, "the body did not arrive in time") from None
        return read_query(bytes(body), self.models, self.defaults, self.seed, self.limits)

    def _job(self, query: Query, told: asyncio.Queue | None = None) -> Job:
        loop = asyncio.get_running_loop()

        def on_token(token: int, share: float) -> None:
            loop.call_soon_threadsafe(told.put_nowait, (token, share))

        return Job(
            query.prompt,
            query.decoding,
            self.prefix_ids.get(query.served.name, -1),
            len(query.prompt) - 1 if query.served.pipeline.is_infix else None,
            query.seed,
            None if told is None else on_token,
        )

    def _submit(self, served: ServedModel, job: Job | FunctionJob) -> Job | FunctionJob:
        try:
            return self.batchers[id(served.pipeline.model)].submit(job)
        except QueueFull:
            raise Refusal(503, "too many requests are waiting; try again later") from None
        except Stopped:
            raise Refusal(503, "the server is stopping") from None

    async def _result(self, job: Job | FunctionJob, request: Request, deadline: float) -> object:
        """The job's result, unless time is up or the client goes away before."""
        answer, gone = asyncio.wrap_future(job.future), asyncio.ensure_future(_gone(request))
        left = deadline - asyncio.get_running_loop().time()
        try:
            await asyncio.wait({answer, gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise Refusal(503, "not done in time")  # a client that is gone does not read it
            return answer.result()
        except Stopped:
            raise Refusal(503, "the server is stopping") from None
        finally:
            gone.cancel()
            answer.cancel()
            job.abandon()

    async def _lines(
        self, query: Query, job: Job, told: asyncio.Queue, deadline: float
    ) -> AsyncIterator[bytes]:
        """A line for each token as it comes, and the answer as the last; or what went wrong."""
        answer = asyncio.wrap_future(job.future)
        answer.add_done_callback(lambda _: told.put_nowait(None))
        tokenizer, pieces = query.served.pipeline.tokenizer, codecs.getincrementaldecoder("utf-8")
        decoder, loop = pieces(errors="replace"), asyncio.get_running_loop()
        try:
            while (item := await asyncio.wait_for(told.get(), deadline - loop.time())) is not None:
                token, share = item
                is_end = token == tokenizer.eos
                piece = b"" if is_end else tokenizer.encoding.decode_single_token_bytes(token)
                said = {"token": token, "text": decoder.decode(piece, is_end)}
                yield _as_line({**said, "probability": math.exp(share), "end": is_end})
            yield _as_line(_answer(query, answer.result()))
        except TimeoutError:
            yield _as_line({"error": "not done in time"})
        except Stopped:
            yield _as_line({"error": "the server is stopping"})
        except Exception:
            yield _as_line({"error": _FAILED})
        finally:
            answer.cancel()
            job.abandon()


def line(content: dict, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """`content` as JSON on one line."""
    headers = {**(headers or {}), **({"Retry-After": "1"} if status == 503 else {})}
    return Response(_as_line(content), status, headers, media_type="application/json")


def _as_line(content: dict) -> bytes:
    return json.dumps(content, allow_nan=False).encode() + b"\n"


def _answer(query: Query, found: list[Scored]) -> dict:
    decode = query.served.pipeline.tokenizer.decode
    sentences = [{"text": one_line(decode(s.ids)), "score": s.score} for s in found]
    return {"by": query.served.name, "sentences": sentences}


async def _gone(request: Request) -> None:
    """Returns when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _slots(served: ServedModel) -> list[list[str]]:
    """A table to begin with: an example, or the empty fields of the model's template."""
    text_format = served.pipeline.text_format
    if text_format.startswith(TEMPLATE_FORMAT):
        return [[name, ""] for name in template_fields(text_format)]
    return [list(slot) for slot in parse_table(EXAMPLE).slots]
