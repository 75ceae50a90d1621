"""A worker's end: answers the admin process, and finds it again when it has been restarted.

Knows no policy and no request; what to answer is the worker's business.
"""

import asyncio
import logging
import secrets
from pathlib import Path
from typing import Protocol

from gateway.node import messages
from gateway.node.messages import Answer, Hello, Question

_PAUSE_SECONDS = 0.1  # between attempts to reach the admin process
_log = logging.getLogger("tollhouse.node")


class Worker(Protocol):
    """The worker's side of the link."""

    def connected(self) -> None:
        """There is an admin process, perhaps a new one: what the last one said is void."""

    async def answer(self, question: Question) -> Answer:
        """Do what is asked. Where that fails, the link ends and is made anew."""


async def keep_link(path: Path, number: int, worker: Worker) -> None:
    """Answer the admin process at ``path`` for ever. ``number``: which worker this is."""
    hello = Hello(number, secrets.token_hex(8))
    while True:
        try:
            reader, writer = await asyncio.open_unix_connection(path)
            try:
                await messages.send(writer, hello)
                worker.connected()
                while True:
                    question = await messages.read_question(reader)
                    await messages.send(writer, await worker.answer(question))
            finally:
                writer.close()
        except (OSError, EOFError):
            pass
        except Exception:  # whatever it was: without this link no revoked key is heard of
            _log.exception("answering the admin process failed; beginning anew")
        await asyncio.sleep(_PAUSE_SECONDS)
