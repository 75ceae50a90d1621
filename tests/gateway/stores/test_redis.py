"""The connection to Redis: replies never mixed up, waits bounded, trouble told from answers."""

import asyncio
import contextlib
import gc
import logging
import random
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from gateway.stores.redis import Redis, RedisUnavailable, Script
from gateway.stores.redis_connection import COMMANDS_MAX, REPLY_BYTES_MAX, UNSENT_BYTES_MAX
from tests.fakes import Peer, RawUpstream
from tests.gateway.running import free_port
from tests.redis_server import RedisServer

TIMEOUT_SECONDS = 0.05
BACK_SECONDS = 5.0
PING = b"*1\r\n$4\r\nPING\r\n"


@pytest.fixture
async def redis(server: RedisServer) -> AsyncIterator[Redis]:
    async with connected(server.url) as made:
        yield made


@pytest.fixture
def own(tmp_path: Path) -> "RedisServer":
    """A server that the test may stop."""
    return RedisServer(tmp_path)


@contextlib.asynccontextmanager
async def connected(
    url: str, count: Callable[[str], None] = lambda _: None, open_seconds: float = 1.0
) -> AsyncIterator[Redis]:
    made = Redis(url, count=count, open_seconds=open_seconds)
    try:
        await made.connect()
        yield made
    finally:
        await made.close()


async def until(condition: Callable[[], bool], seconds: float = BACK_SECONDS) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.005)


async def test_each_of_many_concurrent_calls_gets_its_own_reply(redis: Redis) -> None:
    """3,000 at once over one connection: a mixed-up reply could cross tenants."""
    numbers = range(3000)
    answers = await asyncio.gather(*(redis.call("ECHO", number) for number in numbers))
    assert answers == [b"%d" % number for number in numbers]


async def test_every_kind_of_reply_arrives_as_what_it_is(redis: Redis) -> None:
    """Binary keys, nulls, numbers, lists and three megabytes come back as they were stored."""
    assert await redis.call("SET", b"k\x00", b"\r\n\xff") == b"OK"
    assert await redis.call("GET", b"k\x00") == b"\r\n\xff"
    assert await redis.call("GET", "absent") is None
    assert await redis.call("INCRBY", "n", 41) == 41
    assert await redis.call("MGET", "n", "absent") == [b"41", None]
    large = random.Random(1).randbytes(3 << 20)
    await redis.call("SET", "large", large)
    assert await redis.call("GET", "large") == large


async def test_the_commands_of_one_turn_leave_in_one_write() -> None:
    """A hundred calls cost one system call rather than a hundred."""
    reads: list[bytes] = []

    async def answer(peer: Peer) -> None:
        while data := await peer._reader.read(1 << 20):
            reads.append(data)
            await peer.send(b"+PONG\r\n" * data.count(b"PING"))

    async with RawUpstream(answer) as fake, connected(f"redis://127.0.0.1:{fake.port}") as redis:
        await asyncio.gather(*(redis.call("PING") for _ in range(100)))
        assert reads == [PING, PING * 100]  # the greeting, then the turn


async def test_a_cancelled_caller_takes_nobody_else_s_reply(redis: Redis) -> None:
    """The abandoned reply is dropped, and every other caller still gets its own."""
    callers = [asyncio.create_task(redis.call("ECHO", n)) for n in range(100)]
    await asyncio.sleep(0)
    for caller in callers[::3]:
        caller.cancel()
    for n, caller in enumerate(callers):
        if n % 3:
            assert await caller == b"%d" % n
    assert await redis.call("ECHO", "after") == b"after"


async def test_a_script_is_sent_once_and_again_when_redis_has_forgotten_it(
    redis: Redis, server: RedisServer
) -> None:
    """A restarted Redis has no scripts; nine callers at once notice nothing of it."""
    script = Script("return {KEYS[1], ARGV[1], tonumber(ARGV[2])}")
    server.ask("SCRIPT", "FLUSH")
    for _ in range(2):
        assert await redis.run(script, [b"k"], [b"a", 7]) == [b"k", b"a", 7]
    server.ask("SCRIPT", "FLUSH")
    answers = await asyncio.gather(*(redis.run(script, [b"k"], [b"a", n]) for n in range(9)))
    assert answers == [[b"k", b"a", n] for n in range(9)]
    assert server.ask("SCRIPT", "EXISTS", script.sha1) == [1]


async def test_an_error_that_concerns_one_command_harms_no_other(redis: Redis) -> None:
    """Twenty commands against a wrong type do not make Redis count as away."""
    await redis.call("SET", "text", "x")
    for _ in range(20):
        with pytest.raises(RedisUnavailable, match="WRONGTYPE"):
            await redis.call("LPUSH", "text", "y")
    assert redis.healthy
    assert await redis.call("GET", "text") == b"x"


async def test_a_frozen_redis_costs_its_timeout_once_and_then_nothing(own: RedisServer) -> None:
    """Later requests fail at once instead of waiting 50 ms each, until Redis is back."""
    with own:
        async with connected(own.url) as redis:
            own.freeze()
            try:
                began = time.monotonic()
                lost = await asyncio.gather(
                    *(redis.call("ECHO", "late") for _ in range(3)), return_exceptions=True
                )
                assert time.monotonic() - began < TIMEOUT_SECONDS + 0.05
                assert all(isinstance(answer, RedisUnavailable) for answer in lost)
                began = time.monotonic()
                for _ in range(500):
                    with pytest.raises(RedisUnavailable):
                        await redis.call("ECHO", "later")
                assert time.monotonic() - began < TIMEOUT_SECONDS
                assert not redis.healthy
            finally:
                own.thaw()
            await until(lambda: redis.healthy)
            answers = [await redis.call("ECHO", n) for n in range(50)]
            assert answers == [b"%d" % n for n in range(50)]


async def test_a_stopped_redis_is_refused_at_once_and_found_again(own: RedisServer) -> None:
    """Started twice and stopped twice, it is used again each time without a restart of ours."""
    async with connected(own.url) as redis:
        assert not redis.healthy
        with pytest.raises(RedisUnavailable):
            await redis.call("PING")
        for _ in range(2):
            own.start()
            await until(lambda: redis.healthy)
            assert await redis.call("PING") == b"PONG"
            own.stop()
            await until(lambda: not redis.healthy)


async def test_our_own_busy_moment_is_not_taken_for_a_slow_redis(redis: Redis) -> None:
    """The reply lay in the socket all the time."""
    caller = asyncio.create_task(redis.call("ECHO", "there"))
    for _ in range(3):
        await asyncio.sleep(0)
    time.sleep(2 * TIMEOUT_SECONDS)  # noqa: ASYNC251 - that is the point
    assert await caller == b"there"


@pytest.mark.slow
async def test_five_refusals_in_a_row_give_the_connection_up_for_a_second(
    own: RedisServer,
) -> None:
    """A replica that serves no writer, until it is promoted."""
    with own:
        async with connected(own.url) as redis:
            own.ask("REPLICAOF", "127.0.0.1", 1)
            for _ in range(5):
                assert redis.healthy
                with pytest.raises(RedisUnavailable, match="READONLY"):
                    await redis.call("SET", "k", "v")
            gone = time.monotonic()
            assert not redis.healthy
            own.ask("REPLICAOF", "NO", "ONE")
            await until(lambda: redis.healthy)
            assert 0.9 < time.monotonic() - gone < 2.0
            assert await redis.call("SET", "k", "v") == b"OK"


async def test_a_full_redis_refuses_writes_and_still_serves_reads(own: RedisServer) -> None:
    """Out of memory is no outage: stored answers stay available and the connection stays up."""
    with own:
        async with connected(own.url) as redis:
            await redis.call("SET", "k", "v")
            own.ask("CONFIG", "SET", "maxmemory", 1)
            for _ in range(20):
                with pytest.raises(RedisUnavailable, match="OOM"):
                    await redis.call("SET", "k", "w")
                assert await redis.call("GET", "k") == b"v"
            assert redis.healthy


async def test_a_redis_that_still_loads_counts_as_away(caplog: pytest.LogCaptureFixture) -> None:
    """No request meets the loading errors; the log says why, and the third attempt succeeds."""

    async def load(peer: Peer) -> None:
        await peer._reader.readexactly(len(PING))
        ready = peer.number > 1
        await peer.send(b"+PONG\r\n" if ready else b"-LOADING Redis is loading\r\n")
        await peer.gone()

    async with RawUpstream(load) as fake, connected(f"redis://127.0.0.1:{fake.port}") as redis:
        assert not redis.healthy
        await until(lambda: redis.healthy)
        assert len(fake.peers) == 3
    assert "LOADING" in caplog.text


GARBAGE = {
    "no protocol": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "one reply too many": b"+PONG\r\n+PONG\r\n",
    "a negative length": b"$-7\r\n",
    "an absurd array": b"*4294967296\r\n:1\r\n",
    "deep nesting": b"*1\r\n" * 5000,
    "an error that is no text": b"-\xff\xfe\r\n",
    "a type of another protocol": b"%1\r\n+a\r\n+b\r\n",
    "an endless reply": b"$99999999\r\n" + bytes(REPLY_BYTES_MAX + 1),
    "half a reply, then the end": b"$5\r\nab",
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
async def test_bytes_that_are_no_reply_end_the_connection(garbage: bytes) -> None:
    """A confused or hostile server gives no call a foreign value, and a new connection is made."""

    async def corrupt(peer: Peer) -> None:
        await peer._reader.readexactly(len(PING))
        await peer.send(b"+PONG\r\n")
        await peer._reader.readexactly(1)
        await peer.send(garbage)
        peer.close()

    async with (
        RawUpstream(corrupt) as fake,
        connected(f"redis://127.0.0.1:{fake.port}", open_seconds=0.05) as redis,
    ):
        first, *rest = await asyncio.gather(
            *(redis.call("GET", n) for n in range(20)), return_exceptions=True
        )
        assert isinstance(first, RedisUnavailable) or garbage.startswith((b"+PONG", b"%"))
        assert all(isinstance(answer, RedisUnavailable) for answer in rest[1:])
        await until(lambda: len(fake.peers) > 1)  # and it is tried again


@pytest.mark.parametrize("greeting", [b"+PONG\r\n+PONG\r\n", b"+PING\r\n", b"*0\r\n", b"$-1\r\n"])
async def test_who_greets_otherwise_is_no_redis(greeting: bytes) -> None:
    """No call is ever sent to it, and none waits."""

    async def greet(peer: Peer) -> None:
        await peer.send(greeting)
        await peer.gone()

    async with RawUpstream(greet) as fake, connected(f"redis://127.0.0.1:{fake.port}") as redis:
        assert not redis.healthy
        async with asyncio.timeout(1):
            for _ in range(100):
                with pytest.raises(RedisUnavailable):
                    await redis.call("GET", "k")


async def test_random_bytes_never_do_more_than_end_the_connection() -> None:
    """A hundred noisy servers leave no hanging call and no exception in a background task."""
    rng = random.Random(7)

    async def corrupt(peer: Peer) -> None:
        await peer._reader.readexactly(len(PING))
        await peer.send(b"+PONG\r\n")
        await peer._reader.readexactly(1)
        noise = bytes(rng.choices(b"*$+-:%_,#(!=~>|0123456789\r\n\r\na\xff", k=200))
        with contextlib.suppress(ConnectionError):
            await peer.send(noise)
        peer.close()

    async with RawUpstream(corrupt) as fake:
        for _ in range(100):
            async with connected(f"redis://127.0.0.1:{fake.port}") as redis:
                await asyncio.gather(
                    *(redis.call("GET", n) for n in range(10)), return_exceptions=True
                )
    gc.collect()  # nobody has left an exception behind


async def test_posts_arrive_in_order_before_the_connection_closes(server: RedisServer) -> None:
    """A thousand unanswered writes are flushed by close, in the order in which they were made."""
    async with connected(server.url) as redis:
        for n in range(1000):
            redis.post("RPUSH", "list", n)
    assert server.ask("LRANGE", "list", 0, -1) == [b"%d" % n for n in range(1000)]


async def test_posts_are_lost_and_counted_while_redis_is_away(own: RedisServer) -> None:
    """They are not sent late, and a write that Redis refuses is counted as lost too."""
    told: list[str] = []
    async with connected(own.url, told.append) as redis:
        for n in range(7):
            redis.post("SET", n, "x")
        assert told == ["lost"] * 7
        own.start()
        await until(lambda: redis.healthy)
        assert await redis.call("DBSIZE") == 0
        redis.post("LPUSH", "a", "x")
        redis.post("INCR", "a")  # refused by Redis: lost too
        assert await redis.call("DBSIZE") == 1
        assert told == ["lost"] * 8
    own.stop()


@pytest.mark.parametrize("size_bytes", [0, 100_000])
async def test_what_waits_for_a_redis_that_reads_nothing_is_bounded(
    own: RedisServer, size_bytes: int
) -> None:
    """By commands where they are small, by bytes where they are large."""
    told: list[str] = []
    with own:
        async with connected(own.url, told.append) as redis:
            own.freeze()
            value = bytes(size_bytes)
            for _ in range(COMMANDS_MAX + 5):
                redis.post("SET", "k", value)
            own.thaw()
        kept = COMMANDS_MAX + 5 - len(told)
        assert kept <= COMMANDS_MAX
        assert kept * size_bytes <= UNSENT_BYTES_MAX + size_bytes


async def test_the_first_call_connects(server: RedisServer) -> None:
    """No explicit connect is needed, three calls share it, and after close every call fails."""
    redis = Redis(server.tcp_url)
    assert await asyncio.gather(*(redis.call("ECHO", n) for n in range(3))) == [b"0", b"1", b"2"]
    await redis.close()
    with pytest.raises(RedisUnavailable):
        await redis.call("PING")


def make_certificate(folder: Path) -> tuple[str, str]:
    """Files of a key and of a certificate for localhost that vouches for itself."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl, which makes the certificate, is not installed")
    key, certificate = str(folder / "key.pem"), str(folder / "certificate.pem")
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "2", "-keyout", key, "-out", certificate, "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost"],
        check=True, capture_output=True,
    )  # fmt: skip
    return key, certificate


async def test_tls_is_spoken_only_to_whom_the_system_trusts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A self-signed certificate is refused until the system's trust file contains it."""
    key, certificate = make_certificate(tmp_path)
    port = free_port()
    options = ("--tls-port", str(port), "--tls-cert-file", certificate, "--tls-key-file", key,
               "--tls-auth-clients", "no")  # fmt: skip
    with RedisServer(tmp_path, *options):
        async with connected(f"rediss://localhost:{port}") as redis:
            assert not redis.healthy
        assert "certificate verify failed" in caplog.text
        monkeypatch.setenv("SSL_CERT_FILE", certificate)
        async with connected(f"rediss://localhost:{port}") as redis:
            assert await redis.call("ECHO", "hidden") == b"hidden"


async def test_a_host_that_cannot_exist_is_a_redis_that_is_away() -> None:
    """A label of 64 characters fails in the resolver and must not stop the gateway's start."""
    async with connected(f"redis://{'x' * 64}.invalid") as redis:
        assert not redis.healthy


async def test_user_password_and_database_come_from_the_url(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The right password selects user and database; the wrong one appears in no log."""
    with RedisServer(tmp_path) as own:
        own.ask("ACL", "SETUSER", "gate", "on", ">s3cr@t", "~*", "+@all")
        own.ask("ACL", "SETUSER", "default", "resetpass", "nopass", "on")
        place = f"@127.0.0.1:{own.port}"
        async with connected(f"redis://gate:s3cr%40t{place}/3") as redis:
            assert await redis.call("ACL", "WHOAMI") == b"gate"
            await redis.call("SET", "k", "v")
        assert b"db3:keys=1" in own.ask("INFO", "keyspace")
        with caplog.at_level(logging.INFO):
            async with connected(f"redis://gate:s3cr%40t-wrong{place}") as redis:
                assert not redis.healthy
        assert "WRONGPASS" in caplog.text
        assert "s3cr" not in caplog.text
