"""What operators see of the server: a line on stderr for each request, and Prometheus's metrics."""

import logging
import sys
import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mingpt_prefix.errors import printable

log = logging.getLogger("mingpt_prefix.serve")


def log_to_stderr() -> None:
    """Let `log` write to stderr, and nowhere else."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO)


class Meters:
    """The metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registered = {"namespace": "mingpt_prefix", "registry": self.registry}
        what = "Requests answered"
        self.requests = Counter("requests", what, ["endpoint", "status"], **registered)
        what = "Seconds until an answer's end"
        self.seconds = Histogram("request_seconds", what, ["endpoint"], **registered)
        what = "Tokens of prompts, and new ones"
        self.tokens = Counter("tokens", what, ["model", "kind"], **registered)
        self.waiting = Gauge("waiting", "Jobs that wait for a model", **registered)


class Monitored:
    """An ASGI application whose requests are counted in `meters`, and logged.

    The endpoint's name and that of the model asked for are what the application leaves in the
    request's scope.
    """

    def __init__(self, app: ASGIApp, meters: Meters) -> None:
        self.app, self.meters = app, meters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        status, began = 500, time.perf_counter()

        async def send_noting(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, send_noting)
        finally:
            seconds = time.perf_counter() - began
            endpoint = getattr(scope.get("endpoint"), "__name__", "none")
            self.meters.requests.labels(endpoint, status).inc()
            self.meters.seconds.labels(endpoint).observe(seconds)
            whose = (scope.get("client") or ("-",))[0]
            asked = f"{scope['method']} {printable(scope['path'], 80)}"
            model = scope.get("state", {}).get("model", "-")
            log.info("%s %s %d %.3f s %s", whose, asked, status, seconds, model)
