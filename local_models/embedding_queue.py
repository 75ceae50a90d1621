"""Embedding requests of several clients, in micro-batches on one thread of their own.

A batch is whatever waits when the thread becomes free: nobody waits for company. Texts are taken
from the waiting requests in turn, so that a long list does not hold up a single question. Knows
asyncio and the embedder's signature. Does not know sockets.
"""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from local_models.embedder import Embedder
from local_models.messages import EngineBusy, InvalidPrompt

MAX_WAITING_TEXTS = 8192
"""Texts that may wait, of all requests together; one request's answer is 1.5 KB per text."""

BATCH_TOKENS = 512
"""Estimated tokens of a micro-batch: 30 ms on one core, the longest wait behind somebody else."""

_BYTES_PER_TOKEN = 4


class EmbeddingJob:
    """One request: texts in, vectors in the same order when ``done`` resolves to None.

    vectors: float32 [texts, dimensions]. compute_us: processor time of the thread, microseconds,
    shared among the texts of a batch by their tokens.
    """

    def __init__(self, texts: Sequence[str], max_tokens: int, dimensions: int) -> None:
        self.texts = texts
        self.max_tokens = max_tokens
        self.vectors: npt.NDArray[np.float32] = np.empty((len(texts), dimensions), np.float32)
        self.tokens: list[int] = []
        self.truncated: list[bool] = []
        self.compute_us = 0.0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.taken = 0

    def tokens_estimate(self, index: int) -> int:
        """Before tokenizing; wrong by a factor of two at most for prose."""
        return min(self.max_tokens, 2 + len(self.texts[index]) // _BYTES_PER_TOKEN)


class EmbeddingQueue:
    """Owns the thread. All methods belong to the event loop."""

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder
        self._waiting: deque[EmbeddingJob] = deque()
        self._waiting_texts = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="embedder")
        self._worker: asyncio.Task[None] | None = None

    @property
    def waiting_texts(self) -> int:
        """Texts that have been accepted and not yet embedded."""
        return self._waiting_texts

    def submit(self, texts: Sequence[str], max_tokens: int) -> EmbeddingJob:
        """Queue a request. Cancelling ``done`` takes its remaining texts out of the queue.

        Raises EngineBusy where too many texts wait, InvalidPrompt where none is given.
        """
        if not texts:
            raise InvalidPrompt("there is no text to embed.")
        if not 8 <= max_tokens <= self.embedder.max_tokens:
            raise InvalidPrompt(f"max_tokens must lie in 8..{self.embedder.max_tokens}.")
        if self._waiting_texts + len(texts) > MAX_WAITING_TEXTS:
            raise EngineBusy(f"{self._waiting_texts} texts wait for their embedding already.")
        job = EmbeddingJob(texts, max_tokens, self.embedder.dimensions)
        self._waiting.append(job)
        self._waiting_texts += len(texts)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.get_running_loop().create_task(self._work())
        return job

    def close(self) -> None:
        """Give up what waits and let the thread end."""
        for job in self._waiting:
            job.done.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while batch := self._take():
            try:
                await loop.run_in_executor(self._thread, self._embed, batch)
            except Exception as error:
                # An embedder that fails must fail its callers, not the loop that serves the others.
                for job in batch:
                    if not job.done.done():
                        job.done.set_exception(error)
            for job, count in batch.items():
                self._waiting_texts -= count
                if len(job.tokens) == len(job.texts) and not job.done.done():
                    job.done.set_result(None)

    def _take(self) -> dict[EmbeddingJob, int]:
        """Texts of the next batch: job → how many from where it stands. One text each, in turn."""
        batch: dict[EmbeddingJob, int] = {}
        room_tokens = BATCH_TOKENS
        while self._waiting and room_tokens > 0:
            job = self._waiting.popleft()
            if job.done.done():
                self._waiting_texts -= len(job.texts) - job.taken
                continue
            room_tokens -= job.tokens_estimate(job.taken)
            batch[job] = batch.get(job, 0) + 1
            job.taken += 1
            if job.taken < len(job.texts):
                self._waiting.append(job)
        return batch

    def _embed(self, batch: dict[EmbeddingJob, int]) -> None:
        """On the thread."""
        for max_tokens in {job.max_tokens for job in batch}:
            jobs = {job: count for job, count in batch.items() if job.max_tokens == max_tokens}
            texts = [text for job, count in jobs.items() for text in _next_texts(job, count)]
            start_ns = time.thread_time_ns()
            vectors, tokens, truncated = self.embedder.embed(texts, max_tokens=max_tokens)
            us_per_token = (time.thread_time_ns() - start_ns) / 1000 / max(1, sum(tokens))
            first = 0
            for job, count in jobs.items():
                last, done = first + count, len(job.tokens)
                job.vectors[done : done + count] = vectors[first:last]
                job.tokens += tokens[first:last]
                job.truncated += truncated[first:last]
                job.compute_us += us_per_token * sum(tokens[first:last])
                first = last


def _next_texts(job: EmbeddingJob, count: int) -> Sequence[str]:
    return job.texts[job.taken - count : job.taken]
