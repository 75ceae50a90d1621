"""Providers that fail, hang or ask for patience: what the others, and the bill, notice of it."""

import asyncio
import itertools
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import httpx
import pytest

from gateway.simulator.faults import read_fault
from gateway.simulator.server import Served
from tests.fakes import Peer, RawUpstream
from tests.gateway.faulty_world import POLICY, Caller, message, open_files, request_bytes
from tests.gateway.running import ProviderThread, RunningGateway, running_gateway, wait_for


@pytest.fixture(scope="module")
def troubled() -> Iterator[ProviderThread]:
    """A provider of our own: its faults are seen by nobody else."""
    thread = ProviderThread(seed=11)
    yield thread
    thread.stop()


@pytest.fixture(scope="module")
def gateway(
    tmp_path_factory: pytest.TempPathFactory, troubled: ProviderThread
) -> Iterator[RunningGateway]:
    folder = tmp_path_factory.mktemp("resilience")
    with running_gateway(folder, troubled.base_url, policy=POLICY) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def key(gateway: RunningGateway) -> str:
    return gateway.key("acme")


@pytest.fixture
async def callers(gateway: RunningGateway, key: str) -> AsyncIterator[list[Caller]]:
    """Sixteen connections."""
    made = [Caller(gateway.port, key) for _ in range(16)]
    yield made
    for caller in made:
        caller.close()


async def load(
    callers: list[Caller], model: str, seconds: float, requests_max: int = 1_000_000,
    *, pause_seconds: float = 0.0,
) -> list[tuple[int, float]]:  # fmt: skip
    """Closed-loop load: (status, seconds) of each answer."""
    answers: list[tuple[int, float]] = []
    end, numbers = time.monotonic() + seconds, iter(range(requests_max))

    async def one(caller: Caller) -> None:
        for number in numbers:
            if time.monotonic() > end:
                return
            answers.append(await caller.ask(model, f"Question {number}"))
            await asyncio.sleep(pause_seconds)

    await asyncio.gather(*map(one, callers))
    return answers


def p99(seconds: list[float]) -> float:
    return sorted(seconds)[int(0.99 * len(seconds))]


async def thirty_percent_503(
    provider: ProviderThread, callers: list[Caller], seconds: float, requests_max: int,
    pause_seconds: float = 0.0,
) -> None:  # fmt: skip
    """Calls stay below 1.1 times the requests, most are saved, and recovery is at once."""
    simulator = provider.simulator
    simulator.fault, simulator.fault_rate = read_fault("status-503"), 0.3
    before = len(simulator.requests)
    try:
        answers = await load(
            callers, "wavering", seconds, requests_max, pause_seconds=pause_seconds
        )
    finally:
        simulator.fault = None
    calls = len(simulator.requests) - before
    assert len(answers) >= 500, "or the test says little"
    assert len(answers) < calls <= 1.10 * len(answers)
    statuses = [status for status, _ in answers]
    assert set(statuses) == {200, 503}
    assert statuses.count(200) > 0.72 * len(answers), "70 % without any retry"
    recovered = await load(callers, "wavering", 10.0, 200)
    assert {status for status, _ in recovered} == {200}


@pytest.mark.slow
async def test_retries_add_a_tenth_at_most_while_a_third_of_the_answers_are_503(
    troubled: ProviderThread, callers: list[Caller]
) -> None:
    """Unbounded retries would turn a provider's bad minute into an outage."""
    await thirty_percent_503(troubled, callers, 20.0, 1000)


@pytest.mark.long
async def test_retries_add_a_tenth_at_most_over_a_minute_of_503(
    troubled: ProviderThread, callers: list[Caller]
) -> None:
    """The bound is no matter of a short burst, and recovery is still at once."""
    # No faster than the provider remembers: it keeps its last 100,000 requests.
    await thirty_percent_503(troubled, callers, 60.0, 80_000, pause_seconds=0.02)


async def hanging(gateway: RunningGateway, key: str, count: int) -> list[asyncio.Task[int]]:
    """So many requests to the provider that says nothing; each task gives its status."""

    async def one() -> int:
        caller = Caller(gateway.port, key)
        try:
            return (await caller.ask("hung", "Wait. [[fault:hang]]"))[0]
        finally:
            caller.close()

    return [asyncio.create_task(one()) for _ in range(count)]


def hung_now(provider: ProviderThread) -> int:
    """Requests that the provider has and does not answer."""
    return sum(
        served.fault == "hang" and served.closed_after_seconds is None
        for served in provider.simulator.requests
    )


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    await asyncio.to_thread(wait_for, condition, seconds)


@pytest.mark.slow
async def test_a_hanging_provider_holds_its_slots_and_nothing_else(
    gateway: RunningGateway, key: str, troubled: ProviderThread, callers: list[Caller]
) -> None:
    """Eight of its ten slots for one tenant, the rest refused soon; the healthy one is answered,
    another tenant reaches even the hanging one, and every file is closed in the end.
    """
    await load(callers, "healthy", 5.0, 100)
    before = open_files(gateway)
    flood = await hanging(gateway, key, 60)
    await until(lambda: sum(task.done() for task in flood) == 52)
    assert {task.result() for task in flood if task.done()} == {503}
    assert hung_now(troubled) == 8
    answers = await load(callers, "healthy", 5.0, 300)
    assert {status for status, _ in answers} == {200}
    assert len(answers) == 300
    others = await hanging(gateway, gateway.key("globex"), 1)
    await until(lambda: hung_now(troubled) == 9)
    for task in (*flood, *others):
        task.cancel()
    await asyncio.gather(*flood, *others, return_exceptions=True)
    await until(lambda: hung_now(troubled) == 0)
    # The healthy provider's idle connections may have become as many as there are callers.
    await until(lambda: open_files(gateway) <= before + len(callers))


@pytest.mark.long
async def test_a_hanging_provider_does_not_slow_the_healthy_one(
    gateway: RunningGateway, key: str, troubled: ProviderThread, callers: list[Caller]
) -> None:
    """p99 within 10 % or 5 ms, half a minute each, in turns."""
    calm: list[float] = []
    beside: list[float] = []
    for _ in range(5):
        calm += [seconds for _, seconds in await load(callers[:4], "healthy", 5.0)]
        flood = await hanging(gateway, key, 60)
        beside += [seconds for _, seconds in await load(callers[:4], "healthy", 5.0)]
        for task in flood:
            task.cancel()
        await asyncio.gather(*flood, return_exceptions=True)
    assert p99(beside) <= max(1.10 * p99(calm), p99(calm) + 0.005)


def leave_after(
    gateway: RunningGateway, provider: ProviderThread, key: str, body: dict[str, Any],
    *, events: int = 0,
) -> tuple[Served, float]:  # fmt: skip
    """Leave after so many events: (the request as the provider saw it, seconds until it saw the
    connection closed).
    """
    before = len(provider.simulator.requests)
    with socket.create_connection(("127.0.0.1", gateway.port)) as connection:
        connection.settimeout(5)
        connection.sendall(request_bytes(key, body))
        received = b""
        while received.count(b"data: ") < events:
            received += connection.recv(65_536)
        wait_for(lambda: len(provider.simulator.requests) > before, 5.0)
        left = time.monotonic()
    served = provider.simulator.requests[-1]
    wait_for(lambda: served.closed_after_seconds is not None, 5.0, gateway.describe)
    assert served.closed_after_seconds is not None
    return served, served.received + served.closed_after_seconds - left


LEAVING = pytest.mark.parametrize("stream", [True, False])
WHEN = pytest.mark.parametrize(("fault", "written"), [("hang", 0), ("stall-after-5", 5)])


def leave_and_look(
    gateway: RunningGateway, provider: ProviderThread, key: str, *,
    stream: bool, fault: str, written: int, trials: int,
) -> list[float]:  # fmt: skip
    """Seconds until the provider was left, of each trial; what some of them cost is looked up."""
    left: list[tuple[Served, float]] = []
    for number in range(trials):
        body = {
            "model": "wavering", "stream": stream,
            "messages": message(f"{number} [[fault:{fault}]]"),
        }  # fmt: skip
        # A document's first bytes are not passed on: only a stream's can be waited for.
        left.append(leave_after(gateway, provider, key, body, events=written if stream else 0))
    for served, _ in left[::10]:
        (event,) = gateway.events(served.id.partition("/")[0])
        assert (event.status, event.state) == (499, "estimated")
        assert bool(event.prompt_tokens) == stream, "of a whole answer nothing is known"
        assert event.completion_tokens <= written + 8, "estimated from its text"
        assert bool(event.completion_tokens) == (stream and written > 0)
    return sorted(seconds for _, seconds in left)


@pytest.mark.slow
@LEAVING
@WHEN
def test_the_provider_is_left_soon_after_the_client_and_what_it_wrote_is_billed(
    gateway: RunningGateway, key: str, troubled: ProviderThread,
    stream: bool, fault: str, written: int,
) -> None:  # fmt: skip
    """Nine of ten connections close within 100 ms, and the tokens until then are booked."""
    seconds = leave_and_look(
        gateway, troubled, key, stream=stream, fault=fault, written=written, trials=10
    )
    assert seconds[8] <= 0.1


@pytest.mark.long
@LEAVING
@WHEN
def test_the_provider_is_left_within_100_ms_in_99_of_100_cases(
    gateway: RunningGateway, key: str, troubled: ProviderThread,
    stream: bool, fault: str, written: int,
) -> None:  # fmt: skip
    """Two hundred trials of each of the four kinds."""
    seconds = leave_and_look(
        gateway, troubled, key, stream=stream, fault=fault, written=written, trials=200
    )
    assert seconds[197] <= 0.1


def ejected(gateway: RunningGateway, provider: str) -> bool:
    with gateway.admin() as admin:
        metrics = admin.get("/metrics").text
    return f'tollhouse_upstream_ejected{{provider="{provider}"}} 1' in metrics


@pytest.mark.slow
def test_broken_streams_eject_a_provider_and_clients_that_leave_do_not(
    gateway: RunningGateway, key: str, troubled: ProviderThread
) -> None:
    """Cut, stalled and malformed: each counts when it ends. Then its fallback is asked first."""
    for number in range(10):
        body = {
            "model": "fragile", "stream": True,
            "messages": message(f"{number} [[fault:stall-after-5]]"),
        }  # fmt: skip
        leave_after(gateway, troubled, key, body, events=5)
    assert not ejected(gateway, "fragile")
    headers = {"authorization": f"Bearer {key}"}
    with httpx.Client(base_url=gateway.base_url, headers=headers, trust_env=False) as client:

        def ask(fault: str) -> httpx.Response:
            body = {"model": "backed", "stream": True, "messages": message(f"[[fault:{fault}]]")}
            return client.post("/chat/completions", json=body, timeout=10)

        for fault in ("cut-after-40", "stall-after-20", "malformed-event-after-10") * 2:
            answer = ask(fault)
            assert answer.headers["x-tollhouse-model"] == "fragile"
            assert '"error"' in answer.text
            assert "[DONE]" not in answer.text
        assert ejected(gateway, "fragile")
        answer = ask("pings")
        assert answer.headers["x-tollhouse-model"] == "healthy"
        assert "[DONE]" in answer.text


@pytest.mark.parametrize(
    ("advice", "calls", "apart_seconds", "told"),
    [
        (b"retry-after-ms: 150", 3, 0.15, "1"),
        (b"retry-after: 0", 3, 0.0, "1"),
        (b"retry-after: 1000000000", 1, 0.0, "1000000000"),
        (b"retry-after: Fri, 01 Jan 2100 00:00:00 GMT", 3, 0.0, None),
        (b"retry-after: Fri, 01 Jan 1999 00:00:00 GMT", 3, 0.0, None),
        (b"retry-after: -7", 3, 0.0, None),
        (b"retry-after: soon", 3, 0.0, None),
    ],
)
@pytest.mark.parametrize("status", [b"429 Too Many Requests", b"503 Service Unavailable"])
async def test_nobody_is_asked_again_earlier_than_he_wants(
    scripted: "Scripted", advice: bytes, calls: int, apart_seconds: float, told: str | None,
    status: bytes,
) -> None:  # fmt: skip
    """What is asked for is waited for and passed on; more than thirty years is no advice."""
    asked_at, answer = await scripted(b"HTTP/1.1 " + status + b"\r\n" + advice)
    assert len(asked_at) == calls
    gaps = [later - sooner for sooner, later in itertools.pairwise(asked_at)]
    assert all(gap >= apart_seconds for gap in gaps)
    assert answer.status_code == int(status[:3])
    assert answer.headers.get("retry-after") == told


@pytest.mark.parametrize(
    ("status", "calls", "advice"),
    [
        (b"500 Broken", 3, "true"),
        (b"502 Bad Gateway", 3, "true"),
        (b"520 Unknown", 3, "true"),
        (b"409 Conflict", 3, "true"),
        (b"504 Late", 1, "true"),
        (b"408 Late", 1, "true"),
        (b"400 Wrong", 1, None),
        (b"404 Gone", 1, None),
    ],
)
async def test_what_a_client_would_ask_again_is_asked_again_by_us_or_by_the_client(
    scripted: "Scripted", status: bytes, calls: int, advice: str | None
) -> None:
    """As OpenAI's clients do. Where a proxy lost patience the model may write on, and be paid."""
    asked_at, answer = await scripted(b"HTTP/1.1 " + status)
    assert len(asked_at) == calls
    assert answer.status_code == int(status[:3])
    assert answer.headers.get("x-should-retry") == advice


SCRIPTED_MAX = 32
Scripted = Callable[[bytes], Awaitable[tuple[list[float], httpx.Response]]]


@pytest.fixture(scope="module")
def scripted_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def scripted_numbers() -> Iterator[int]:
    return iter(range(SCRIPTED_MAX))


@pytest.fixture(scope="module")
def scripted_gateway(
    tmp_path_factory: pytest.TempPathFactory, troubled: ProviderThread, scripted_port: int
) -> Iterator[RunningGateway]:
    folder = tmp_path_factory.mktemp("scripted")
    # Each test has a provider of its own, because each uses up its retry budget.
    providers = "".join(
        f"  - {{name: scripted-{number}, api: openai,"
        f' base_url: "http://127.0.0.1:{scripted_port}/v1"}}\n'
        for number in range(SCRIPTED_MAX)
    )
    models = "".join(
        f"  - {{name: scripted-{number}, provider: scripted-{number}, upstream_model: a,"
        " price: {source: unpriced}}\n"
        for number in range(SCRIPTED_MAX)
    )
    policy = POLICY.replace("models:\n", f"{providers}models:\n{models}", 1)
    with running_gateway(folder, troubled.base_url, policy=policy) as gateway:
        yield gateway


@pytest.fixture
def scripted(
    scripted_gateway: RunningGateway, scripted_port: int, scripted_numbers: Iterator[int]
) -> Scripted:
    """Ask for an answer of a provider with this head: when it was asked, what the client got."""
    key = scripted_gateway.key("acme")
    model = f"scripted-{next(scripted_numbers)}"

    async def ask(head: bytes) -> tuple[list[float], httpx.Response]:
        asked_at: list[float] = []

        async def script(peer: Peer) -> None:
            while True:
                await peer.request()
                asked_at.append(time.monotonic())
                await peer.send(head + b"\r\ncontent-length: 2\r\n\r\n{}")

        async with (
            RawUpstream(script, port=scripted_port),
            httpx.AsyncClient(trust_env=False, timeout=10) as client,
        ):
            answer = await client.post(
                scripted_gateway.base_url + "/chat/completions",
                json={"model": model, "messages": message("Hello")},
                headers={"authorization": f"Bearer {key}"},
            )
        return asked_at, answer

    return ask
