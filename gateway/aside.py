"""Work on large bodies, beside the event loop and one at a time.

Decoding two at once is no faster, as Python's lock is one, and takes twice the memory.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

_Result = TypeVar("_Result")
_Given = ParamSpec("_Given")
_worker = ThreadPoolExecutor(1, "large-bodies")  # its thread begins with the first of them


async def aside(
    work: Callable[_Given, _Result], *args: _Given.args, **kwargs: _Given.kwargs
) -> _Result:
    """What ``work`` returns or raises."""
    done = _worker.submit(work, *args, **kwargs)
    return await asyncio.wrap_future(done)
