"""Single flight: identical requests make one call, nobody waits for the dead, no frame is lost."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from gateway.caches.entry import StoredAnswer
from gateway.caches.single_flight import (
    FRAMES_BYTES_MAX,
    OWN_BYTES_MAX,
    Flight,
    LeadersClient,
    SingleFlight,
)
from gateway.errors import ClientClosed, Overloaded
from tests.gateway.caches.cached_answers import stored


def joined(flights: SingleFlight, key: bytes = b"k", *, stream: bool = False) -> Flight:
    """A part in the flight of ``key``, which there must be."""
    flight = flights.join(key, stream=stream)
    assert flight is not None
    return flight


async def settled() -> None:
    """Let everything run that can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def everything(flight: Flight) -> bytes:
    """All frames of a flight, read as they come."""
    got = b""
    while frames := await flight.next():
        got += frames
    return got


async def test_followers_get_the_leaders_answer() -> None:
    """Six identical requests cost one call, and nothing of the flight is left behind."""
    flights = SingleFlight()
    leader = joined(flights)
    followers = [joined(flights) for _ in range(5)]
    waiting = [asyncio.create_task(follower.wait(5)) for follower in followers]
    await asyncio.sleep(0)
    leader.finish(stored("a"))
    found = await asyncio.gather(*waiting)
    assert [entry.cache_id for entry in found if entry is not None] == ["a"] * 5
    assert [flight.leads for flight in (leader, *followers)] == [True] + [False] * 5
    assert len(flights) == 0


async def test_a_leader_that_fails_hands_over_to_one_of_its_followers() -> None:
    """Both learn why it failed, and of the two only one asks the provider again."""
    flights = SingleFlight()
    leader, first, second = joined(flights), joined(flights), joined(flights)
    leader.finish(None, "the provider failed")
    assert await first.wait(5) is None
    assert await second.wait(5) is None
    assert second.failure == "the provider failed"
    assert [joined(flights).leads, joined(flights).leads] == [True, False]


async def test_a_follower_waits_for_a_bounded_time() -> None:
    """It goes on without the leader's answer, and the leader's late end harms no one."""
    flights = SingleFlight()
    leader, follower = joined(flights), joined(flights)
    assert await follower.wait(0.001) is None
    leader.finish(stored("a"))  # later than its follower: no error


async def test_a_lost_leader_is_replaced() -> None:
    """A leader that never finishes holds the next request up for its limit, not for ever."""
    flights = SingleFlight(lead_seconds_max=0.0)
    lost = joined(flights)
    heir = joined(flights)
    assert heir.leads
    lost.finish(None)
    assert len(flights) == 1  # the heir's flight is not landed by the lost one
    heir.finish(None)
    assert len(flights) == 0


async def test_a_cancelled_follower_does_not_cancel_the_others() -> None:
    """One client's leaving costs the others neither the leader nor the answer."""
    flights = SingleFlight()
    leader = joined(flights)
    leaving = asyncio.create_task(joined(flights).wait(5))
    staying: asyncio.Task[StoredAnswer | None] = asyncio.create_task(joined(flights).wait(5))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    leader.finish(stored("a"))
    found = await staying
    assert found is not None
    assert leaving.cancelled()


async def test_other_keys_fly_alone_and_their_number_is_bounded() -> None:
    """With keys_max in the air, the next request is simply made without sharing."""
    flights = SingleFlight(keys_max=2)
    taken = [joined(flights, b"a"), joined(flights, b"b")]
    assert all(flight.leads for flight in taken)
    assert flights.join(b"c") is None
    assert len(flights) == 2
    for flight in taken:
        flight.finish(None)
    assert len(flights) == 0


async def test_a_late_follower_of_a_stream_gets_the_replay_and_then_the_live_tail() -> None:
    """It reads the two frames it missed in one piece, then each new frame as it comes."""
    flights = SingleFlight()
    leader = joined(flights, stream=True)
    leader.publish(b"1")
    leader.publish(b"2")
    follower = joined(flights, stream=True)
    assert await follower.next() == b"12"
    live = asyncio.create_task(follower.next())
    await settled()
    assert not live.done()
    leader.publish(b"3")
    assert await live == b"3"
    leader.finish(stored("a"))
    assert await follower.next() == b""
    assert follower.entry is not None


async def test_a_stream_does_not_wait_for_a_document_but_a_document_for_a_stream() -> None:
    """A stream's client wants its first token now; a document is complete only at the end."""
    flights = SingleFlight()
    document, stream = joined(flights, b"d"), joined(flights, b"s", stream=True)
    assert flights.join(b"d", stream=True) is None
    waiting = asyncio.create_task(joined(flights, b"s").wait(5))
    stream.publish(b"frame")
    await settled()
    assert not waiting.done(), "a frame is no answer"
    stream.finish(stored("s"))
    assert (await waiting) is not None
    document.finish(None)


async def test_a_stream_longer_than_the_buffer_takes_no_newcomers_and_cuts_off_who_lags() -> None:
    """Memory is bounded by FRAMES_BYTES_MAX, while a quick reader gets every byte."""
    flights = SingleFlight()
    leader = joined(flights, stream=True)
    quick, slow = joined(flights, stream=True), joined(flights, stream=True)
    reading = asyncio.create_task(everything(quick))
    piece = b"x" * (FRAMES_BYTES_MAX // 4)
    for _ in range(6):
        leader.publish(piece)
        await settled()
    assert flights.join(b"k", stream=True) is None
    with pytest.raises(Overloaded, match="too slowly"):
        await slow.next()
    leader.finish(stored("a"))
    assert await reading == piece * 6


class Task:
    """Stands for the leader's task."""

    def __init__(self) -> None:
        self.cancelled = 0

    def cancel(self) -> None:
        self.cancelled += 1


def guarded(leader: Flight) -> Task:
    task: Any = Task()
    leader.outliving(task)
    return task  # type: ignore[no-any-return] # it is a Task, above


async def test_a_leader_whose_client_leaves_goes_on_until_its_last_follower_leaves() -> None:
    """The paid call is cancelled as soon as no client wants it, and not a moment before."""
    flights = SingleFlight()
    leader = joined(flights, stream=True)
    followers = [joined(flights, stream=True) for _ in range(2)]
    task = guarded(leader)
    leader.cancel()
    followers[0].leave()
    followers[0].leave()
    assert task.cancelled == 0, "one follows still, however often the other says goodbye"
    followers[1].leave()
    assert task.cancelled == 1


async def test_nobody_follows_a_leader_that_was_cancelled_and_is_still_being_booked() -> None:
    """A newcomer would wait for a stream that never ends well, so it leads its own."""
    flights = SingleFlight()
    leader = joined(flights, stream=True)
    task = asyncio.create_task(asyncio.sleep(60))
    leader.publish(b"begun")
    leader.outliving(task).cancel()  # finish comes when its books are safe, which may take a while
    newcomer = joined(flights, stream=True)
    assert newcomer.leads
    leader.finish(None, "its client has left")
    assert not joined(flights, stream=True).leads, "the newcomer is followed"
    await asyncio.gather(task, return_exceptions=True)


async def test_a_leader_without_followers_ends_at_once_and_a_finished_one_never() -> None:
    """A client that leaves alone stops the paid call; a call that is closing is left alone."""
    flights = SingleFlight()
    leader = joined(flights)
    task = guarded(leader)
    leader.cancel()
    assert task.cancelled == 1
    leader.outliving(None)
    leader.cancel()
    assert task.cancelled == 1, "what is being closed must not be cancelled"


class Reader:
    """A leader's client that reads or does not."""

    def __init__(self) -> None:
        self.got = b""
        self.unread: asyncio.Future[None] | None = None
        self.gone = False

    def pause(self) -> None:
        if self.unread is None:
            self.unread = asyncio.get_running_loop().create_future()

    def resume(self) -> None:
        unread, self.unread = self.unread, None
        if unread is not None:
            unread.set_result(None)

    def write(self, frames: bytes) -> asyncio.Future[None] | None:
        if self.gone:
            raise ClientClosed("gone")
        self.got += frames
        return self.unread


async def wait_for(pause: Awaitable[None] | None) -> None:
    if pause is not None:
        await pause


async def test_a_leader_nobody_follows_is_waited_for_like_any_other() -> None:
    """Its slow client holds the provider back, so that nothing piles up in memory."""
    leader = joined(SingleFlight(), stream=True)
    reader = Reader()
    own = LeadersClient(leader, reader.write)
    assert own.write(b"1") is None
    reader.pause()
    waiting = asyncio.create_task(wait_for(own.write(b"2")))
    await settled()
    assert not waiting.done()
    reader.resume()
    await waiting
    assert reader.got == b"12"


async def test_a_slow_leader_does_not_slow_its_followers() -> None:
    """Not even those who come while it is being waited for."""
    flights = SingleFlight()
    leader = joined(flights, stream=True)
    reader = Reader()
    own = LeadersClient(leader, reader.write)
    reader.pause()
    waiting = asyncio.create_task(wait_for(own.write(b"0,")))
    await settled()
    assert not waiting.done()
    follower = joined(flights, stream=True)
    await waiting
    assert await follower.next() == b"0,"
    for number in range(1, 50):
        assert own.write(b"%d," % number) is None
        assert await follower.next() == b"%d," % number
    reader.resume()
    assert reader.got == b"".join(b"%d," % number for number in range(50))


async def test_a_leader_that_lags_too_far_behind_is_waited_for() -> None:
    """Memory is bounded: the stream goes at its pace, until the server closes a stalled client."""
    flights = SingleFlight()
    leader = joined(flights, stream=True)
    reader = Reader()
    own = LeadersClient(leader, reader.write)
    follower = joined(flights, stream=True)
    reader.pause()
    assert own.write(b"x" * OWN_BYTES_MAX) is None
    waiting = asyncio.create_task(wait_for(own.write(b"y")))
    await settled()
    assert not waiting.done()
    assert len(await follower.next()) == OWN_BYTES_MAX + 1, "the followers have it"
    reader.resume()
    await waiting


async def test_a_leader_whose_client_has_gone_still_serves_those_who_follow() -> None:
    """The leader stops at the write after its last follower left, and frames stay complete."""
    flights = SingleFlight()
    leader = joined(flights, stream=True)
    follower = joined(flights, stream=True)
    reader = Reader()
    reader.gone = True
    own = LeadersClient(leader, reader.write)
    for number in range(10):
        assert own.write(b"%d" % number) is None
    follower.leave()
    with pytest.raises(ClientClosed):
        own.write(b"!")
    leader.finish(stored("a"))
    assert await everything(follower) == b"0123456789!"


class Model:
    """Random steps of one flight after another, beside what must have come of them."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.flights = SingleFlight()
        self.reader = Reader()
        self.published = b""
        self.followers: list[tuple[Flight, asyncio.Task[tuple[bytes, str]]]] = []
        self.abandoned = False
        self.begin()

    def begin(self) -> None:
        self.leader = joined(self.flights, stream=True)
        assert self.leader.leads
        self.task = guarded(self.leader)
        self.own = LeadersClient(self.leader, self.reader.write)

    async def follow(self, flight: Flight) -> tuple[bytes, str]:
        """What a follower got, and how it ended."""
        got = b""
        try:
            while frames := await flight.next():
                got += frames
                for _ in range(self.rng.randrange(4)):
                    await asyncio.sleep(0)
            return got, "whole" if flight.entry is not None else "broken"
        except asyncio.CancelledError:
            return got, "left"
        finally:
            flight.leave()

    def steps(self) -> list[Callable[[], Any]]:
        return [self.publish, self.publish, self.join, self.leave, self.pause, self.abandon]

    async def publish(self) -> None:
        frames = bytes(self.rng.randrange(256) for _ in range(self.rng.randrange(1, 9)))
        self.published += frames
        unread = self.own.write(frames)
        if unread is not None:  # nobody follows: the client reads on, or somebody comes
            if self.rng.random() < 0.5:
                self.reader.resume()
            else:
                asyncio.get_running_loop().call_soon(lambda: asyncio.create_task(self.join()))
            await unread

    async def join(self) -> None:
        flight = joined(self.flights, stream=True)
        assert not flight.leads
        self.followers.append((flight, asyncio.create_task(self.follow(flight))))

    async def leave(self) -> None:
        if self.followers:
            self.rng.choice(self.followers)[1].cancel()

    async def pause(self) -> None:
        if self.reader.unread is None:
            self.reader.pause()
        else:
            self.reader.resume()

    async def abandon(self) -> None:
        if self.rng.random() < 0.2 and not self.abandoned and self.leader.followed:
            self.abandoned = self.reader.gone = True
            self.reader.resume()
            self.leader.cancel()


@pytest.mark.parametrize("seed", range(60))
async def test_whatever_happens_every_follower_gets_a_prefix_and_a_stayer_gets_all(
    seed: int,
) -> None:
    """Random joins, leavings, pauses and an end, good or bad, compared with the plain sum."""
    model = Model(seed)
    for _ in range(model.rng.randrange(5, 80)):
        await model.rng.choice(model.steps())()
        for _ in range(model.rng.randrange(3)):
            await asyncio.sleep(0)
        if model.task.cancelled:
            break
    good = model.rng.random() < 0.7 and not model.task.cancelled
    await settled()  # who was about to join does
    model.leader.finish(stored("a") if good else None)
    async with asyncio.timeout(5):
        ends = await asyncio.gather(*(task for _, task in model.followers), return_exceptions=True)
    for end in ends:
        if isinstance(end, asyncio.CancelledError):
            continue  # cancelled before its first step
        assert not isinstance(end, BaseException), end
        got, how = end
        assert model.published.startswith(got)
        if how != "left":
            assert got == model.published
            assert (how == "whole") is good
    for flight, _ in model.followers:
        flight.leave()  # those cancelled before their first step never could
    assert not model.leader.followed
    assert len(model.flights) == 0
    if model.abandoned:
        assert model.published.startswith(model.reader.got)
        assert model.task.cancelled == 1
    else:
        assert model.reader.got == model.published
