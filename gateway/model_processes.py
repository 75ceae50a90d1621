"""Which model processes a policy wants: one for each local model, so that none takes another along.

Two sessions of ONNX Runtime in one process also spin against each other. Knows settings and
providers. Starts nothing: the supervisor does, told by a file of its run folder and a signal.
"""

import hashlib
import json
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import msgspec

from gateway.config import Settings
from gateway.policy.snapshot import Provider

WANTED_FILE = "models.json"
"""In the run folder: [name, command line] of each model process that is wanted."""


class ModelProcess(msgspec.Struct, frozen=True, kw_only=True):
    """One model and how it is to be run. Equal ones are one process, whoever asks for it."""

    kind: Literal["generation", "embedding"]
    model: str  # a name of the catalogue, an absolute path, or REPO@REV/FILE of the hub
    sha256: str = ""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    slots: int
    context_tokens: int

    @property
    def label(self) -> str:
        """A short name for people: of a file, without its folder."""
        return self.model.rpartition("/")[2]

    @property
    def key(self) -> str:
        """8 hexadecimal digits: short, for the path of a socket has 107 bytes."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:8]

    def socket(self, run_dir: Path) -> Path:
        """Where it listens."""
        return run_dir / f"{self.key}.sock"

    def command(self, settings: Settings, run_dir: Path) -> list[str]:
        """The command line that runs it."""
        local = settings.local
        arguments = [sys.executable, "-m", "local_models.server"]
        arguments += ["--socket", str(self.socket(run_dir)), f"--{self.kind}", self.model]
        arguments += ["--threads", str(local.threads), "--slots", str(self.slots)]
        arguments += ["--context-tokens", str(self.context_tokens), "--nice", str(local.nice)]
        arguments += ["--device", self.device]
        arguments += ["--log-format", settings.log.format, "--log-level", settings.log.level]
        if settings.models.memory is not None:
            arguments += ["--memory-bytes", str(settings.models.memory)]
        if self.sha256:
            arguments += ["--sha256", self.sha256]
        if settings.models_dir is not None:
            arguments += ["--models-dir", str(settings.models_dir)]
        return arguments

    def child(self, settings: Settings, run_dir: Path) -> tuple[str, list[str]]:
        """Name and command line, as the supervisor takes them."""
        return f"model process {self.label} ({self.key})", self.command(settings, run_dir)


def embedder(settings: Settings) -> ModelProcess:
    """The model that embeds, wanted by routing and the semantic cache whatever a policy says."""
    local = settings.local
    return ModelProcess(
        kind="embedding",
        model=local.embedding,
        slots=local.slots,
        context_tokens=local.context_tokens,
    )


def process_of(provider: Provider, settings: Settings) -> ModelProcess:
    """The process that answers for a local provider."""
    local, runtime = settings.local, provider.runtime
    model = runtime.reference or local.generation
    if model == local.embedding:
        return embedder(settings)
    return ModelProcess(
        kind="generation",
        model=model,
        sha256=runtime.sha256,
        device=runtime.device,
        slots=runtime.slots or local.slots,
        context_tokens=runtime.context_tokens or local.context_tokens,
    )


def wanted(settings: Settings, providers: Iterable[Provider]) -> tuple[ModelProcess, ...]:
    """What is to run: the embedder, then one process per model in the policy's order."""
    found = [embedder(settings)] if settings.local.embedding else []
    found += [process_of(each, settings) for each in providers if each.api == "local"]
    return tuple(dict.fromkeys(found))


def tell_supervisor(
    processes: Iterable[ModelProcess], settings: Settings, run_dir: Path, supervisor: int
) -> None:
    """Have these run and no others. Every worker says so of the same policy: the last word counts.

    supervisor: its process id, that of our parent when we started.
    """
    children = [process.child(settings, run_dir) for process in processes]
    draft = run_dir / f"{WANTED_FILE}.{os.getpid()}"
    draft.write_text(json.dumps(children))
    draft.replace(run_dir / WANTED_FILE)
    if os.getppid() == supervisor:  # else it has died, and we are about to end as well
        os.kill(supervisor, signal.SIGUSR1)
