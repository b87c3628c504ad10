"""The endpoints: from a request to its answer, by way of the queue of the model it asks.

One event loop answers many requests at a time; each model has a thread of its own (batching.py),
which gives the results. A client that goes away gives up its place.
"""

import asyncio
import codecs
import math
import random
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from mingpt_prefix.evaluation.sample_config import SampleConfig
from mingpt_prefix.generation.sampling import Scored
from mingpt_prefix.serve.answers import FAILED, answer, as_line, line, test_tables, usual_slots
from mingpt_prefix.serve.attention_heatmap import prefix_shares
from mingpt_prefix.serve.batching import Batcher, FunctionJob, Job, OnToken, QueueFull, Stopped
from mingpt_prefix.serve.models import ServedModel
from mingpt_prefix.serve.monitoring import Meters
from mingpt_prefix.serve.requests import Limits, Query, Refusal, read_fields, read_query


class Told(NamedTuple):
    """A token of a stream: its id, its text (whole characters), its log-probability."""

    token: int
    text: str
    share: float
    is_end: bool


class Service:
    """The queues of all models, and the endpoints that use them. `close` ends their threads.

    `watched` are prefixes on the first one's model; they may be replaced while it runs.
    """

    def __init__(self, models: Sequence[ServedModel], config: SampleConfig, limits: Limits) -> None:
        self.opened, self.limits, self.meters = list(models), limits, Meters()
        self.watched: list[ServedModel] = []
        self.defaults, self.seed = config.decoding, config.seed
        self.batchers: dict[int, Batcher] = {}
        for pipeline in {id(v.pipeline.model): v.pipeline for v in models}.values():
            batcher = Batcher(pipeline.model, pipeline.tokenizer.eos, limits.waiting)
            self.batchers[id(pipeline.model)] = batcher
        self.meters.waiting.set_function(lambda: sum(b.waiting for b in self.batchers.values()))

    @property
    def models(self) -> list[ServedModel]:
        return [*self.opened, *self.watched]

    def close(self) -> None:
        for batcher in self.batchers.values():
            batcher.close()

    async def about(self, _request: Request) -> Response:
        """The models, each with the slots of a table to begin with, and the default settings."""
        models = [
            {"name": v.name, "kind": v.kind, "origin": v.pipeline.origin, "slots": usual_slots(v)}
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

    async def health(self, _request: Request) -> Response:
        """Whether requests are accepted."""
        is_well = all(batcher.is_alive for batcher in self.batchers.values())
        return line({"status": "ok" if is_well else "failing"}, 200 if is_well else 503)

    async def metrics(self, _request: Request) -> Response:
        """All metrics, as Prometheus reads them."""
        text = generate_latest(self.meters.registry)
        return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def test_table(self, _request: Request) -> Response:
        """A table of the sample's test set, drawn at random."""
        return line({"slots": random.choice(test_tables())})

    async def generate(self, request: Request) -> Response:
        """Sentences for a table; as a stream, a line for each token and then one for the answer."""
        deadline = self.deadline()
        query = await self._read(request)
        if query.tokens:
            raise Refusal(400, "tokens are for /attention")
        if query.stream:
            lines = self._lines(query, self.stream(query, deadline))
            return StreamingResponse(lines, media_type="application/x-ndjson")
        job = self.submit(query.served, self.job(query))
        found = await self.result(job, request, deadline)
        self.count(query, found)
        return line(answer(query, found))

    async def attention(self, request: Request) -> Response:
        """(L, N): the share of attention that the prefix got as each of N new tokens was chosen,
        as the mean over a layer's heads."""
        deadline = self.deadline()
        query = await self._read(request)
        pipeline, first = query.served.pipeline, len(query.prompt) - 1
        if pipeline.prefix is None or not query.tokens:
            raise Refusal(400, "attention is asked for with tokens, of a prefix")

        def shares() -> list[list[float]]:
            # What chose a token is the query of the one before it.
            ids = [*query.prompt, *query.tokens[:-1]]
            found = prefix_shares(pipeline.model, ids, pipeline.prefix, 0, query.prefix_from)
            return found[:, :, first:].mean(1).tolist()

        job = self.submit(query.served, FunctionJob(shares))
        layers = await self.result(job, request, deadline)
        return line({"by": query.served.name, "layers": layers})

    async def _read(self, request: Request) -> Query:
        fields = await self.fields(request)
        query = read_query(fields, self.models, self.defaults, self.seed, self.limits)
        request.state.model = query.served.name
        return query

    def deadline(self) -> float:
        """When a request that arrives now must be answered, in the event loop's time."""
        return asyncio.get_running_loop().time() + self.limits.seconds

    async def fields(self, request: Request) -> dict:
        """The JSON object in a request's body."""
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
        return read_fields(bytes(body))

    def job(self, query: Query, on_token: OnToken | None = None) -> Job:
        return Job(
            query.prompt,
            query.decoding,
            query.served.pipeline.prefix,
            query.prefix_from,
            query.seed,
            on_token,
        )

    def submit(self, served: ServedModel, job: Job | FunctionJob) -> Job | FunctionJob:
        try:
            return self.batchers[id(served.pipeline.model)].submit(job)
        except QueueFull:
            raise Refusal(503, "too many requests are waiting; try again later") from None
        except Stopped:
            raise Refusal(503, "the server is stopping") from None

    async def result(self, job: Job | FunctionJob, request: Request, deadline: float) -> object:
        """The job's result, unless time runs out or the client goes away first."""
        answer, gone = asyncio.wrap_future(job.future), asyncio.ensure_future(_gone(request))
        left = deadline - asyncio.get_running_loop().time()
        try:
            await asyncio.wait({answer, gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if gone.done() and not answer.done():
                raise Refusal(499, "the client went away")
            if not answer.done():
                raise Refusal(503, "not done in time")
            return answer.result()
        except Stopped:
            raise Refusal(503, "the server is stopping") from None
        finally:
            gone.cancel()
            answer.cancel()
            job.abandon()

    def stream(self, query: Query, deadline: float) -> AsyncIterator[Told | list[Scored]]:
        """Each token as it is chosen, and at the end the whole job's result.

        The job is queued at once, and given up if nobody goes on iterating. Raises Refusal like
        `submit`; later if it is not done in time, or the server stops.
        """
        told: asyncio.Queue[tuple[int, float] | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        job = self.job(query, lambda *item: loop.call_soon_threadsafe(told.put_nowait, item))
        return self._told(query, self.submit(query.served, job), told, deadline)

    async def _told(
        self, query: Query, job: Job, told: asyncio.Queue, deadline: float
    ) -> AsyncIterator[Told | list[Scored]]:
        answer = asyncio.wrap_future(job.future)
        answer.add_done_callback(lambda _: told.put_nowait(None))
        tokenizer, loop = query.served.pipeline.tokenizer, asyncio.get_running_loop()
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        try:
            while (item := await asyncio.wait_for(told.get(), deadline - loop.time())) is not None:
                token, share = item
                is_end = token == tokenizer.eos
                piece = b"" if is_end else tokenizer.encoding.decode_single_token_bytes(token)
                yield Told(token, decoder.decode(piece, is_end), share, is_end)
            self.count(query, answer.result())
            yield answer.result()
        except TimeoutError:
            raise Refusal(503, "not done in time") from None
        except Stopped:
            raise Refusal(503, "the server is stopping") from None
        finally:
            answer.cancel()
            job.abandon()

    async def _lines(
        self, query: Query, told: AsyncIterator[Told | list[Scored]]
    ) -> AsyncIterator[bytes]:
        """A line for each token as it comes, and one for the answer, or for what went wrong."""
        try:
            async for item in told:
                if isinstance(item, Told):
                    said = {"token": item.token, "text": item.text}
                    chance = {"probability": math.exp(item.share), "end": item.is_end}
                    yield as_line({**said, **chance})
                else:
                    yield as_line(answer(query, item))
        except Refusal as error:
            yield as_line({"error": str(error)})
        except Exception:
            yield as_line({"error": FAILED})
        finally:
            await told.aclose()

    def count(self, query: Query, found: list[Scored]) -> None:
        """Count the tokens of an answer."""
        tokens = self.meters.tokens
        tokens.labels(query.served.name, "prompt").inc(len(query.prompt))
        tokens.labels(query.served.name, "new").inc(sum(len(s.ids) for s in found))


async def _gone(request: Request) -> None:
    """Returns when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
