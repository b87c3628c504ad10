"""A web page on this machine, and an HTTP endpoint beside it: `python sample.py --serve`.

    GET  /           the page
    GET  /about      which prefixes and models there are
    POST /generate   {"table": {"name": "The Mill"}, "prefix": "prefix-tiny-1", "beams": 5}
                     -> {"by": "prefix-tiny-1", "sentences": [{"text": "...", "score": -4.2}]}
                     with "stream": true a line for each token as it comes, then that line
    POST /attention  the same with "tokens": how much of their attention went to the prefix
    POST /v1/completions, GET /v1/models   as OpenAI's clients expect them, see completions.py
    GET  /health, /metrics                 for monitoring

Answers are JSON on one line, except the page, streams and metrics; a refused request gets a status
of 4xx or 503 and {"error": "..."}. Importing this module raises ConfigError if the extra `serve` is
not installed.
"""

import asyncio
import base64
import contextlib
import functools
import hashlib
import re
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from mingpt_prefix.cli.terminal import complain
from mingpt_prefix.errors import ConfigError, printable
from mingpt_prefix.evaluation.sample_config import SampleConfig
from mingpt_prefix.serve.models import ServedModel, open_models
from mingpt_prefix.serve.requests import Limits, Refusal

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.middleware.cors import CORSMiddleware
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import HTMLResponse, Response
    from starlette.routing import Route

    from mingpt_prefix.serve.answers import FAILED, line
    from mingpt_prefix.serve.completions import Completions, error_of
    from mingpt_prefix.serve.endpoints import Service
    from mingpt_prefix.serve.monitoring import Monitored, log, log_to_stderr
    from mingpt_prefix.serve.watching import WatchedFolder
except ImportError:
    needed = "serving needs starlette, uvicorn and prometheus-client: pip install -e '.[serve]'"
    raise ConfigError(needed) from None

PAGE = Path(__file__).with_name("page.html")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
_LOOK_EVERY = 1.0  # seconds between two looks into a watched folder
_GRACE = 10  # seconds that answers in progress may still take when the server is told to stop

Endpoint = Callable[[Request], Awaitable[Response]]


def serve(config: SampleConfig) -> int:
    """Answer requests until SIGINT or SIGTERM, then finish those begun. Returns exit code 0.

    Raises:
        MingptPrefixError: like `open_models`, or if it cannot listen on the address.
    """
    _ = config.decoding  # refuses flags out of range before anything is loaded
    with _listen(config.host, config.port) as listening:
        models = open_models(config)
        host = f"[{config.host}]" if ":" in config.host else config.host
        where = f"http://{host}:{listening.getsockname()[1]}/"
        log_to_stderr()
        server = _Server(
            uvicorn.Config(
                make_app(models, config),
                loop="asyncio",
                http="h11",
                ws="none",
                log_level="critical",
                server_header=False,
                timeout_graceful_shutdown=2 * _GRACE,
            )
        )
        # uvicorn stops at these signals, and then raises them again for the handlers before it.
        is_main = threading.current_thread() is threading.main_thread()  # it alone has signals
        numbers = (signal.SIGINT, signal.SIGTERM) if is_main else ()
        before = {number: signal.signal(number, lambda *_: None) for number in numbers}
        print(f"Using {models[0].pipeline.origin}.", file=sys.stderr)
        served = server.config.app.state.service.models
        names = ", ".join(model.name for model in served)
        print(f"Serving {names} at {where} until Ctrl-C.", file=sys.stderr, flush=True)
        try:
            server.run(sockets=[listening])
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    return 0


class _Server(uvicorn.Server):
    """Refuses what still waits some time after it was told to stop."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        async def refuse_the_rest() -> None:
            await asyncio.sleep(_GRACE)
            await asyncio.to_thread(self.config.app.state.service.close)

        closing = asyncio.create_task(refuse_the_rest())
        await super().shutdown(sockets)
        closing.cancel()


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port <= 65535:
        raise ConfigError(f"port must lie in 0 to 65535, not {port}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"{printable(host)}, port {port}: cannot listen there: {why}") from None


def make_app(
    models: Sequence[ServedModel], config: SampleConfig, limits: Limits | None = None
) -> Starlette:
    """The application that answers with these models; its threads end when it is shut down.

    Raises:
        ConfigError: if the folder to watch does not exist.
    """
    watched = config.watch and WatchedFolder(config.watch, models, log.info)
    service = Service(models, config, limits or Limits())
    completions = Completions(service)
    if watched:
        service.watched = watched.scan()
    # A page elsewhere could point a name of its own at this machine: only ours are let through.
    hosts = {*LOOPBACK} if config.host in LOOPBACK else None

    def route(path: str, endpoint: Endpoint, method: str) -> Route:
        return Route(path, _guarded(endpoint, hosts), methods=[method])

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        looking = asyncio.create_task(keep_watching()) if watched else None
        yield
        if looking:
            looking.cancel()
        await asyncio.to_thread(service.close)

    async def keep_watching() -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            service.watched = await asyncio.to_thread(watched.scan)

    async def refused(request: Request, error: HTTPException) -> Response:
        return _refusal(request, error.status_code, error.detail, error.headers)

    middleware = [Middleware(Monitored, meters=service.meters)]
    if config.cors:
        allowed = {"allow_origins": config.cors, "allow_methods": ["GET", "POST"]}
        middleware.append(Middleware(CORSMiddleware, **allowed, allow_headers=["*"]))

    app = Starlette(
        routes=[
            route("/", _page_endpoint(), "GET"),
            route("/about", service.about, "GET"),
            route("/generate", service.generate, "POST"),
            route("/attention", service.attention, "POST"),
            route("/test-table", service.test_table, "GET"),
            route("/v1/completions", completions.completions, "POST"),
            route("/v1/models", completions.models, "GET"),
            route("/v1/models/{name:path}", completions.model, "GET"),
            route("/health", service.health, "GET"),
            route("/metrics", service.metrics, "GET"),
        ],
        middleware=middleware,
        exception_handlers={HTTPException: refused},
        lifespan=lifespan,
    )
    app.state.service = service
    return app


def _guarded(endpoint: Endpoint, hosts: set[str] | None) -> Endpoint:
    """`endpoint` for requests to `hosts` (None: any); errors become answers."""

    @functools.wraps(endpoint)
    async def answer(request: Request) -> Response:
        try:
            if hosts is not None and _host(request) not in hosts:
                raise Refusal(403, "the server answers to this machine's own names alone")
            return await endpoint(request)
        except Refusal as error:
            return _refusal(request, error.status, str(error))
        except ClientDisconnect:
            return _refusal(request, 499, "the client went away")
        except Exception as error:
            what = printable(f"{type(error).__name__}: {error}", 300)
            complain(f"{request.url.path}: {what}")
            return _refusal(request, 500, FAILED)

    return answer


def _refusal(
    request: Request, status: int, why: str, headers: Mapping[str, str] | None = None
) -> Response:
    is_openai = request.url.path.startswith("/v1/")
    return line(error_of(status, why) if is_openai else {"error": why}, status, headers)


def _host(request: Request) -> str | None:
    try:
        return urlsplit(f"//{request.headers.get('host', '')}").hostname
    except ValueError:
        return None


def _page_endpoint() -> Endpoint:
    """The page, which may run its own script and talk to this server, and nothing else."""
    html = PAGE.read_text(encoding="utf-8")

    def digest(tag: str) -> str:
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    policy = (
        f"default-src 'none'; script-src {digest('script')}; style-src {digest('style')};"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {
        "Content-Security-Policy": policy,
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-store",
    }

    async def page(_request: Request) -> Response:
        return HTMLResponse(html, headers=headers)

    return page
