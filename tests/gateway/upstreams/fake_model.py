"""A model process without a model: speaks the protocol, answers after a set time."""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Self

from local_models import protocol
from local_models.messages import Delta, Finished, ModelInfo

MODEL = "fake-model"


class FakeModel:
    """Computes ``parallel`` generations at once, each ``seconds()`` long; the others wait."""

    def __init__(self, path: Path, *, parallel: int, seconds: Callable[[int], float]) -> None:
        self.path = path
        self.parallel = parallel
        self.asked: list[str] = []  # request ids, in the order in which they came
        self.cancelled: list[str] = []
        self._seconds = seconds
        self._computing = 0
        self._turn = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._serve, str(self.path))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        model = ModelInfo(
            name=MODEL, context_tokens=2048, vocabulary=100, fused=False, accuracy_level=0
        )
        ready = protocol.Ready(protocol.PROTOCOL_VERSION, "absent", "ready", None, model)
        writer.write(protocol.encode_frame(ready))
        splitter = protocol.FrameSplitter()
        running: dict[int, tuple[str, asyncio.Task[None]]] = {}
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65_536):
                for payload in splitter.feed(data):
                    frame = protocol.decode_client_frame(payload)
                    if isinstance(frame, protocol.Generate):
                        name = frame.request.request_id
                        task = asyncio.create_task(self._answer(writer, frame, len(self.asked)))
                        self.asked.append(name)
                        running[frame.id] = name, task
                        self._tasks.add(task)
                        task.add_done_callback(self._tasks.discard)
                    elif isinstance(frame, protocol.Cancel) and frame.id in running:
                        name, task = running[frame.id]
                        if task.cancel():
                            self.cancelled.append(name)

    async def _answer(
        self, writer: asyncio.StreamWriter, frame: protocol.Generate, number: int
    ) -> None:
        async with self._turn:
            await self._turn.wait_for(lambda: self._computing < self.parallel)
            self._computing += 1
        try:
            await asyncio.sleep(self._seconds(number))
            end = Finished("stop", prompt_tokens=5, completion_tokens=1, compute_us=100)
            for answer in (
                protocol.DeltaFrame(frame.id, Delta("ok", 1)),
                protocol.FinishedFrame(frame.id, end),
            ):
                writer.write(protocol.encode_frame(answer))
        finally:
            self._computing -= 1
            async with self._turn:
                self._turn.notify_all()
