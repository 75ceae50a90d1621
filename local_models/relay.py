"""Deltas on their way from the engine's thread to a client: batches and credits.

Knows the event loop and the frames of a generation. Does not know connections or the engine.
"""

import asyncio
import contextlib
import itertools
from collections import deque
from collections.abc import Callable

from local_models import protocol
from local_models.messages import Delta, Finished

MAX_CREDITS = 1024
"""More deltas than this are never sent ahead of their client."""

Messages = deque[tuple[str, Delta | Finished]]


class Generation:
    """One running generation: what the engine gave and its client has no credit for yet."""

    def __init__(self, id: int, credits: int) -> None:
        self.id = id
        self.credits = credits
        self._held: list[Delta] = []
        self.finished: Finished | None = None
        self._cancelled = False

    @property
    def held_tokens(self) -> int:
        """Tokens that wait for credit."""
        return sum(delta.tokens for delta in self._held)

    @property
    def ended(self) -> bool:
        """The engine has finished, and nothing is left to send."""
        return self.finished is not None and not self._held

    def take(self, message: Delta | Finished) -> None:
        """Note what the engine delivered."""
        if isinstance(message, Finished):
            self.finished = message
        elif not self._cancelled:
            self._held.append(message)

    def cancel(self) -> None:
        """The client wants no more text, only the end."""
        self._cancelled = True
        self._held = []

    def frames(self) -> list[protocol.ServerFrame]:
        """What may be sent now: at most one delta, which joins everything held, then the end."""
        frames: list[protocol.ServerFrame] = []
        if self._held and self.credits > 0:
            self.credits -= 1
            frames.append(protocol.DeltaFrame(self.id, _joined(self._held)))
            self._held = []
        if self.finished is not None and not self._held:
            frames.append(protocol.FinishedFrame(self.id, self.finished))
        return frames


def _joined(deltas: list[Delta]) -> Delta:
    if len(deltas) == 1:
        return deltas[0]
    return Delta(
        "".join(delta.text for delta in deltas),
        sum(delta.tokens for delta in deltas),
        tuple(itertools.chain.from_iterable(delta.logprobs for delta in deltas)),
    )


class Outbox:
    """Carries the engine thread's messages to the event loop, one wake-up for many messages."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        drain: Callable[[Messages], None],
    ) -> None:
        self._loop = loop
        self._drain = drain
        self._messages: Messages = deque()
        self._scheduled = False

    def deliver(self, request_id: str, message: Delta | Finished) -> None:
        """On the engine thread. Costs a queue append; the first of a batch wakes the loop."""
        self._messages.append((request_id, message))
        if not self._scheduled:
            self._scheduled = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: we are exiting
                self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        # Before draining: a message that comes now is drained, or schedules its own wake-up.
        self._scheduled = False
        self._drain(self._messages)
