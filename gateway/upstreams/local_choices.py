"""Several generations that answer one request, read as one.

Knows streams of messages and how they end; does not know OpenAI.
"""

import asyncio
import time
from collections.abc import Callable, Sequence

from gateway.errors import UpstreamNonsense, UpstreamTimeout, UpstreamUnavailable
from gateway.upstreams.local_client import GenerationStream, before, refusal
from local_models.messages import Delta, Finished, GenerationRequest

Numbered = tuple[int, Delta | Finished]
"""A message, and the number of its choice."""

_NONSENSE = {
    "loop": "it repeated itself",
    "endless": "it repeated itself with other numbers",
    "script": "it was in another script than the question",
    "broken": "it had broken characters",
}


class Choices:
    """Messages of all choices as they come. Read until each has finished, or ``close`` early."""

    def __init__(
        self,
        generate: Callable[[GenerationRequest], GenerationStream],
        requests: Sequence[GenerationRequest],
    ) -> None:
        """Start one generation for each request, or none. Raises what ``generate`` raises."""
        self._streams: list[GenerationStream] = []
        try:
            for request in requests:
                self._streams.append(generate(request))
        except BaseException:
            self.close()
            raise
        self._running = list(enumerate(self._streams))
        self._arrival = asyncio.Event()
        if len(self._streams) > 1:
            for stream in self._streams:
                stream.on_arrival = self._arrival.set

    async def receive(self, deadline: float) -> Numbered:
        """The next message, or what ``GenerationStream.receive`` raises."""
        while (ready := self._next_ready()) is None:
            self._arrival.clear()
            await before(deadline, asyncio.ensure_future(self._arrival.wait()))
        number, stream = ready
        message = await stream.receive(deadline)
        # The one that was read goes last, so that no choice keeps the others waiting.
        self._running.remove(ready)
        if isinstance(message, Delta):
            self._running.append(ready)
        return number, message

    def _next_ready(self) -> tuple[int, GenerationStream] | None:
        if len(self._running) == 1:
            return self._running[0]
        return next((each for each in self._running if each[1].arrived), None)

    def close(self) -> None:
        """Cancel what still runs. Idempotent."""
        for stream in self._streams:
            stream.close()


def ended_well(message: Delta | Finished, deadline: float) -> None:
    """Raise where a message says that the answer will never be complete."""
    if not isinstance(message, Finished):
        return
    if message.reason == "nonsense":
        raise UpstreamNonsense(f"the local model's answer was ended: {_NONSENSE[message.message]}.")
    if message.reason in ("cancelled", "error"):
        if message.refused:
            words = f"The local model cannot serve this request: {message.message}."
            raise refusal(words, "unsupported_value")
        if time.monotonic() >= deadline:
            raise UpstreamTimeout("the local model did not finish in time.")
        raise UpstreamUnavailable(f"the local model stopped: {message.message or message.reason}.")
