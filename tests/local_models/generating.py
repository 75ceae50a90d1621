"""Run requests through an engine and wait for their ends."""

import os
import queue
from collections.abc import Iterable
from typing import Any

import msgspec

from local_models.engine import Delta, Engine, Finished, GenerationRequest, SamplingParams

WAIT_SECONDS_MAX = float(os.environ.get("TESTS_WAIT_SECONDS", "60"))
"""For one message. An emulated CPU needs more."""


class Outcome(msgspec.Struct):
    """All that one request delivered."""

    deltas: list[Delta]
    finished: Finished

    @property
    def text(self) -> str:
        """The answer."""
        return "".join(delta.text for delta in self.deltas)


class Inbox:
    """Collects what an engine delivers, from its thread."""

    def __init__(self) -> None:
        self._arrived: queue.SimpleQueue[tuple[str, Delta | Finished]] = queue.SimpleQueue()
        self._deltas: dict[str, list[Delta]] = {}

    def deliver(self, request_id: str, message: Delta | Finished) -> None:
        """The callback to give to ``Engine.submit``."""
        self._arrived.put((request_id, message))

    def next(self) -> tuple[str, Delta | Finished]:
        """The next message of any request."""
        request_id, message = self._arrived.get(timeout=WAIT_SECONDS_MAX)
        if isinstance(message, Delta):
            self._deltas.setdefault(request_id, []).append(message)
        return request_id, message

    def outcome(self) -> tuple[str, Outcome]:
        """Wait until some request ends."""
        while True:
            request_id, message = self.next()
            if isinstance(message, Finished):
                return request_id, Outcome(self._deltas.pop(request_id, []), message)


def request(request_id: str, prompt: str, max_tokens: int = 16, **params: Any) -> GenerationRequest:
    """A chat request of one message; greedy unless told otherwise."""
    sampling = SamplingParams(**({"max_tokens": max_tokens, "temperature": 0.0} | params))
    message = {"role": "user", "content": prompt}
    return GenerationRequest(request_id=request_id, messages=(message,), params=sampling)


def run(engine: Engine, requests: Iterable[GenerationRequest]) -> dict[str, Outcome]:
    """Submit all at once and wait for all."""
    inbox = Inbox()
    submitted = 0
    for each in requests:
        engine.submit(each, inbox.deliver)
        submitted += 1
    return dict(inbox.outcome() for _ in range(submitted))
