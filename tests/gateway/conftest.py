"""Fixtures for whole-gateway tests: one simulated provider and three gateways for the session."""

from collections.abc import Iterator

import openai
import pytest

from tests.gateway.dialect_world import dialect_gateway
from tests.gateway.running import ProviderThread, RunningGateway, running_gateway
from tests.redis_server import RedisServer


@pytest.fixture(scope="session")
def provider() -> Iterator[ProviderThread]:
    thread = ProviderThread(seed=7)
    yield thread
    thread.stop()


@pytest.fixture(scope="session")
def plain(
    tmp_path_factory: pytest.TempPathFactory, provider: ProviderThread
) -> Iterator[RunningGateway]:
    """A gateway without local models."""
    with running_gateway(tmp_path_factory.mktemp("plain"), provider.base_url) as gateway:
        yield gateway


@pytest.fixture(scope="session")
def dialects(
    tmp_path_factory: pytest.TempPathFactory, provider: ProviderThread
) -> Iterator[RunningGateway]:
    """A gateway whose providers speak every dialect."""
    with dialect_gateway(tmp_path_factory.mktemp("dialects"), provider) as gateway:
        yield gateway


@pytest.fixture(scope="session")
def full(
    tmp_path_factory: pytest.TempPathFactory, provider: ProviderThread
) -> Iterator[RunningGateway]:
    """A gateway with its model process and the real models."""
    folder = tmp_path_factory.mktemp("full")
    with running_gateway(folder, provider.base_url, local=True) as gateway:
        yield gateway


@pytest.fixture(scope="session")
def acme(plain: RunningGateway) -> Iterator[openai.OpenAI]:
    """The unmodified client of a tenant of the plain gateway."""
    with openai.OpenAI(
        base_url=plain.base_url, api_key=plain.key("acme"), max_retries=0, timeout=30
    ) as client:
        yield client


@pytest.fixture(scope="session")
def acme_full(full: RunningGateway) -> Iterator[openai.OpenAI]:
    """The unmodified client of a tenant of the full gateway."""
    with openai.OpenAI(
        base_url=full.base_url, api_key=full.key("acme"), max_retries=0, timeout=60
    ) as client:
        yield client


@pytest.fixture(scope="session")
def session_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A real Redis; tests that disturb one start their own."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_server(session_redis: RedisServer) -> RedisServer:
    """The same, emptied."""
    session_redis.ask("FLUSHALL")
    return session_redis
