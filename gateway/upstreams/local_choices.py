"""Several generations that answer one request, read as one.

Knows streams of messages; does not know OpenAI.
"""

import asyncio
from collections.abc import Callable, Sequence

from gateway.upstreams.local_client import GenerationStream, before
from local_models.messages import Delta, Finished, GenerationRequest

Numbered = tuple[int, Delta | Finished]
"""A message, and the number of its choice."""


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
