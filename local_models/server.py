"""The node's model process: embeddings and generation for several gateways over one Unix socket.

    python -m local_models.server --socket PATH --generation NAME --embedding NAME

Knows the command line, signals and the socket's path. Does not know what is said over it.
"""

import argparse
import asyncio
import logging
import os
import signal
import sys
from pathlib import Path

import msgspec

from local_models.log_lines import LEVELS, Format, configure
from local_models.memory import MemoryBound
from local_models.messages import LocalModelError
from local_models.model_server import Connection, Models, ModelServer
from local_models.unix_socket import OwnedSocket, end_with_parent

DRAIN_SECONDS_MAX = 60.0
"""After SIGTERM, for what is being generated. A gateway that ends has left before: no wait then."""


class Settings(Models, frozen=True, kw_only=True):
    """What the command line says."""

    socket: Path
    nice: int
    outlive_parent: bool
    memory_bytes: int
    log_format: Format
    log_level: str


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. Raises SocketInUse."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    owned = OwnedSocket(settings.socket)
    try:
        bound = MemoryBound(settings.socket.with_name("memory.json"), settings.memory_bytes)
        server = ModelServer(loop, bound)
        listener = await loop.create_unix_server(lambda: Connection(server), sock=owned.listener)
        loading = loop.create_task(server.load(settings))
        stopping = loop.create_task(stop.wait())
        # An unexpected failure of loading ends the process: its supervisor starts a new one.
        await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_EXCEPTION)
        stopping.cancel()
        listener.close()
        await server.drain(DRAIN_SECONDS_MAX)
        await server.close()
        if not loading.done():
            loading.cancel()
        else:
            loading.result()
    finally:
        owned.close()


def parse_arguments(arguments: list[str]) -> Settings:
    """The command line as settings; exits with usage on a wrong one."""
    parser = argparse.ArgumentParser(prog="python -m local_models.server", description=__doc__)
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument(
        "--generation", default="", help="name, /path or REPO@REV/FILE; empty: none"
    )
    parser.add_argument("--sha256", default="", help="of that file, where it is no name")
    parser.add_argument("--embedding", default="", help="model to embed with; empty: none")
    parser.add_argument("--threads", type=int, default=2, help="of generation")
    parser.add_argument("--slots", type=int, default=4, help="generations that run at once")
    parser.add_argument("--context-tokens", type=int, default=2048)
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="of generation"
    )
    parser.add_argument("--models-dir", type=Path, default=None)
    parser.add_argument(
        "--memory-bytes", type=int, default=0, help="of all models that listen in one folder"
    )
    parser.add_argument("--nice", type=int, default=0, help="added to the process's niceness")
    parser.add_argument("--outlive-parent", action="store_true")
    parser.add_argument("--log-format", choices=("text", "json"), default="text")
    parser.add_argument("--log-level", choices=LEVELS, default="info")
    return msgspec.convert(vars(parser.parse_args(arguments)), Settings)


def main(arguments: list[str] | None = None) -> int:
    """Run the model process; the exit status."""
    settings = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    configure("model", settings.log_format, settings.log_level)
    try:
        if not settings.outlive_parent:
            end_with_parent()
        os.nice(settings.nice)
        asyncio.run(serve(settings))
    except (LocalModelError, ProcessLookupError) as error:
        if settings.log_format == "json":
            logging.getLogger("local_models").error("cannot serve: %s", error)
        else:
            print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    # A daemon thread that still loads a model must not meet the interpreter's tear-down.
    os._exit(status)
