"""This worker's connections to the node's model processes, one for each that the policy wants.

Knows which provider is answered by which process, and what each process says of itself. Belongs
to one event loop; only ``adopt`` may be called from another thread.
"""

import asyncio
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from gateway.config import Settings
from gateway.model_processes import ModelProcess, embedder, process_of, tell_supervisor, wanted
from gateway.policy.snapshot import Provider
from gateway.upstreams.local import ModelProcessClient

_log = logging.getLogger("tollhouse")


class ModelClients:
    """Made with the gateway; connects from ``start`` on."""

    def __init__(self, settings: Settings, run_dir: Path) -> None:
        self._settings = settings
        self._run_dir = run_dir
        self._supervisor = os.getppid()
        self._loop: asyncio.AbstractEventLoop | None = None
        # Those of an older policy stay: its requests, and the policy, may come back.
        self._clients: dict[ModelProcess, ModelProcessClient] = {}
        self._wanted: tuple[ModelProcess, ...] = ()
        self.embedder = self._client(embedder(settings))

    def of(self, provider: Provider) -> ModelProcessClient:
        """The connection to the model of a local provider."""
        return self._client(process_of(provider, self._settings))

    def adopt(self, providers: Iterable[Provider]) -> None:
        """A policy names these; the processes of others end when they have answered."""
        self._wanted = wanted(self._settings, providers)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._follow)

    def start(self) -> None:
        """Connect in the background, now and whenever a connection is lost."""
        self._loop = asyncio.get_running_loop()
        self._follow()

    def current(self) -> Mapping[ModelProcess, ModelProcessClient]:
        """Those that the policy in force wants."""
        return {process: self._client(process) for process in self._wanted}

    def sha256_of(self, provider: Provider) -> str:
        """Return the digest of a local provider's file, as its process tells it; empty: not known.

        Of ``default`` a policy does not say which file it is.
        """
        state = self.of(provider).state
        return state.generation.sha256 if state is not None and state.generation is not None else ""

    def states(self) -> dict[str, str]:
        """Per model of the policy its ``condition``."""
        found: dict[str, str] = {}
        for process, client in self.current().items():
            name = process.label if process.label not in found else f"{process.label} {process.key}"
            found[name] = client.condition(process.kind)
        return found

    async def close(self) -> None:
        """End the connections; pending calls fail."""
        for client in self._clients.values():
            await client.close()

    def _client(self, process: ModelProcess) -> ModelProcessClient:
        client = self._clients.get(process)
        if client is None:
            path = process.socket(self._run_dir)
            client = self._clients[process] = ModelProcessClient(path, f"worker-{os.getpid()}")
        return client

    def _follow(self) -> None:
        for process in self._wanted:
            self._client(process).start()
        for process, client in self._clients.items():
            if process not in self._wanted:
                client.retire()
        try:
            tell_supervisor(self._wanted, self._settings, self._run_dir, self._supervisor)
        except OSError as error:
            _log.error("the model processes of this policy cannot be started: %s", error)
