"""The batching queue by itself: what goes together, and what each job gets."""

import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError

import pytest
import torch
from serving import CONFIG

from mingpt_prefix.batch import PrefixKV
from mingpt_prefix.config import Decoding
from mingpt_prefix.generation.decoding import generate_scored
from mingpt_prefix.model import GPT2
from mingpt_prefix.serve import batching
from mingpt_prefix.serve.batching import Batcher, FunctionJob, Job, QueueFull, Stopped

GREEDY = Decoding(max_new_tokens=6)
SAMPLED = Decoding(max_new_tokens=6, temperature=2.0)
BEAMS = Decoding(max_new_tokens=6, beams=4)
EOS = CONFIG.eos_token_id


@pytest.fixture(scope="module")
def model() -> GPT2:
    model, generator = GPT2(CONFIG).double().eval(), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter.data, std=0.3, generator=generator)
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def prefixes() -> list[PrefixKV | None]:
    """Two of different lengths, and none, which is number -1."""
    generator = torch.Generator().manual_seed(1)
    kv = torch.randn(CONFIG.n_layer, 2, 9, CONFIG.n_head, CONFIG.head_dim, generator=generator)
    return [*map(PrefixKV.from_tensor, kv.double().split((3, 6), dim=2)), None]


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches that go through the model, as they go."""
    seen: list[int] = []

    def counted(model, prompts, *arguments, **named):
        seen.append(len(prompts))
        return generate_scored(model, prompts, *arguments, **named)

    monkeypatch.setattr(batching, "generate_scored", counted)
    return seen


class Gate:
    """A job that holds the batcher's thread until it is opened, so that others gather."""

    def __init__(self, batcher: Batcher) -> None:
        self.began, self.opened = threading.Event(), threading.Event()
        self.job = batcher.submit(FunctionJob(self._wait))
        assert self.began.wait(10)

    def _wait(self) -> None:
        self.began.set()
        assert self.opened.wait(10)


@pytest.fixture
def batcher(model) -> Iterator[Batcher]:
    batcher = Batcher(model, EOS, most_waiting=100, batch_size=8)
    yield batcher
    batcher.close()


def alone(model: GPT2, job: Job) -> list[tuple[list[int], object]]:
    """What `generate_scored` gives for this one."""
    first = None if job.prefix_from is None else [job.prefix_from]
    (found,) = generate_scored(
        model,
        [job.prompt],
        job.prefix,
        job.decoding,
        prefix_ids=None if job.prefix else [-1],
        prefix_from=first,
        seed=job.seed,
    )
    return [(s.ids, pytest.approx(s.score)) for s in found]


def run_together(batcher: Batcher, jobs: list[Job]) -> list[list[tuple[list[int], float]]]:
    gate = Gate(batcher)
    for job in jobs:
        batcher.submit(job)
    gate.opened.set()
    return [[tuple(s) for s in job.future.result(timeout=30)] for job in jobs]


def test_each_gets_what_it_gets_alone(batcher, model, prefixes, sizes) -> None:
    jobs = [Job([5, 6 + n % 4, 7][: 1 + n % 3], GREEDY, prefixes[n % 3 - 1]) for n in range(12)]
    jobs += [Job([5, n, 9], GREEDY, prefixes[n % 2], prefix_from=2) for n in range(4)]
    jobs += [Job([5, n, 9], BEAMS, prefixes[n % 2]) for n in range(4)]
    for job, found in zip(jobs, run_together(batcher, jobs), strict=True):
        assert found == alone(model, job)
    # 12 in front of their prompts, of which 8 at once; 4 infixes; of 4 beams 2 prompts at once.
    assert sorted(sizes) == [2, 2, 4, 4, 8]


def test_equal_samples(batcher, model, prefixes, sizes) -> None:
    """Equal prompts of one seed are told apart within a batch, so they go one after the other."""
    jobs = [Job([5, 6], SAMPLED, prefixes[n % 2], seed=7) for n in range(3)]
    jobs.append(Job([5, 6], SAMPLED, prefixes[0], seed=8))
    results = run_together(batcher, jobs)
    assert results == [alone(model, job) for job in jobs] and results[0] == results[2]
    assert sizes == [2, 1, 1]


def test_tokens_as_they_come(batcher, prefixes) -> None:
    told: dict[int, list[tuple[int, float]]] = {0: [], 1: [], 2: []}
    jobs = [
        Job(
            [5] * (3 - n),
            SAMPLED,
            prefixes[n - 1],
            seed=n,
            on_token=lambda *t, n=n: told[n].append(t),
        )
        for n in told
    ]
    for n, ((ids, score),) in enumerate(run_together(batcher, jobs)):
        assert [token for token, _ in told[n] if token != EOS] == ids
        assert sum(share for _, share in told[n]) == pytest.approx(score)


def test_those_nobody_waits_for(batcher, sizes) -> None:
    gate, jobs = Gate(batcher), [Job([5, n], GREEDY) for n in range(4)]
    for job in jobs:
        batcher.submit(job)
    jobs[0].abandon()
    jobs[2].abandon()
    gate.opened.set()
    assert jobs[1].future.result(timeout=30) and jobs[3].future.result(timeout=30)
    with pytest.raises(CancelledError):
        jobs[0].future.result()
    assert sizes == [2]


@pytest.mark.parametrize("rules", [GREEDY, BEAMS])
def test_a_batch_that_nobody_waits_for_ends_early(batcher, monkeypatch, rules) -> None:
    steps, job = [], Job([5], rules)

    def watched(*arguments, watch, **named):
        def counted(*told) -> None:
            steps.append(told)
            job.abandon()
            watch(*told)

        return generate_scored(*arguments, watch=counted, **named)

    monkeypatch.setattr(batching, "generate_scored", watched)
    batcher.submit(job)
    assert job.future.exception(timeout=30) is not None and len(steps) == 1


def test_an_error_is_its_own(batcher) -> None:
    job = batcher.submit(Job([CONFIG.vocab_size], GREEDY))
    with pytest.raises(ValueError, match="outside the vocabulary"):
        job.future.result(timeout=30)
    assert batcher.submit(FunctionJob(lambda: 5)).future.result(timeout=30) == 5


def test_a_full_queue_and_a_closed_one(model) -> None:
    batcher = Batcher(model, EOS, most_waiting=2)
    gate = Gate(batcher)
    first, second = batcher.submit(Job([5], GREEDY)), batcher.submit(Job([6], GREEDY))
    with pytest.raises(QueueFull):
        batcher.submit(Job([7], GREEDY))
    first.abandon()  # and so makes room
    third = batcher.submit(Job([7], GREEDY))
    closing = threading.Thread(target=batcher.close)
    closing.start()
    while not batcher._closed:
        pass
    gate.opened.set()
    closing.join(timeout=10)
    assert not closing.is_alive()
    for job in (second, third):
        assert isinstance(job.future.exception(timeout=5), Stopped)
    with pytest.raises(Stopped):
        batcher.submit(Job([8], GREEDY))
