"""Prompts that come one at a time, decoded together: a queue, and a thread that empties it.

    batcher = Batcher(model, eos=tokenizer.eos)
    job = batcher.submit(Job(ids, decoding, prefix))
    job.future.result()                    # as `generate_scored` gives them for this prompt alone
    batcher.close()

The thread takes the oldest job and those that can go through the model in the same batch: with the
same settings, each with a prefix of its own. What arrives meanwhile forms the next batch. Only this
thread uses the model.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mingpt_prefix.batch import PrefixKV
from mingpt_prefix.config import Decoding
from mingpt_prefix.generation.decoding import generate_scored
from mingpt_prefix.generation.sampling import Scored
from mingpt_prefix.model import GPT2

_GATHERING = 0.005  # seconds for others to arrive with the first

OnToken = Callable[[int, float], None]


class QueueFull(Exception):
    """No more jobs may wait."""


class Stopped(Exception):
    """The batcher was closed before the job was done."""


class _Abandoned(Exception):
    """Nobody waits for any of the batch's jobs now."""


@dataclass(eq=False)
class Job:
    """A prompt, how it is decoded, and the result, which `future` receives.

    `prefix` is the one prefix that it sees (None: none), in the model's dtype; `prefix_from` is as
    in `generate_scored`. The batcher's thread calls `on_token` with each token, including the end
    token, and its log-probability; after a beam search, with those of the best beam.
    """

    prompt: list[int]
    decoding: Decoding
    prefix: PrefixKV | None = None
    prefix_from: int | None = None
    seed: int = 0
    on_token: OnToken | None = None
    future: "Future[list[Scored]]" = field(default_factory=Future)
    abandoned: bool = False

    def abandon(self) -> None:
        """Nobody waits for it now: drop it, or let its batch go on without reporting its tokens."""
        self.abandoned = True
        self.future.cancel()


@dataclass(eq=False)
class FunctionJob:
    """A function for the batcher's thread to call; `future` receives its result."""

    function: Callable[[], object]
    future: "Future[object]" = field(default_factory=Future)

    def abandon(self) -> None:
        self.future.cancel()


class Batcher:
    """The queue of one model, and the thread that empties it.

    At most `most_waiting` jobs wait. At most `batch_size` sequences go through the model together,
    counting each job's beams; a job with more goes by itself.
    """

    def __init__(
        self,
        model: GPT2,
        eos: int,
        most_waiting: int = 512,
        batch_size: int = 32,
    ) -> None:
        self.model, self.eos = model, eos
        self.most_waiting, self.batch_size = most_waiting, batch_size
        self._waiting: list[Job | FunctionJob] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many jobs wait."""
        return len(self._waiting)

    @property
    def is_alive(self) -> bool:
        """Whether jobs are still accepted and done."""
        return self._thread.is_alive() and not self._closed

    def submit(self, job: Job | FunctionJob) -> Job | FunctionJob:
        """Put `job` at the end of the queue, and return it.

        Raises:
            QueueFull: if too many are waiting.
            Stopped: after `close`.
        """
        with self._changed:
            if self._closed:
                raise Stopped
            if len(self._waiting) >= self.most_waiting:
                # Jobs that nobody waits for do not count.
                self._waiting = [j for j in self._waiting if not j.future.cancelled()]
            if len(self._waiting) >= self.most_waiting:
                raise QueueFull
            self._waiting.append(job)
            self._changed.notify()
        return job

    def close(self) -> None:
        """End the thread after its current step; jobs that are not done get `Stopped`."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while jobs := self._next():
            self._run(jobs)
        for job in self._waiting:
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(Stopped())

    def _next(self) -> list[Job] | list[FunctionJob]:
        """Wait for the next batch; nothing after `close`."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
            time.sleep(_GATHERING)
            with self._changed:
                if self._closed:
                    return []
                chosen = _together(self._waiting, self.batch_size)
                self._waiting = [job for job in self._waiting if job not in chosen]
            jobs = [job for job in chosen if job.future.set_running_or_notify_cancel()]
            if jobs:
                return jobs

    def _run(self, jobs: list[Job] | list[FunctionJob]) -> None:
        try:
            if isinstance(jobs[0], FunctionJob):
                results = [jobs[0].function()]
            else:
                results = self._decode(jobs)
        except Exception as error:
            if isinstance(error, _Abandoned) and self._closed:
                error = Stopped()
            for job in jobs:
                job.future.set_exception(error)
        else:
            for job, result in zip(jobs, results, strict=True):
                job.future.set_result(result)

    def _decode(self, jobs: list[Job]) -> list[list[Scored]]:
        def watch(rows: list[int], tokens: list[int], shares: list[float]) -> None:
            if self._closed or all(job.abandoned for job in jobs):
                raise _Abandoned
            for row, token, share in zip(rows, tokens, shares, strict=True):
                if jobs[row].on_token is not None and not jobs[row].abandoned:
                    jobs[row].on_token(token, share)

        in_front = jobs[0].prefix_from is None
        prefixes = list({id(p): p for job in jobs if (p := job.prefix) is not None}.values())
        numbers = {id(None): -1, **{id(prefix): n for n, prefix in enumerate(prefixes)}}
        results = generate_scored(
            self.model,
            [job.prompt for job in jobs],
            PrefixKV.pack(prefixes) if prefixes else None,
            jobs[0].decoding,
            prefix_ids=[numbers[id(job.prefix)] for job in jobs],
            prefix_from=None if in_front else [job.prefix_from for job in jobs],
            eos=self.eos,
            seed=[job.seed for job in jobs],
            batch_size=self.batch_size,
            watch=watch,
        )
        for job, (best, *_) in zip(jobs, results, strict=True):
            if job.decoding.beams > 1 and job.on_token is not None and not job.abandoned:
                self._report_beam(job, best.ids)
        return results

    def _report_beam(self, job: Job, ids: list[int]) -> None:
        """Report a beam's tokens: one pass of the model gives their log-probabilities."""
        in_front = job.prefix is not None and job.prefix_from is None
        rows = int(job.prefix.lengths[0]) if in_front else 0
        room = self.model.config.n_positions - rows - len(job.prompt)
        has_ended = len(ids) < min(job.decoding.max_new_tokens, room)
        tokens = [*ids, self.eos] if has_ended else ids
        if not tokens:  # the prompt leaves no room
            return
        shares = log_probabilities(self.model, job.prompt, tokens, job.prefix, job.prefix_from)
        for token, own in zip(tokens, shares, strict=True):
            job.on_token(token, float(own[token]))


@torch.inference_mode()
def log_probabilities(
    model: GPT2,
    prompt: list[int],
    tokens: list[int],
    prefix: PrefixKV | None,
    prefix_from: int | None,
) -> Tensor:
    """(N, V): the log-probabilities of all tokens at the place of each of N `tokens` behind the
    prompt."""
    first = None if prefix_from is None else [prefix_from]
    (logits,) = model.logits([[*prompt, *tokens[:-1]]], prefix, None, first)
    return logits[len(prompt) - 1 :].log_softmax(-1)


def _together(waiting: list[Job | FunctionJob], most: int) -> list[Job] | list[FunctionJob]:
    """The first of those waiting, and others that can go with it: at most `most` sequences.

    A prompt that is sampled twice with one seed in a batch would get different samples, so the
    second one waits.
    """
    first = waiting[0]
    if isinstance(first, FunctionJob):
        return [first]
    chosen: dict[object, Job] = {}
    for job in waiting:
        is_alike = isinstance(job, Job) and job.decoding == first.decoding
        if is_alike and (job.prefix_from is None) == (first.prefix_from is None):
            chosen.setdefault((job.seed, *job.prompt) if job.decoding.samples else id(job), job)
    width = max(first.decoding.beams, first.decoding.num_return_sequences)
    return list(chosen.values())[: max(1, most // width)]
