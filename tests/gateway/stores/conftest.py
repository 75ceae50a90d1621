"""In these tests there is one kind of server."""

import pytest

from tests.redis_server import RedisServer


@pytest.fixture
def server(redis_server: RedisServer) -> RedisServer:
    """A real Redis, empty."""
    return redis_server
