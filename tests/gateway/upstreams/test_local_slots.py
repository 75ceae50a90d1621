"""The line before a local model: fair to tenants, bounded, and no longer than the budget allows."""

import asyncio

import pytest

from gateway.errors import UpstreamOverloaded
from gateway.upstreams import local_slots
from gateway.upstreams.local_slots import LocalSlots


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def waiting(slots: LocalSlots, tenant: str, seconds: float = 60.0) -> "asyncio.Task[None]":
    return asyncio.get_running_loop().create_task(slots.wait(tenant, seconds))


async def settle() -> None:
    for _ in range(4):
        await asyncio.sleep(0)


async def ended(tasks: "list[asyncio.Task[None]]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_the_next_slot_goes_to_the_tenant_with_the_fewest_and_to_its_oldest_request() -> None:
    """A hundred requests of one tenant delay another's by one answer, not by a hundred."""
    slots = LocalSlots("local", slots_max=4)
    assert all(slots.take("flood") for _ in range(4))
    flood = [waiting(slots, "flood") for _ in range(20)]
    modest = [waiting(slots, "modest") for _ in range(2)]
    await settle()
    slots.release("flood")
    await settle()
    assert [task.done() for task in modest] == [True, False]
    slots.release("flood")
    await settle()
    assert [task.done() for task in modest] == [True, True], "two each, and theirs is the older"
    slots.release("flood")
    await settle()
    assert [task.done() for task in flood] == [True] + [False] * 19
    await ended(flood + modest)


async def test_a_full_line_loses_the_latest_request_of_who_has_the_most_in_it() -> None:
    """A flood of five pays for the newcomer's place, and the modest tenant loses none."""
    slots = LocalSlots("local", slots_max=1, waiting_max=6)
    assert slots.take("flood")
    modest = waiting(slots, "modest")
    flood = [waiting(slots, "flood") for _ in range(5)]
    await settle()
    late = waiting(slots, "modest")
    await settle()
    assert slots.waiting == 6
    assert [task.done() for task in flood] == [False] * 4 + [True]
    assert isinstance(flood[4].exception(), UpstreamOverloaded)
    assert not modest.done()
    assert not late.done()
    more = waiting(slots, "flood")
    await settle()
    assert isinstance(more.exception(), UpstreamOverloaded)
    await ended([modest, late, *flood[:4]])


async def test_a_request_waits_for_its_share_of_the_budget_and_not_for_a_tenth_of_a_second() -> (
    None
):
    """Waiting for the local model beats paying for the large one, which is left time too."""
    slots = LocalSlots("local", slots_max=1)
    assert slots.take("t")
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(UpstreamOverloaded) as refused:
        await slots.wait("t", 0.3)
    assert loop.time() - began >= 0.3 * local_slots.WAIT_SHARE
    assert refused.value.unsent, "the large model may be asked, and nothing was paid"
    assert (slots.in_use, slots.waiting) == (1, 0)


async def test_a_wait_that_would_be_too_long_is_refused_at_once_and_says_when_to_come_back() -> (
    None
):
    """Ten wait, and a slot comes back each second: the eleventh would wait eleven seconds."""
    clock = Clock()
    slots = LocalSlots("local", slots_max=1, clock=clock)
    assert slots.take("t")
    line = [waiting(slots, "t") for _ in range(20)]
    for _ in range(10):
        await settle()
        slots.release("t")
        clock.now += 1.0
    await settle()
    assert slots.expected_seconds("t") == pytest.approx(11.0)
    assert slots.expected_seconds("other") == pytest.approx(2.0), "its turn comes sooner"
    with pytest.raises(UpstreamOverloaded, match="about 11 s, and 8 s of waiting") as refused:
        await slots.wait("t", 10.0)
    assert refused.value.retry_after_seconds == pytest.approx(3.0)
    patient = waiting(slots, "t", 20.0)
    await settle()
    assert not patient.done()
    await ended([*line, patient])


async def test_a_stall_is_forgotten_with_the_next_slots_that_come_back() -> None:
    """Ten seconds for one answer; after sixteen quick ones nobody is refused because of it."""
    clock = Clock()
    slots = LocalSlots("local", slots_max=1, clock=clock)
    assert slots.take("t")
    line = [waiting(slots, "t") for _ in range(40)]
    await settle()
    for seconds in [10.0] * 5 + [0.1] * local_slots.RELEASES_SEEN:
        clock.now += seconds
        slots.release("t")
        await settle()
    assert slots.expected_seconds("t") == pytest.approx(0.1 * 20, rel=0.1)
    await ended(line)


async def test_an_idle_model_foretells_no_wait() -> None:
    """Twenty answers of ten seconds, one after the other, leave the next request unhindered."""
    clock = Clock()
    slots = LocalSlots("local", slots_max=1, clock=clock)
    for _ in range(20):
        assert slots.take("t")
        clock.now += 10.0
        slots.release("t")
    assert slots.expected_seconds("t") == 0.0
