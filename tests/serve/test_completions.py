"""`/v1`, by OpenAI's own client; metrics, the request log, watched folders, CORS."""

import asyncio
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
from serving import FLAGS, PREFIXES, Server, make_files, serving

from mingpt_prefix.adapters.prefix_file import PrefixInfo, save_prefix
from mingpt_prefix.checkpoints.pretrained import load_model
from mingpt_prefix.config import Decoding
from mingpt_prefix.data.tables import TEXT_FORMAT, parse_table
from mingpt_prefix.evaluation.sample_config import SampleConfig
from mingpt_prefix.serve.models import ServedModel, open_models

pytest.importorskip("starlette", reason="the extra serve is not installed")
openai = pytest.importorskip("openai", reason="the extra dev is not installed")
prometheus = pytest.importorskip("prometheus_client.parser", reason="no prometheus-client")

TABLE = "name[The Mill], eatType[pub]"
ORIGIN = "https://page.example"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_files(tmp_path_factory.mktemp("serve"))
    (folder / "watched").mkdir()
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[tuple[str, Server]]:
    with serving(folder, *FLAGS, "--watch", "watched", "--cors", ORIGIN) as running:
        yield running


@pytest.fixture(scope="module")
def web(server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server[0], timeout=30, trust_env=False) as client:
        yield client


@pytest.fixture(scope="module")
def client(server) -> Iterator[openai.OpenAI]:
    http = httpx.Client(trust_env=False, timeout=60)
    yield openai.OpenAI(base_url=f"{server[0]}v1", api_key="none", max_retries=0, http_client=http)


@pytest.fixture(scope="module")
def served(folder: Path) -> dict[str, ServedModel]:
    """The same models in this process, by name, to compare with."""
    beside = [folder / f"{name}.safetensors" for name in ("long", "inner")]
    config = SampleConfig(
        prefix=folder / "short.safetensors",
        model=str(folder / "model"),
        beside=(*beside, folder / "runs" / "tuned"),
        dtype="fp64",
    )
    return {model.name: model for model in open_models(config)}


def expected(served: dict, name: str, table: str, seed: int = 0, **rules) -> list[str]:
    rules = Decoding(**{"max_new_tokens": 12} | rules)
    (said,) = served[name].pipeline.write_scored([parse_table(table)], rules, [seed])
    return [sentence.text for sentence in said]


def one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def drawn(folder: Path, seed: int) -> tuple[torch.Tensor, PrefixInfo]:
    """A prefix for the model in `folder`, of a length of its own."""
    generator = torch.Generator().manual_seed(seed)
    kv = torch.randn(2, 2, 1 + seed % 5, 2, 16, generator=generator)
    digest = load_model(str(folder / "model")).fingerprint
    return kv, PrefixInfo("", digest, kv.shape[2], TEXT_FORMAT, "prefix", {})


# The client


def test_models(client) -> None:
    names = [model.id for model in client.models.list()]
    assert names == [*PREFIXES, "frozen", "tuned"]
    assert client.models.retrieve("tuned").owned_by == "mingpt-prefix"
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-4' here; there is: short"):
        client.models.retrieve("gpt-4")


@pytest.mark.parametrize("name", [*PREFIXES, "frozen", "tuned"])
def test_a_completion(client, served, name: str) -> None:
    answer = client.completions.create(model=name, prompt=TABLE, temperature=0)
    (choice,) = answer.choices
    assert [one_line(choice.text)] == expected(served, name, TABLE)
    assert choice.finish_reason == "length" and answer.model == name
    assert answer.usage.prompt_tokens == len(served[name].pipeline.prompt(parse_table(TABLE)))
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12


def test_rules_of_decoding(client, served) -> None:
    ask = {"model": "long", "prompt": TABLE, "n": 3, "max_tokens": 5, "seed": 7}
    sampled = client.completions.create(**ask, temperature=1.5, top_p=0.9)
    rules = {"num_return_sequences": 3, "max_new_tokens": 5, "temperature": 1.5, "top_p": 0.9}
    texts = expected(served, "long", TABLE, 7, **rules)
    assert [one_line(choice.text) for choice in sampled.choices] == texts
    assert [choice.index for choice in sampled.choices] == [0, 1, 2]
    assert len(set(texts)) > 1 and sampled.usage.completion_tokens == 15
    beams = client.completions.create(**ask, extra_body={"beams": 4, "length_penalty": 0.5})
    rules = {"num_return_sequences": 3, "max_new_tokens": 5, "beams": 4, "length_penalty": 0.5}
    assert [one_line(c.text) for c in beams.choices] == expected(served, "long", TABLE, **rules)


def test_several_prompts_in_any_spelling(client, served) -> None:
    triples = '[["The Mill", "near", "Café Rouge"]]'
    prompts = ["name[Café]", '{"name": "Café"}', {"name": "Café"}, triples]
    answer = client.completions.create(model="short", prompt=prompts, temperature=0)
    first, second, third, last = [choice.text for choice in answer.choices]
    assert first == second == third != last
    assert [one_line(first)] == expected(served, "short", "name[Café]")
    own = client.completions.create(model="short", prompt=json.loads(triples), temperature=0)
    assert own.choices[0].text == last


def test_where_it_ends(client) -> None:
    ask = {"model": "tuned", "prompt": TABLE, "temperature": 1.5, "max_tokens": 12, "seed": 3}
    whole = client.completions.create(**ask).choices[0].text
    stop = whole[len(whole) // 2 :][:3]
    stopped = client.completions.create(**ask, stop=["nowhere", stop])
    assert stopped.choices[0].text == whole[: whole.index(stop)]
    assert stopped.choices[0].finish_reason == "stop"
    assert 0 < stopped.usage.completion_tokens < 12
    streamed = client.completions.create(**ask, stop=stop, stream=True)
    pieces = [chunk.choices[0] for chunk in streamed]
    assert "".join(piece.text for piece in pieces) == stopped.choices[0].text
    assert [piece.finish_reason for piece in pieces[-2:]] == [None, "stop"]


@pytest.mark.parametrize("rules", [{"temperature": 0}, {"temperature": 1.5, "seed": 3}, {}])
def test_a_stream(client, rules: dict) -> None:
    ask = {"model": "inner", "prompt": TABLE, **rules}
    whole = client.completions.create(**ask)
    usage = {"include_usage": True}
    *chunks, last = client.completions.create(**ask, stream=True, stream_options=usage)
    assert len(chunks) > 3 and last.choices == [] and last.usage == whole.usage
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_logprobs(client, served) -> None:
    ask = {"model": "long", "prompt": TABLE, "temperature": 0, "max_tokens": 6}
    (choice,) = client.completions.create(**ask, logprobs=3).choices
    said = choice.logprobs
    assert "".join(said.tokens) == choice.text and len(said.tokens) == 6
    starts = [sum(map(len, said.tokens[:i])) for i in range(6)]
    assert said.text_offset == starts
    for chance, likeliest in zip(said.token_logprobs, said.top_logprobs, strict=True):
        assert len(likeliest) == 3 and chance == max(likeliest.values()) < 0
    pipeline = served["long"].pipeline
    rules = Decoding(max_new_tokens=6)
    ((sentence,),) = pipeline.write_scored([parse_table(TABLE)], rules)
    assert sum(said.token_logprobs) == pytest.approx(sentence.score)


BAD = [
    ({"model": "nobody"}, openai.NotFoundError, "no model 'nobody' here"),
    ({"prompt": "name["}, openai.BadRequestError, "table: ']' is missing"),
    ({"prompt": []}, openai.BadRequestError, "table: "),
    ({"prompt": [TABLE] * 33}, openai.BadRequestError, "at most 32 prompts"),
    ({"max_tokens": 0}, openai.BadRequestError, "max_tokens must be positive"),
    ({"n": 2, "temperature": 0}, openai.BadRequestError, "n needs as many beams, or sampling"),
    ({"echo": True}, openai.BadRequestError, "echo is not supported here"),
    ({"logprobs": 6}, openai.BadRequestError, "logprobs must be a whole number from 0 to 5"),
    ({"stop": [""]}, openai.BadRequestError, "stop must be text"),
    ({"stream": True, "logprobs": 1}, openai.BadRequestError, "a stream is of one prompt"),
    ({"extra_body": {"prefix": "long"}}, openai.BadRequestError, "unknown field 'prefix'"),
]


@pytest.mark.parametrize(("change", "error", "what"), BAD, ids=str)
def test_a_bad_one(client, change: dict, error: type, what: str) -> None:
    with pytest.raises(error) as caught:
        client.completions.create(**{"model": "short", "prompt": TABLE} | change)
    assert what in caught.value.body["message"]
    assert caught.value.body["type"] == "invalid_request_error"


def test_errors_have_openais_shape(web) -> None:
    for response in (
        web.get("/v1/nothing"),
        web.get("/v1/completions"),
        web.post("/v1/completions"),
    ):
        assert response.status_code >= 404
        assert response.json()["error"].keys() == {"message", "type", "param", "code"}


# Many at once


def test_500_requests_over_16_prefixes(folder: Path, tmp_path: Path) -> None:
    """64 in flight, each on a table of its own: every one gets what its prefix says alone."""
    many = tmp_path / "many"
    many.mkdir()
    for number in range(16):
        save_prefix(many / f"p{number}.safetensors", *drawn(folder, 100 + number))
    first, *rest = sorted(many.iterdir())
    flags = {"model": str(folder / "model"), "dtype": "fp64"}
    models = open_models(SampleConfig(prefix=first, beside=tuple(rest), **flags))
    asked = [(f"p{n % 16}", f"name[Inn {n}], near[{n % 7}]") for n in range(500)]
    rules, wanted = Decoding(max_new_tokens=12, temperature=1.5), {}
    for own in models:
        seeds = [seed for seed, (name, _) in enumerate(asked) if name == own.name]
        tables = [parse_table(asked[seed][1]) for seed in seeds]
        said = own.pipeline.write(tables, rules, seeds)
        # Bytes at the end that are part of a character are no text of a completion.
        wanted |= zip(seeds, (text.rstrip(" \ufffd") for text in said), strict=True)

    async def ask_all(url: str) -> list[str]:
        # A machine that is too busy for the server's limits of time is asked again.
        http = httpx.AsyncClient(trust_env=False, timeout=60)
        client = openai.AsyncOpenAI(
            base_url=f"{url}v1", api_key="none", max_retries=9, http_client=http
        )
        in_flight = asyncio.Semaphore(64)

        async def ask(seed: int) -> str:
            (name, table), rules = asked[seed], {"temperature": 1.5, "max_tokens": 12}
            async with in_flight:
                answer = await client.completions.create(
                    model=name, prompt=table, seed=seed, **rules
                )
            return one_line(answer.choices[0].text).rstrip(" \ufffd")

        async with client:
            return await asyncio.gather(*map(ask, range(500)))

    flags = ["--model", str(folder / "model"), "--dtype", "fp64", "--prefix", str(first)]
    with serving(tmp_path, *flags, "--watch", str(many)) as (url, _):
        assert asyncio.run(ask_all(url)) == [wanted[seed] for seed in range(500)]
    assert len(set(wanted.values())) == 500


# What operators use


def test_health_metrics_and_the_log(web, server) -> None:
    assert web.get("/health").json() == {"status": "ok"}
    before = read_metrics(web)
    ask = {"table": TABLE, "prefix": "long", "beams": 1}
    for fields in (ask, ask, {**ask, "beams": -1}):
        web.post("/generate", json=fields)
    web.get("/a%0Ab")
    after = read_metrics(web)
    grown = {key: after[key] - before.get(key, 0) for key in after}
    assert grown["requests", "generate", "200"] == 2 and grown["requests", "generate", "400"] == 1
    assert grown["requests", "none", "404"] == 1 and grown["tokens", "new", "long"] == 24
    assert after["waiting",] == 0
    until(lambda: "GET /metrics 200" in server[1].said().splitlines()[-1])
    *_, good, bad, strange, _ = server[1].said().splitlines()
    assert good.split(" ", 3)[3].startswith("POST /generate 200") and good.endswith(" s long")
    assert "POST /generate 400" in bad and "GET /a\\nb 404" in strange
    assert server[1].complaints() == []


def read_metrics(web: httpx.Client) -> dict[tuple[str, ...], float]:
    text = web.get("/metrics").text
    return {
        (family.name.removeprefix("mingpt_prefix_"), *sample.labels.values()): sample.value
        for family in prometheus.text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith(("_created", "_bucket", "_sum"))
    }


def test_prefixes_come_change_and_go(folder: Path, client, server) -> None:
    def names() -> set[str]:
        return {model.id for model in client.models.list()}

    def ask(name: str) -> str:
        return client.completions.create(model=name, prompt=TABLE, temperature=0).choices[0].text

    usual, film = names(), folder / "watched" / "films.safetensors"
    film.write_bytes(b"half of a file")
    until(lambda: "films.safetensors: " in server[1].said())
    assert names() == usual
    save_prefix(film, *drawn(folder, 3))
    until(lambda: "films" in names())
    first = ask("films")
    run = folder / "watched" / "short"
    run.mkdir()
    save_prefix(run / "prefix.safetensors", *drawn(folder, 3))
    save_prefix(film, *drawn(folder, 4))
    shutil.copy(folder / "long.safetensors", folder / "watched")  # it is served already
    until(lambda: names() == usual | {"films", "short-2"} and ask("films") != first)
    assert ask("short-2") == first
    film.unlink()
    shutil.rmtree(run)
    until(lambda: names() == usual)
    with pytest.raises(openai.NotFoundError):
        ask("films")


def until(condition) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_pages_of_other_origins(web) -> None:
    asks = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}
    asks["Access-Control-Request-Headers"] = "authorization,content-type"
    allowed = web.options("/v1/completions", headers=asks)
    assert allowed.headers["access-control-allow-origin"] == ORIGIN
    answer = web.get("/about", headers={"Origin": ORIGIN})
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    refused = web.get("/about", headers={"Origin": "https://other.example"})
    assert "access-control-allow-origin" not in refused.headers


def test_text_is_utf_8_and_slots_are_ticked(web) -> None:
    ask = {"model": "tuned", "prompt": "name[Café]", "temperature": 60, "n": 16, "max_tokens": 100}
    texts = web.post("/v1/completions", json=ask)
    assert any(ord(c) > 127 for choice in texts.json()["choices"] for c in choice["text"])
    assert "\\u" not in texts.text.replace("\\u00", "")  # control characters alone are escaped
    slots = web.get("/test-table").json()["slots"]
    ask = {"table": dict(slots), "said": True, "beams": 1}
    (sentence,) = web.post("/generate", json=ask).json()["sentences"]
    assert sentence["said"] == []  # of a model that learned nothing
    ask["table"] = [["a", "b", "c"]]
    assert "not for triples" in web.post("/generate", json=ask).json()["error"]
