"""`sample.py --serve`: what it answers, alone and with 200 requests in flight, and how it ends."""

import asyncio
import dataclasses
import http.client
import json
import math
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import CONFIG, FLAGS, PREFIXES, make_files, serving

import sample
from mingpt_prefix.config import Decoding
from mingpt_prefix.data.tables import parse_table
from mingpt_prefix.data.tokenizer import load_tokenizer
from mingpt_prefix.errors import MingptPrefixError
from mingpt_prefix.evaluation.sample_config import SampleConfig
from mingpt_prefix.serve import batching
from mingpt_prefix.serve.models import open_models
from mingpt_prefix.serve.requests import Limits, Refusal, read_fields, read_query

pytest.importorskip("starlette", reason="the extra serve is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")
from mingpt_prefix.serve.server import make_app

TABLE = "name[The Mill], eatType[pub]"
WHOSE = [{"prefix": name} for name in PREFIXES] + [{"prefix": None}, {"model": "tuned"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_files(tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with serving(folder, *FLAGS) as (url, _):
        yield url


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, timeout=30, trust_env=False) as client:
        yield client


def config_of(folder: Path, **fields) -> SampleConfig:
    beside = [folder / "long.safetensors", folder / "inner.safetensors", folder / "runs" / "tuned"]
    own = {"prefix": folder / "short.safetensors", "model": str(folder / "model")}
    own |= {"beside": tuple(beside), "dtype": "fp64", "max_new_tokens": 12}
    return SampleConfig(**own | fields)


@pytest.fixture(scope="module")
def voices(folder: Path) -> dict:
    """The same voices in this process, by name, to compare with."""
    return {voice.name: voice for voice in open_models(config_of(folder))}


def expected(voices: dict, ask: dict) -> list[dict]:
    """What `Pipeline` says to a request by itself."""
    name = ask.get("model") or (ask.get("prefix", "short") or "frozen")
    rules = {f.name: ask[f.name] for f in dataclasses.fields(Decoding) if f.name in ask}
    samples = any(ask.get(name) is not None for name in ("temperature", "top_k", "top_p"))
    rules = Decoding(**{"max_new_tokens": 12, "beams": 1 if samples else 5} | rules)
    table = parse_table(ask["table"])
    (said,) = voices[name].pipeline.write_scored([table], rules, [ask.get("seed", 0)])
    return [{"text": s.text, "score": pytest.approx(s.score, abs=1e-6)} for s in said]


# One request


def test_what_there_is(client) -> None:
    about = client.get("/about").json()
    kinds = {voice["name"]: voice["kind"] for voice in about["voices"]}
    assert kinds == dict.fromkeys(PREFIXES, "prefix") | {"frozen": "frozen", "tuned": "fine-tuned"}
    assert about["voices"][0]["slots"][0] == ["name", "The Mill"]


@pytest.mark.parametrize("whose", [{}, *WHOSE], ids=str)
def test_each_voice(client, voices, whose: dict) -> None:
    ask = {"table": TABLE, **whose}
    response = client.post("/generate", json=ask)
    assert response.status_code == 200 and response.headers["content-type"] == "application/json"
    assert response.text.count("\n") == 1 and response.text.endswith("\n")
    assert response.json()["sentences"] == expected(voices, ask)


@pytest.mark.parametrize(
    "rules",
    [
        {"beams": 3, "num_return_sequences": 2, "length_penalty": 0.5},
        {"temperature": 1.5, "top_k": 20, "top_p": 0.9, "seed": 3, "num_return_sequences": 2},
        {"max_new_tokens": 3, "no_repeat_ngram_size": 2},
        {"beams": 4, "length_penalty": -10},
        {"temperature": 0, "top_p": 0.9},
    ],
)
def test_each_way_of_decoding(client, voices, rules: dict) -> None:
    ask = {"table": TABLE, "prefix": "long", **rules}
    assert client.post("/generate", json=ask).json()["sentences"] == expected(voices, ask)


@pytest.mark.parametrize(
    ("defaults", "beams"), [(Decoding(beams=5), 8), (Decoding(temperature=0.8), 1)]
)
def test_several_sentences_are_of_as_many_beams_or_of_samples(voices, defaults, beams) -> None:
    fields = {"table": TABLE, "num_return_sequences": 8}
    query = read_query(fields, list(voices.values()), defaults, 0, Limits())
    assert query.decoding.beams == beams and query.decoding.num_return_sequences == 8


def test_forms_of_a_table(client) -> None:
    as_text = client.post("/generate", json={"table": TABLE}).json()
    as_object = {"table": {"name": "The Mill", "eatType": "pub"}}
    assert client.post("/generate", json=as_object).json() == as_text
    triples = {"table": [["The Mill", "near", "Café Rouge"]]}
    assert client.post("/generate", json=triples).json()["sentences"][0]["text"]


@pytest.mark.parametrize("rules", [{}, {"beams": 1}, {"temperature": 2.0, "seed": 5}])
def test_a_stream(client, rules: dict) -> None:
    ask = {"table": TABLE, "prefix": "long", **rules}
    with client.stream("POST", "/generate", json={**ask, "stream": True}) as response:
        assert response.headers["content-type"] == "application/x-ndjson"
        *tokens, last = [json.loads(line) for line in response.iter_lines()]
    assert last == client.post("/generate", json=ask).json()
    sentence = last["sentences"][0]
    assert " ".join("".join(token["text"] for token in tokens).split()) == sentence["text"]
    product = 1.0
    for token in tokens:
        product *= token["probability"]
        assert token["end"] == (token["token"] == CONFIG.eos_token_id)
    length = 1 if rules else len(tokens)  # a beam's score is divided by its length
    assert product ** (1 / length) == pytest.approx(math.exp(sentence["score"]))


def test_attention(client) -> None:
    ask = {"table": TABLE, "tokens": [300, 301, 302]}
    for name in PREFIXES:
        answer = client.post("/attention", json={**ask, "prefix": name}).json()
        assert [len(row) for row in answer["layers"]] == [3] * CONFIG.n_layer
        assert all(0 < share < 1 for row in answer["layers"] for share in row)
    for wrong in ({"prefix": None}, {"model": "tuned"}, {"tokens": []}):
        response = client.post("/attention", json={**ask, **wrong})
        assert response.status_code == 400 and "asked for with tokens" in response.text


def test_the_page_is_guarded(client) -> None:
    page = client.get("/")
    assert page.text.startswith("<!doctype html>")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    refused = client.get("/about", headers={"Host": "rebound.example"})
    assert refused.status_code == 403 and refused.json()["error"]
    assert client.get("/about", headers={"Host": "localhost:1"}).status_code == 200


# Bad requests

BAD = [
    (b"", 400, "not valid JSON"),
    (b"{", 400, "not valid JSON"),
    (b"\xff\xfe\xff", 400, "not valid JSON"),
    (b"[" * 60_000, 400, "not valid JSON"),
    (b"[]", 400, "must be a JSON object"),
    ({}, 400, "a table is missing"),
    ({"table": ""}, 400, "table: the table is empty"),
    ({"table": "name["}, 400, "table: ']' is missing"),
    ({"table": {"name": None}}, 400, "table: the table is empty"),
    ({"table": 5}, 400, "table: a table must be an object"),
    ({"table": {"a": "b" * 9000}}, 400, "table: the table is longer than 8,000"),
    ({"table": {"a": "b c " * 100}}, 400, "the model has room for 125"),
    ({"table": "a[\ud800]"}, 400, "table: control character"),
    ({"table": TABLE, "prefix": "short.safetensors"}, 404, "no prefix 'short.safetensors' here"),
    ({"table": TABLE, "prefix": "../short"}, 404, "no prefix '../short' here"),
    ({"table": TABLE, "prefix": "tuned"}, 404, "no prefix 'tuned' here; there is: short"),
    ({"table": TABLE, "prefix": "frozen"}, 404, "no prefix 'frozen' here"),
    ({"table": TABLE, "prefix": 3}, 400, "prefix must be a name"),
    ({"table": TABLE, "model": None}, 400, "model must be a name"),
    ({"table": TABLE, "model": "runs/tuned"}, 404, "no model 'runs/tuned' here; there is: tuned"),
    ({"table": TABLE, "model": "tuned", "prefix": None}, 400, "exclude each other"),
    ({"table": TABLE, "beam": 3}, 400, "unknown field 'beam'"),
    ({"table": TABLE, "beams": 0}, 400, "beams must be positive"),
    ({"table": TABLE, "beams": 1000}, 400, "beams must lie in 1 to 16 here, not 1000"),
    ({"table": TABLE, "beams": True}, 400, "beams must be a whole number"),
    ({"table": TABLE, "beams": 2.0}, 400, "beams must be a whole number"),
    ({"table": TABLE, "temperature": "hot"}, 400, "temperature must be a number"),
    ({"table": TABLE, "temperature": 1e-320}, 400, "temperature must lie in 0.01 to 100"),
    ({"table": TABLE, "temperature": 10**4000}, 400, "temperature must lie in"),
    ({"table": TABLE, "length_penalty": -1e5}, 400, "length-penalty must lie in"),
    (b'{"table": "a[b]", "temperature": NaN}', 400, "temperature must not be negative"),
    ({"table": TABLE, "length_penalty": 10**401}, 400, "length-penalty must lie in [-10, 10]"),
    ({"table": TABLE, "max_new_tokens": 10**6}, 400, "max-new-tokens must lie in 1 to 400"),
    ({"table": TABLE, "seed": -1}, 400, "seed must be a whole number"),
    ({"table": TABLE, "stream": 1}, 400, "stream must be true or false"),
    ({"table": TABLE, "stream": True, "num_return_sequences": 2}, 400, "of one sentence"),
    ({"table": TABLE, "tokens": [1]}, 400, "tokens are for /attention"),
    ({"table": TABLE, "tokens": [4096]}, 400, "tokens must be whole numbers from 0 to 4095"),
    ({"table": TABLE, "tokens": [1] * 128}, 400, "tokens must be a list of at most"),
    (b" " * 70_000, 413, "more than 65,536 bytes"),
]


@pytest.mark.parametrize(("body", "status", "what"), BAD, ids=lambda value: str(value)[:40])
def test_a_bad_one(client, body: bytes | dict, status: int, what: str) -> None:
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = client.post("/generate", content=body, headers={"Content-Type": "application/json"})
    assert (response.status_code, response.text.count("\n")) == (status, 1)
    assert response.json().keys() == {"error"} and what in response.json()["error"]
    assert len(response.content) < 500


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
VALUES = st.recursive(VALUES, lambda v: st.lists(v) | st.dictionaries(st.text(max_size=5), v))
NAMES = [field.name for field in dataclasses.fields(Decoding)]
NAMES += ["prefix", "model", "seed", "stream", "said", "tokens", "table"]


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4))
def test_any_request_is_taken_or_refused(voices, fields: dict) -> None:
    body = json.dumps({"table": TABLE, **fields}).encode()
    try:
        ask = read_query(read_fields(body), list(voices.values()), Decoding(), 0, Limits())
    except Refusal as error:
        assert error.status in (400, 404) and 0 < len(str(error)) < 400
        assert str(error).isprintable()
    else:
        assert 1 <= ask.decoding.max_new_tokens <= Limits().new_tokens and ask.prompt


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("POST", "/generate", 415), ("GET", "/generate", 405), ("GET", "/etc/passwd", 404)],
)
def test_not_what_it_answers(client, method: str, path: str, status: int) -> None:
    response = client.request(method, path)
    assert response.status_code == status and response.json().keys() == {"error"}


# Many at once


def various(number: int) -> dict:
    """Requests that differ in voice, table, and now and then in how they are decoded."""
    ask = {"table": f"name[Inn {number // 3}], near[{number % 7}]", **WHOSE[number % 5]}
    if number % 10 == 3:
        ask |= {"beams": 2}
    if number % 10 == 7:  # equal seeds, prompts that come again
        ask |= {"temperature": 1.5, "table": f"name[Inn {number % 3}]"}
    return ask


async def send_all(address: str, asks: list[dict]) -> list[httpx.Response]:
    """All at the same time, each on a connection of its own."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=address, timeout=60, limits=limits, trust_env=False) as c:
        return await asyncio.gather(*(c.post("/generate", json=ask) for ask in asks))


def test_200_in_flight(address, voices) -> None:
    asks = [various(number) for number in range(200)]
    bad = {number: {**asks[number], "beams": -1} for number in range(0, 200, 20)}
    responses = asyncio.run(send_all(address, [bad.get(i, ask) for i, ask in enumerate(asks)]))
    for number, (ask, response) in enumerate(zip(asks, responses, strict=True)):
        if number in bad:
            assert response.status_code == 400
        else:
            assert response.status_code == 200, response.text
            assert response.json()["sentences"] == expected(voices, ask)


def test_clients_that_hang_up_harm_nobody(address, voices) -> None:
    host = urlsplit(address)

    def hang_up(number: int) -> None:
        body = json.dumps({**various(number), "stream": number % 10 not in (3, 7), "seed": 1})
        connection = http.client.HTTPConnection(host.hostname, host.port)
        connection.request("POST", "/generate", body, {"Content-Type": "application/json"})
        if number % 4 == 0:  # after the first line of the answer
            connection.getresponse().readline()
        connection.close()

    def half_a_request(_number: int) -> None:
        with socket.create_connection((host.hostname, host.port)) as connection:
            connection.sendall(b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Le")

    with ThreadPoolExecutor(16) as pool:
        rude = [pool.submit(hang_up, number) for number in range(40)]
        rude += [pool.submit(half_a_request, number) for number in range(8)]
        asks = [various(number) for number in range(40)]
        responses = asyncio.run(send_all(address, asks))
        for one in rude:
            one.result()
    for ask, response in zip(asks, responses, strict=True):
        assert response.json()["sentences"] == expected(voices, ask)


# Limits, in this process, where they are small


async def in_app(folder: Path, limits: Limits, use) -> object:
    app = make_app(open_models(config_of(folder)), config_of(folder), limits)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client,
    ):
        return await use(client)


def test_a_full_queue(folder, monkeypatch) -> None:
    """While the model is busy, five more requests wait, and the others are refused."""
    real, busy, release = batching.generate_scored, threading.Event(), threading.Event()

    def held(*arguments, **named):
        busy.set()
        assert release.wait(30)
        return real(*arguments, **named)

    async def flood(client: httpx.AsyncClient) -> list[httpx.Response]:
        def ask(seed: int) -> asyncio.Task[httpx.Response]:
            return asyncio.create_task(
                client.post("/generate", json={"table": TABLE, "seed": seed})
            )

        first = ask(0)
        await asyncio.to_thread(busy.wait, 30)
        asked = [ask(seed) for seed in range(1, 31)]
        async with asyncio.timeout(30):
            while sum(task.done() for task in asked) < 25:
                await asyncio.sleep(0.01)
        release.set()
        return await asyncio.gather(first, *asked)

    monkeypatch.setattr(batching, "generate_scored", held)
    responses = asyncio.run(in_app(folder, Limits(waiting=5), flood))
    refused = [r for r in responses if r.status_code == 503]
    assert len(refused) == 25 and {r.status_code for r in responses} == {200, 503}
    assert all("too many" in r.json()["error"] and r.headers["retry-after"] for r in refused)


def test_no_time(folder) -> None:
    async def ask(client: httpx.AsyncClient) -> tuple[httpx.Response, httpx.Response, str]:
        late = await client.post("/generate", json={"table": TABLE})
        streamed = await client.post("/generate", json={"table": TABLE, "stream": True})
        return late, streamed, (await client.get("/about")).text

    late, streamed, about = asyncio.run(in_app(folder, Limits(seconds=0.001), ask))
    assert late.status_code == 503 and late.json() == {"error": "not done in time"}
    assert json.loads(streamed.text) == {"error": "not done in time"} and "voices" in about


def test_a_body_that_does_not_come(folder) -> None:
    async def dribble():
        yield b'{"table":'
        await asyncio.sleep(5)

    async def ask(client: httpx.AsyncClient) -> httpx.Response:
        headers = {"Content-Type": "application/json"}
        return await client.post("/generate", content=dribble(), headers=headers)

    began = time.monotonic()
    response = asyncio.run(in_app(folder, Limits(body_seconds=0.05), ask))
    assert response.status_code == 408 and time.monotonic() - began < 4


def test_a_mistake_of_ours(folder, monkeypatch, capsys) -> None:
    """It is one line here and 500 there, and the next request is answered."""
    real = batching.generate_scored

    def fails_once(*arguments, **named):
        monkeypatch.setattr(batching, "generate_scored", real)
        raise RuntimeError("an accident")

    async def ask(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [await client.post("/generate", json={"table": TABLE}) for _ in range(2)]

    monkeypatch.setattr(batching, "generate_scored", fails_once)
    first, second = asyncio.run(in_app(folder, Limits(), ask))
    assert first.status_code == 500 and "accident" not in first.text
    _program, _, said = capsys.readouterr().err.partition(": ")
    assert said == "/generate: RuntimeError: an accident\n"
    assert second.status_code == 200


# How it starts and ends


def test_an_interrupt_ends_it(folder, voices) -> None:
    with serving(folder, *FLAGS) as (address, process), ThreadPoolExecutor(20) as pool:
        asks = [{**various(i), "max_new_tokens": 40} for i in range(20)]
        sent = [pool.submit(httpx.post, f"{address}generate", json=ask, timeout=30) for ask in asks]
        assert sent[0].result().status_code == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=15) == 0 and process.complaints() == []
        for ask, answer in zip(asks, sent, strict=True):
            if answer.exception() is None:  # a connection that was not yet made is refused
                assert answer.result().json()["sentences"] == expected(voices, ask)
            else:
                assert isinstance(answer.exception(), httpx.ConnectError)


def test_sigterm_ends_it_and_what_would_last_is_refused(folder) -> None:
    hasty = "import mingpt_prefix.serve.server as server; server._GRACE = 0.3"
    ask = {"table": TABLE, "beams": 16, "max_new_tokens": 100, "min_new_tokens": 90}
    with (
        serving(folder, *FLAGS, changes=hasty) as (address, process),
        ThreadPoolExecutor(60) as pool,
    ):
        sent = [
            pool.submit(httpx.post, f"{address}generate", json=ask, timeout=30) for _ in range(60)
        ]
        assert httpx.get(f"{address}about").status_code == 200
        time.sleep(0.5)
        process.terminate()
        assert process.wait(timeout=15) == 0 and process.complaints() == []
        # A connection that was not yet made is refused too, in another way.
        answers = [one.result() for one in sent if one.exception() is None]
        refused = [answer for answer in answers if answer.status_code != 200]
        assert refused and all(r.json() == {"error": "the server is stopping"} for r in refused)
    with pytest.raises(httpx.ConnectError):
        httpx.get(address)


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (["--port", "70000"], "port must lie in 0 to 65535, not 70000"),
        (["--host", "not.a.host.invalid"], "not.a.host.invalid, port 8000: cannot listen"),
        (["--table", TABLE], "unknown arguments: --table"),
        (["--beams", "0"], "beams must be positive"),
        (["--port", "0", "--beside", "absent"], "absent: no such file"),
        (["--port", "0", "--watch", "absent"], "--watch: absent: no such folder"),
    ],
)
def test_flags_that_cannot_be(folder, monkeypatch, capsys, flags: list[str], what: str) -> None:
    monkeypatch.chdir(folder)
    assert sample.main(["--serve", "--model", "model", *flags]) == 2
    said = capsys.readouterr().err
    assert what in said and said.count("\n") == 1


def test_a_port_that_is_taken(capsys) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert sample.main(["--serve", "--port", port]) == 2
    assert f"127.0.0.1, port {port}: cannot listen there: Addr" in capsys.readouterr().err


def test_without_the_extra(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "mingpt_prefix.serve.server")
    assert sample.main(["--serve"]) == 2
    assert capsys.readouterr().err.endswith("prometheus-client: pip install -e '.[serve]'\n")


@pytest.mark.parametrize("flag", ["--beside", "--watch", "--cors"])
def test_flags_for_serving(capsys, flag: str) -> None:
    assert sample.main(["--table", TABLE, flag, "x"]) == 2
    assert f"sample.py: unknown arguments: {flag} x" in capsys.readouterr().err


# Which voices there are


def test_names_that_come_twice(folder, tmp_path) -> None:
    other = tmp_path / "runs" / "short"
    other.mkdir(parents=True)
    content = {"config": {"mode": "prefix"}, "result": {}}
    other.joinpath("run.json").write_text(json.dumps(content), encoding="utf-8")
    other.joinpath("prefix.safetensors").write_bytes((folder / "long.safetensors").read_bytes())
    beside = (folder / "short.safetensors", other, other / "prefix.safetensors")
    names = [voice.name for voice in open_models(config_of(folder, beside=beside))]
    assert names == ["short", "short-2", "short-3", "short-4", "frozen"]


def test_a_fine_tuned_model_alone(folder) -> None:
    tuned = config_of(folder, prefix=None, model=None, run=folder / "runs" / "tuned", beside=())
    assert [(v.name, v.kind) for v in open_models(tuned)] == [("tuned", "fine-tuned")]
    beside = dataclasses.replace(tuned, beside=(folder / "short.safetensors",))
    with pytest.raises(MingptPrefixError, match=r"short.safetensors: the prefix was made for"):
        open_models(beside)


def test_a_model_alone(folder) -> None:
    alone = config_of(folder, prefix=None, beside=())
    assert [(v.name, v.kind) for v in open_models(alone)] == [("frozen", "frozen")]


def test_tokens_that_are_parts_of_characters(client) -> None:
    """What a stream says is whole characters, and together what the answer says."""
    assert load_tokenizer("tiny").decode([200]) == "\ufffd"  # the tokenizer has such tokens
    ask = {"table": TABLE, "temperature": 50.0, "stream": True, "max_new_tokens": 60}
    for seed in range(3):
        response = client.post("/generate", json={**ask, "seed": seed})
        *tokens, last = [json.loads(line) for line in response.text.splitlines()]
        said = "".join(token["text"] for token in tokens)
        shown = "".join(c for c in " ".join(said.split()) if c.isprintable())
        assert shown.rstrip("\ufffd") == last["sentences"][0]["text"].rstrip("\ufffd")
