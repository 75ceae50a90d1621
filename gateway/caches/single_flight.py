"""Single flight: identical requests that are under way share one upstream call.

The first leads: it asks, and publishes what comes. The others follow: they get the same frames from
the first one on, or the finished answer. Knows keys, bytes and the event loop. Does not know HTTP,
policies or money.
"""

import asyncio
from collections.abc import Awaitable, Callable

from gateway.caches.entry import StoredAnswer
from gateway.errors import ClientClosed, Overloaded

FRAMES_BYTES_MAX = 1 << 20
"""Frames kept of one stream. Beyond, nobody new can follow, and who lags behind is cut off."""

OWN_BYTES_MAX = 128 << 10
"""How far the leader's own client may lag behind before the followed stream waits for it."""


class _Shared:
    """What the parts of one flight have in common."""

    __slots__ = (
        "abandoned", "cache_id", "entry", "failure", "first", "followers", "frames", "landed",
        "size_bytes", "started_seconds", "stream", "task", "usage_event", "waiting",
    )  # fmt: skip

    def __init__(self, stream: bool, cache_id: str, started_seconds: float) -> None:
        self.stream = stream  # the leader gets frames
        self.cache_id = cache_id  # of the entry that the leader makes
        self.started_seconds = started_seconds
        self.frames: list[bytes] = []
        self.first = 0  # the number of the first frame kept: 0 until some were dropped
        self.size_bytes = 0
        self.usage_event = b""  # kept out of the frames: not everyone asked for it
        self.landed = False
        self.entry: StoredAnswer | None = None
        self.failure = ""
        self.waiting: set[asyncio.Future[None]] = set()
        self.followers = 0
        self.abandoned = False  # the leader's client has left
        self.task: asyncio.Task[object] | None = None  # the leader's, while it may be cancelled

    def wake(self) -> None:
        for waiter in self.waiting:
            if not waiter.done():
                waiter.set_result(None)

    async def change(self) -> None:
        """Wait until something has come. Each has a future of its own, because a shared one would
        be cancelled with the first that leaves.
        """
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.add(waiter)
        try:
            await waiter
        finally:
            self.waiting.discard(waiter)

    def trim(self) -> None:
        dropped = 0
        while self.size_bytes > FRAMES_BYTES_MAX and dropped + 1 < len(self.frames):
            self.size_bytes -= len(self.frames[dropped])
            dropped += 1
        del self.frames[:dropped]
        self.first += dropped


class Flight:
    """One request's part in a shared miss."""

    __slots__ = ("_follows", "_key", "_owner", "_position", "_shared", "leads")

    def __init__(self, owner: "SingleFlight", key: bytes, shared: _Shared, leads: bool) -> None:
        self._owner = owner
        self._key = key
        self._shared = shared
        self.leads = leads
        self._follows = not leads
        self._position = 0  # the number of the first frame not yet read
        if self._follows:
            shared.followers += 1
            shared.wake()  # also a leader that waits for its client

    # The leader's

    @property
    def followed(self) -> bool:
        """Somebody waits for what the leader gets."""
        return self._shared.followers > 0

    def publish(self, frames: bytes) -> None:
        """These frames have come; the followers get them too."""
        shared = self._shared
        shared.frames.append(frames)
        shared.size_bytes += len(frames)
        if shared.size_bytes > FRAMES_BYTES_MAX:
            shared.trim()
        if shared.waiting:
            shared.wake()

    async def until_followed(self, unread: Awaitable[None]) -> None:
        """Wait for ``unread``, or until somebody follows, who must not wait for it too."""
        shared = self._shared
        joined = asyncio.get_running_loop().create_future()
        shared.waiting.add(joined)
        try:
            await asyncio.wait(
                (asyncio.ensure_future(unread), joined), return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            shared.waiting.discard(joined)

    def publish_usage(self, event: bytes) -> None:
        """The event that tells the usage, for those who asked for it."""
        self._shared.usage_event = event

    def outliving(self, task: "asyncio.Task[object] | None") -> "Flight":
        """Something to cancel instead of the leader's task: see ``cancel``. None: no longer."""
        self._shared.task = task
        return self

    def cancel(self) -> None:
        """The leader's client has left: its task ends, now or with its last follower."""
        self._shared.abandoned = True
        self._end_abandoned()

    def finish(self, entry: StoredAnswer | None, failure: str = "") -> None:
        """The leader's last word: an entry to share, or None. Only the first call counts."""
        shared = self._shared
        if not self.leads or shared.landed:
            return
        shared.landed, shared.entry, shared.failure = True, entry, failure
        self._owner._land(self._key, shared)
        shared.wake()

    # A follower's

    @property
    def cache_id(self) -> str:
        """Of the entry that the leader makes."""
        return self._shared.cache_id

    @property
    def usage_event(self) -> bytes:
        """The event that tells the usage; ``b""`` where there is none."""
        return self._shared.usage_event

    @property
    def entry(self) -> StoredAnswer | None:
        """What the leader shared in the end. Its ``answer`` is empty if only frames were shared."""
        return self._shared.entry

    @property
    def failure(self) -> str:
        """Why there is no entry, as far as the leader knows."""
        return self._shared.failure

    async def next(self) -> bytes:
        """The frames since the last call, joined; ``b""`` at the end, good or bad.

        Raises Overloaded where frames not yet read had to be dropped.
        """
        shared = self._shared
        while True:
            if self._position < shared.first:
                raise Overloaded("This answer is shared, and it was read too slowly.")
            unread = shared.frames[self._position - shared.first :]
            if unread:
                self._position += len(unread)
                return b"".join(unread)
            if shared.landed:
                return b""
            await shared.change()

    async def wait(self, timeout_seconds: float) -> StoredAnswer | None:
        """The leader's entry; None when it had none to share or did not finish in time.

        A follower that gets None goes on by itself.
        """
        shared = self._shared
        try:
            async with asyncio.timeout(timeout_seconds):
                while not shared.landed:
                    await shared.change()
        except TimeoutError:
            return None
        return shared.entry

    def leave(self) -> None:
        """Follow no longer. Idempotent; nothing for the leader."""
        if self._follows:
            self._follows = False
            self._shared.followers -= 1
            self._end_abandoned()

    def _end_abandoned(self) -> None:
        shared = self._shared
        if shared.abandoned and not shared.followers and shared.task is not None:
            self._owner._land(self._key, shared)  # who comes now would only get a broken stream
            shared.task.cancel()


class SingleFlight:
    """Concurrent identical misses make one upstream call. Belongs to one event loop.

    A leader that has not finished after ``lead_seconds_max`` counts as lost: the next request
    leads anew, so nobody waits twice for the dead. Beyond ``keys_max`` distinct keys in flight
    requests go on alone.
    """

    def __init__(self, *, keys_max: int = 4096, lead_seconds_max: float = 60.0) -> None:
        self._keys_max = keys_max
        self._lead_seconds_max = lead_seconds_max
        self._flights: dict[bytes, _Shared] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def join(self, key: bytes, *, stream: bool = False, cache_id: str = "") -> Flight | None:
        """Take part in the miss of ``key``; None: go on alone.

        The first to come leads and must call ``finish``; ``cache_id`` names the entry that it
        makes. A follower must call ``leave``. A stream follows streams only, and only while all
        their frames are there: it does not wait for another's end to begin.
        """
        shared = self._flights.get(key)
        now_seconds = asyncio.get_running_loop().time()
        if shared is not None and now_seconds - shared.started_seconds < self._lead_seconds_max:
            if stream and (shared.first or not shared.stream):
                return None
            return Flight(self, key, shared, leads=False)
        if shared is None and len(self._flights) >= self._keys_max:
            return None
        shared = self._flights[key] = _Shared(stream, cache_id, now_seconds)
        return Flight(self, key, shared, leads=True)

    def _land(self, key: bytes, shared: _Shared) -> None:
        if self._flights.get(key) is shared:
            del self._flights[key]


class LeadersClient:
    """The leader's own client, on whose reading nobody else waits.

    While nobody follows, the stream goes at its pace, as any other does. As soon as somebody
    follows, it is written to and not waited for, up to OWN_BYTES_MAX that it has not read.
    """

    __slots__ = ("_flight", "_unread_bytes", "_write")

    def __init__(self, flight: Flight, write: Callable[[bytes], Awaitable[None] | None]) -> None:
        """write: sends to the client; what to wait for while it does not read."""
        self._flight = flight
        self._write = write
        self._unread_bytes = 0

    def write(self, frames: bytes) -> Awaitable[None] | None:
        """Publish the frames and send them; what to wait for before the next."""
        flight = self._flight
        flight.publish(frames)
        try:
            unread = self._write(frames)
        except ClientClosed:
            if flight.followed:
                return None
            raise
        if unread is None:
            self._unread_bytes = 0
            return None
        self._unread_bytes += len(frames)
        if not flight.followed:
            return flight.until_followed(unread)
        return unread if self._unread_bytes > OWN_BYTES_MAX else None
