"""Slots: never more than there are, never all for one tenant, and none is ever lost."""

import asyncio
import random
import time

import pytest

from gateway.errors import UpstreamOverloaded
from gateway.upstreams import bulkhead
from gateway.upstreams.bulkhead import Bulkhead
from gateway.upstreams.local_slots import LocalSlots


def test_one_tenant_leaves_slots_to_the_others() -> None:
    """Of ten slots one tenant may hold eight, however fast it asks; another gets the last two."""
    slots = Bulkhead("provider", slots_max=10, tenant_share=0.8)
    assert [slots.take("greedy") for _ in range(10)] == [True] * 8 + [False] * 2
    assert [slots.take("modest") for _ in range(3)] == [True] * 2 + [False]
    assert slots.in_use == 10


@pytest.mark.parametrize(("slots_max", "held"), [(1, 1), (2, 1), (4, 3), (5, 4), (256, 204)])
def test_a_share_is_rounded_down_to_whole_slots_but_never_to_none(
    slots_max: int, held: int
) -> None:
    """Four fifths of 256 slots are 204; with one slot in all, a tenant may still use it."""
    slots = Bulkhead("provider", slots_max=slots_max, tenant_share=0.8)
    assert sum(slots.take("a") for _ in range(300)) == held


async def test_who_finds_none_waits_a_moment_and_is_told_when_to_come_again() -> None:
    """After a tenth of a second comes a free 503 with one second to wait, and no slot is lost."""
    slots = Bulkhead("provider", slots_max=1)
    assert slots.take("a")
    began = time.monotonic()
    with pytest.raises(UpstreamOverloaded) as refused:
        await slots.wait("b", 9.0)
    assert 0.09 <= time.monotonic() - began < 0.5
    assert refused.value.unsent, "nobody was asked, so it costs nothing"
    assert refused.value.status == 503
    assert refused.value.retry_after_seconds == 1.0
    assert "tenant" not in refused.value.message, "it is not b who is too many"
    assert (slots.in_use, slots.waiting) == (1, 0)


async def test_a_refusal_says_whether_it_is_the_tenants_own_share() -> None:
    """Its operator can tell a tenant at its own limit from a provider that is full."""
    slots = Bulkhead("provider", slots_max=2, tenant_share=0.5)
    assert slots.take("a")
    with pytest.raises(UpstreamOverloaded, match="of the tenant 'a'"):
        await slots.wait("a", 9.0)


async def test_the_latest_of_those_who_wait_is_served_first() -> None:
    """Under overload the oldest will give up anyway, so serving the newest answers more clients."""
    slots = Bulkhead("provider", slots_max=1)
    assert slots.take("a")
    waiting = [asyncio.create_task(slots.wait(name, 9.0)) for name in "bcd"]
    await asyncio.sleep(0)
    slots.release("a")
    await waiting[2]
    slots.release("d")
    await waiting[1]
    assert not waiting[0].done()
    slots.release("c")
    await waiting[0]


async def test_a_tenant_at_its_share_is_passed_over_for_one_below() -> None:
    """A slot goes to the tenant within its share, though the greedy one asked more recently."""
    slots = Bulkhead("provider", slots_max=4, tenant_share=0.5)
    assert [slots.take(name) for name in "aabb"] == [True] * 4
    modest = asyncio.create_task(slots.wait("c", 9.0))
    await asyncio.sleep(0)
    greedy = asyncio.create_task(slots.wait("a", 9.0))
    await asyncio.sleep(0)
    slots.release("b")
    await modest
    assert not greedy.done()
    slots.release("a")
    await greedy


async def test_the_queue_has_an_end_and_drops_whoever_waits_longest() -> None:
    """With QUEUE_MAX waiting, one more refuses the oldest at once, so that memory stays bounded."""
    slots = Bulkhead("provider", slots_max=1)
    assert slots.take("a")
    waiting = [asyncio.create_task(slots.wait("b", 9.0)) for _ in range(bulkhead.QUEUE_MAX + 1)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert slots.waiting == bulkhead.QUEUE_MAX
    with pytest.raises(UpstreamOverloaded):
        await waiting[0]
    assert not any(task.done() for task in waiting[1:])
    await asyncio.gather(*waiting, return_exceptions=True)
    assert (slots.in_use, slots.waiting) == (1, 0)


async def test_a_lowered_limit_waits_for_slots_to_come_back() -> None:
    """No running request is cut; the limit stays between one and the configured maximum."""
    slots = Bulkhead("provider", slots_max=4)
    assert all(slots.take("a") for _ in range(4))
    slots.set_limit(2)
    for _ in range(2):
        slots.release("a")
        assert not slots.take("a")
    slots.release("a")
    assert slots.take("a")
    slots.set_limit(99)
    assert slots.limit == 4
    slots.set_limit(0)
    assert slots.limit == 1


@pytest.mark.parametrize("kind", [Bulkhead, LocalSlots])
async def test_whatever_leaves_whenever_no_slot_is_lost_and_none_is_given_twice(
    kind: type[Bulkhead],
) -> None:
    """Random takers, leavers and limits, compared after each step with a plain count."""
    rng = random.Random(11)
    slots = kind("provider", slots_max=6, tenant_share=0.5)
    holders: list[str] = []
    waiting: list[tuple[str, asyncio.Task[None]]] = []
    for _ in range(3000):
        match rng.randrange(5):
            case 0:
                tenant = rng.choice("abc")
                if slots.take(tenant):
                    holders.append(tenant)
            case 1:
                tenant = rng.choice("abc")
                waiting.append((tenant, asyncio.create_task(slots.wait(tenant, 9.0))))
            case 2 if holders:
                slots.release(holders.pop(rng.randrange(len(holders))))
            case 3 if waiting:
                waiting[rng.randrange(len(waiting))][1].cancel()
            case 4:
                slots.set_limit(rng.randint(1, 6))
        for _ in range(rng.randrange(3)):
            await asyncio.sleep(0)
        for tenant, task in waiting:
            if task.done() and not task.cancelled() and task.exception() is None:
                holders.append(tenant)
        waiting = [(tenant, task) for tenant, task in waiting if not task.done()]
        assert len(holders) <= slots.in_use <= 6
    for _, task in waiting:
        task.cancel()
    ends = await asyncio.gather(*(task for _, task in waiting), return_exceptions=True)
    holders += [tenant for (tenant, _), end in zip(waiting, ends, strict=True) if end is None]
    for tenant in holders:
        slots.release(tenant)
    assert (slots.in_use, slots.waiting) == (0, 0)
