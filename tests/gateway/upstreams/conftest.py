"""The HTTP client is tested on both event loops: the gateway's and Python's own."""

import asyncio
from collections.abc import Callable

import pytest
import uvloop

Factories = dict[str, Callable[[], asyncio.AbstractEventLoop]]


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> Factories:
    factories: Factories = {"asyncio": asyncio.new_event_loop}
    if item.path.name in ("test_http1.py", "test_connect.py"):
        factories["uvloop"] = uvloop.new_event_loop
    return factories
