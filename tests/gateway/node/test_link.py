"""The link between the admin process and a worker: made anew whatever ends it."""

import asyncio
from pathlib import Path

from gateway.node.hub import Hub, Peer
from gateway.node.link import keep_link
from gateway.node.messages import Adopt, Answer, Question, Standing, Wanted


class Clumsy:
    """A worker that cannot do what it is asked the third time."""

    def __init__(self) -> None:
        self.links = self.asked = 0
        self.up_to_date = asyncio.Event()

    def connected(self) -> None:
        self.links += 1

    async def answer(self, question: Question) -> Answer:
        self.asked += 1
        if self.asked == 3:
            raise RuntimeError("such as a database that is locked")
        if self.links == 2:
            self.up_to_date.set()
        return Standing(healthy=True)


async def test_a_worker_that_fails_to_answer_is_asked_again_over_a_new_link(tmp_path: Path) -> None:
    """Or it would serve on for ever, and never hear of a revoked key."""
    left: list[Peer] = []
    hub = Hub(
        1,
        wanted=lambda: Wanted(0, 0, {}),
        policy=lambda: Adopt(0, []),
        came=lambda _: None,
        left=left.append,
    )
    await hub.open(tmp_path / "node.sock")
    worker = Clumsy()
    link = asyncio.ensure_future(keep_link(tmp_path / "node.sock", 0, worker))
    try:
        async with asyncio.timeout(5.0):
            await worker.up_to_date.wait()
        assert [peer.process for peer in hub.peers] == [peer.process for peer in left]
    finally:
        link.cancel()
        await asyncio.gather(link, return_exceptions=True)
        await hub.close()
