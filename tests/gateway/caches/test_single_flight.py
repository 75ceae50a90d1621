"""Single flight: concurrent identical misses make one call, and nobody waits for the dead."""

import asyncio

from gateway.caches.entry import StoredAnswer
from gateway.caches.exact import SingleFlight
from tests.gateway.caches.cached_answers import stored


async def test_followers_get_the_leaders_answer() -> None:
    flights = SingleFlight()
    leader = flights.join(b"k")
    followers = [flights.join(b"k") for _ in range(5)]
    waiting = [asyncio.create_task(follower.wait(5)) for follower in followers]
    await asyncio.sleep(0)
    leader.finish(stored("a"))
    found = await asyncio.gather(*waiting)
    assert [entry.cache_id for entry in found if entry is not None] == ["a"] * 5
    assert [flight.leads for flight in (leader, *followers)] == [True] + [False] * 5
    assert len(flights) == 0


async def test_a_leader_that_fails_sends_its_followers_on_their_own_way() -> None:
    flights = SingleFlight()
    leader, follower = flights.join(b"k"), flights.join(b"k")
    leader.finish(None)
    assert await follower.wait(5) is None
    assert flights.join(b"k").leads


async def test_a_follower_waits_for_a_bounded_time() -> None:
    flights = SingleFlight()
    leader, follower = flights.join(b"k"), flights.join(b"k")
    assert await follower.wait(0.001) is None
    leader.finish(stored("a"))  # later than its follower: no error


async def test_a_lost_leader_is_replaced() -> None:
    """A leader that never finishes holds the next request up for its limit, not for ever."""
    flights = SingleFlight(lead_seconds_max=0.0)
    lost = flights.join(b"k")
    heir = flights.join(b"k")
    assert heir.leads
    lost.finish(None)
    assert len(flights) == 1  # the heir's flight is not landed by the lost one
    heir.finish(None)
    assert len(flights) == 0


async def test_a_cancelled_follower_does_not_cancel_the_others() -> None:
    flights = SingleFlight()
    leader = flights.join(b"k")
    leaving = asyncio.create_task(flights.join(b"k").wait(5))
    staying: asyncio.Task[StoredAnswer | None] = asyncio.create_task(flights.join(b"k").wait(5))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    leader.finish(stored("a"))
    found = await staying
    assert found is not None
    assert leaving.cancelled()


async def test_other_keys_fly_alone_and_their_number_is_bounded() -> None:
    flights = SingleFlight(keys_max=2)
    taken = [flights.join(b"a"), flights.join(b"b"), flights.join(b"c"), flights.join(b"c")]
    assert all(flight.leads for flight in taken)
    assert len(flights) == 2
    for flight in taken:
        flight.finish(None)
    assert len(flights) == 0
