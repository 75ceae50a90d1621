"""The local model's limit: found by measuring, and followed when the machine changes."""

import asyncio
import heapq
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import orjson
import pytest

from gateway.errors import UpstreamOverloaded
from gateway.upstreams.base import UpstreamRequest
from gateway.upstreams.bulkhead import Bulkhead
from gateway.upstreams.local import LocalUpstream, ModelProcessClient
from gateway.upstreams.local_limit import AdaptiveLimit
from tests.gateway.upstreams.fake_model import MODEL, FakeModel


class Asked(NamedTuple):
    """A request on its way through the machine."""

    size_bytes: int
    under_way: int
    at: float
    seconds: float


class Machine:
    """Callers without end and a model that computes ``parallel`` answers at once, in made-up time.

    Every slot that the limit allows is taken at once.
    """

    def __init__(self, *, start: int, slots_max: int = 256) -> None:
        self.slots = Bulkhead("local", slots_max=slots_max)
        self.limit = AdaptiveLimit(self.slots, start=start, unloaded=4)
        self.now = 0.0
        self._computing: list[tuple[float, Asked]] = []  # first to end first
        self._queue: list[Asked] = []
        self.waits: list[float] = []

    def run(self, answers: int, *, parallel: int, seconds: float, size_bytes: int = 100) -> None:
        for _ in range(answers):
            while self.slots.take("t"):
                self._queue.append(Asked(size_bytes, self.slots.in_use, self.now, seconds))
            while self._queue and len(self._computing) < parallel:
                begun = self._queue.pop(0)
                heapq.heappush(self._computing, (self.now + begun.seconds, begun))
            self.now, ended = heapq.heappop(self._computing)
            self.waits.append(self.now - ended.at)
            self.limit.answered(ended.size_bytes, ended.under_way, ended.at, self.now)
            self.slots.release("t")


@pytest.mark.parametrize("start", [1, 8, 200])
@pytest.mark.parametrize("parallel", [4, 16])
def test_it_settles_where_the_model_is_busy_and_little_waits(start: int, parallel: int) -> None:
    """From far below and far above, to between half and four times what runs in parallel."""
    machine = Machine(start=start)
    machine.run(6000, parallel=parallel, seconds=0.02)
    seen = []
    for _ in range(2000):
        machine.run(1, parallel=parallel, seconds=0.02)
        seen.append(machine.slots.limit)
    assert parallel / 2 <= min(seen)
    assert max(seen) <= 4 * parallel
    assert sorted(machine.waits[-2000:])[1980] <= 5 * 0.02


def test_it_does_not_mistake_its_own_queue_for_the_model_over_a_long_time() -> None:
    """Thirty thousand answers under load: the limit must not creep up with the wait."""
    machine = Machine(start=8)
    for _ in range(30):
        machine.run(1000, parallel=4, seconds=0.02)
        assert machine.slots.limit <= 16


def test_a_machine_that_loses_most_of_its_power_is_given_less_and_later_more_again() -> None:
    """From 32 at once to 4 the limit falls to a third, and it recovers to half or more."""
    machine = Machine(start=8)
    machine.run(3000, parallel=32, seconds=0.02)
    strong = machine.slots.limit
    machine.run(3000, parallel=4, seconds=0.02)
    weak = machine.slots.limit
    machine.run(6000, parallel=32, seconds=0.02)
    assert weak <= strong / 3
    assert machine.slots.limit >= strong / 2


def test_a_model_that_becomes_slower_is_still_used() -> None:
    """Ten times as slow, queue or not: that is then its usual wait."""
    machine = Machine(start=8)
    machine.run(2000, parallel=4, seconds=0.02)
    machine.run(2000, parallel=4, seconds=0.2)
    assert 3 <= machine.slots.limit <= 16


def test_long_prompts_take_longer_and_that_is_no_congestion() -> None:
    """A mix of answers of 20 and 100 ms must not shrink the limit below six for eight at once."""
    machine = Machine(start=4)
    for _ in range(1000):
        machine.run(1, parallel=8, seconds=0.02)
        machine.run(1, parallel=8, seconds=0.1, size_bytes=9000)
    assert machine.slots.limit >= 6


def test_an_idle_model_proves_nothing_about_a_larger_limit() -> None:
    """A thousand quick answers one at a time leave the limit of eight where it is."""
    slots = Bulkhead("local", slots_max=256)
    limit = AdaptiveLimit(slots, start=8, unloaded=4)
    for number in range(1000):
        assert slots.take("t")
        limit.answered(100, 1, number, number + 0.02)
        slots.release("t")
    assert slots.limit == 8


@pytest.mark.parametrize(
    ("slots_max", "share", "lowest"), [(256, 1.0, 4), (256, 0.8, 5), (256, 0.5, 8), (3, 0.8, 3)]
)
def test_the_limit_stays_between_what_keeps_the_model_busy_and_its_maximum(
    slots_max: int, share: float, lowest: int
) -> None:
    """However long it is late: one tenant at its share may always fill what computes at once."""
    slots = Bulkhead("local", slots_max=slots_max, tenant_share=share)
    limit = AdaptiveLimit(slots, start=300, unloaded=4)
    assert slots.limit == slots_max
    for number in range(100):
        limit.failed(float(number), number + 0.5)
    assert slots.limit == lowest
    assert sum(slots.take("t") for _ in range(10)) == min(4, int(lowest * share))


class BatchingMachine:
    """Callers that come back at once, and an engine that batches, in made-up time.

    Each step appends a token to every row that decodes and reads one waiting prompt; ``slowness``
    says by what factor the machine is late at this moment.
    """

    def __init__(self, callers: int, slowness: Callable[[float], float]) -> None:
        self.slots = Bulkhead("local", slots_max=256, tenant_share=0.8)
        self.limit = AdaptiveLimit(self.slots, start=16, unloaded=8)
        self.answered = dict.fromkeys(range(callers), 0)
        self.refused = 0
        self._slowness = slowness
        self._now = 0.0
        self._outside = list(range(callers))
        self._line: list[tuple[int, int, float]] = []  # caller, under way, asked
        self._rows: list[list[int]] = []  # caller, tokens left

    def run(self, seconds: float) -> None:
        while self._now < seconds:
            for caller in self._outside[:]:
                if self.slots.take("t"):
                    self._outside.remove(caller)
                    self._line.append((caller, self.slots.in_use, self._now))
                else:
                    self.refused += 1
            self._step()

    def _step(self) -> None:
        seconds = 0.008 + 0.001 * len(self._rows)
        begun = self._line.pop(0) if self._line and len(self._rows) < 8 else None
        seconds += 0.03 if begun else 0
        self._now += seconds * self._slowness(self._now)
        for row in self._rows:
            row[1] -= 1
        for caller, _ in [row for row in self._rows if not row[1]]:
            self.slots.release("t")
            self.answered[caller] += 1
            self._outside.append(caller)
        self._rows = [row for row in self._rows if row[1]]
        if begun is not None:
            caller, under_way, asked = begun
            self.limit.answered(600, under_way, asked, self._now)
            self._rows.append([caller, 24])


@pytest.mark.parametrize("noise", ["a factor of six, a fifth of the time", "stalls of two seconds"])
def test_eight_callers_on_eight_slots_are_all_answered_on_a_noisy_machine(noise: str) -> None:
    """Ten minutes. The limit used to fall to 2 within one, and seven of eight were refused."""
    rng = random.Random(1)

    def slowness(now: float) -> float:
        if noise.startswith("stalls"):
            return 8.0 if now % 10 < 2 else 1.0
        return rng.choice([1.0, 1.0, 1.0, 1.0, 6.0])

    machine = BatchingMachine(8, slowness)
    machine.run(600)
    assert machine.refused == 0
    counts = machine.answered.values()
    assert min(counts) > 100
    assert max(counts) - min(counts) <= 1


def test_answers_that_were_asked_for_before_it_fell_do_not_make_it_fall_again() -> None:
    """Fifty failures of one moment lower the limit once, from 100 to 80."""
    slots = Bulkhead("local", slots_max=100)
    limit = AdaptiveLimit(slots, start=100, unloaded=4)
    for _ in range(50):
        limit.failed(1.0, 2.0)
    assert slots.limit == 80


def request(number: int) -> UpstreamRequest:
    deadline = time.monotonic() + 10
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    return UpstreamRequest(
        request_id=f"r{number}", path="/chat/completions", body=orjson.dumps(body),
        first_byte_deadline=deadline, idle_seconds=10, deadline=deadline,
    )  # fmt: skip


@pytest.mark.slow
async def test_a_slow_model_process_is_given_what_it_can_do_and_the_rest_is_shed(
    tmp_path: Path,
) -> None:
    """Forty callers, four at once: the answers begin soon, and who is refused is told so soon."""
    async with FakeModel(tmp_path / "m.sock", parallel=4, seconds=lambda _: 0.01) as model:
        client = ModelProcessClient(model.path, "worker")
        client.start()
        await client.until_ready("generation", timeout_seconds=5)
        upstream = LocalUpstream("local", client, MODEL, concurrent_max=64, parallel=4)
        waits: list[float] = []
        refusals: list[float] = []
        end = time.monotonic() + 1.5

        async def call(caller: int) -> None:
            while (began := time.monotonic()) < end:
                try:
                    if not upstream.slots.take("t"):
                        await upstream.slots.wait("t", 0.05)
                except UpstreamOverloaded:
                    refusals.append(time.monotonic() - began)
                    await asyncio.sleep(0.05)  # as a client does before it comes back
                    continue
                sent = time.monotonic()
                try:
                    response = await upstream.send(request(caller))
                    assert b"ok" in await response.receive()
                    response.close()
                finally:
                    upstream.slots.release("t")
                waits.append(time.monotonic() - sent)

        await asyncio.gather(*(call(number) for number in range(40)))
        await client.close()
    assert upstream.slots.limit < 30
    assert upstream.slots.in_use == 0
    late = sorted(waits[len(waits) // 2 :])
    assert late[len(late) // 2] < 0.08, "it waited 0.1 s when all forty were let in"
    assert refusals, "the rest was shed"
    assert max(refusals) < 0.3
