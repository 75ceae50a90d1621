"""tollhouse.yaml: how this gateway runs. Every maximum of the program is named here, once.

What it does with requests is policy and lives elsewhere. ``TOLLHOUSE_<SECTION>_<KEY>`` overrides a
key of the file, for instance ``TOLLHOUSE_LISTEN_PORT`` or ``TOLLHOUSE_STATE_DIR``.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from gateway.errors import PolicyError
from gateway.yaml_documents import Document, parse_documents, read_documents, suggest, validate

PREFIX = "TOLLHOUSE_"
# Variables of our prefix that are not settings.
RESERVED = frozenset(
    {
        "TOLLHOUSE_CONFIG",
        "TOLLHOUSE_ADMIN_KEY",
        "TOLLHOUSE_ADMIN_URL",
        "TOLLHOUSE_MODELS",
        "TOLLHOUSE_NATIVE",
        "TOLLHOUSE_ISA",
    }
)
RESERVED_PREFIXES = ("TOLLHOUSE_DEMO_", "TOLLHOUSE_TEST_")

Port = Annotated[int, Field(ge=0, le=65_535)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Count = Annotated[int, Field(ge=1)]
Bytes = Annotated[int, Field(ge=1024)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Listen(_Section):
    """Where clients reach /v1."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: Port = Field(8080, description="TCP port.")


class Admin(_Section):
    """Where people and Prometheus reach pages, admin interface and metrics."""

    host: str = Field("127.0.0.1", description="Address to listen on; loopback unless guarded.")
    port: Port = Field(8081, description="TCP port.")


class Local(_Section):
    """The node's model process."""

    enabled: Literal["auto", "on", "off"] = Field("auto", description="Run a model process.")
    generation: str = Field("smollm2-135m-instruct", description="Model that answers.")
    embedding: str = Field("all-minilm-l6-v2", description="Model that embeds.")
    threads: Count = Field(2, description="Threads of generation.")
    slots: Count = Field(4, description="Generations that run at once.")
    context_tokens: Count = Field(2048, description="Tokens of prompt and answer together.")
    nice: Annotated[int, Field(ge=0, le=19)] = Field(10, description="Scheduling niceness.")


class Limits(_Section):
    """Every maximum. Names end in their unit."""

    body_bytes_max: Bytes = Field(10 << 20, description="A request's body.")
    header_bytes_max: Bytes = Field(64 << 10, description="A request's line and headers.")
    header_count_max: Count = Field(100, description="A request's headers.")
    header_seconds: Seconds = Field(10.0, description="From the first byte to the last header.")
    body_seconds: Seconds = Field(30.0, description="From the last header to the body's end.")
    keep_alive_seconds: Seconds = Field(75.0, description="An idle client connection.")
    write_stall_seconds: Seconds = Field(30.0, description="A client that reads nothing.")
    connections_max: Count = Field(4096, description="Client connections of one worker.")
    requests_in_flight_max: Count = Field(1024, description="Requests of one worker.")
    attempts_max: Count = Field(3, description="Attempts of one request over all targets.")
    answer_bytes_max: Bytes = Field(64 << 20, description="A provider's answer.")
    exact_cache_bytes: Bytes = Field(64 << 20, description="The exact cache of one worker.")
    semantic_entries_max: Count = Field(20_000, description="Entries of one semantic namespace.")
    semantic_namespaces_max: Count = Field(1_000, description="Semantic namespaces in memory.")
    reload_settle_seconds: Seconds = Field(0.5, description="Files at rest before a reload.")


class Settings(_Section):
    """The whole of tollhouse.yaml."""

    listen: Listen = Listen()
    admin: Admin = Admin()
    state_dir: Path = Field(Path(), description="Ledger, keys, policy history; one server each.")
    policies: list[Path] = Field([], description="Policy files and folders, in order.")
    models_dir: Path | None = Field(None, description="Local models; default: the XDG cache.")
    workers: Annotated[int, Field(ge=1)] = Field(1, description="Gateway processes.")
    durability: Literal["process", "power"] = Field(
        "process", description="What a booked event survives: kill -9, or a power cut (fsync)."
    )
    drain_seconds: Seconds = Field(600.0, description="For running requests, after SIGTERM.")
    access_log: bool = Field(False, description="One line of JSON per request.")
    environment: str = Field("", description="Shown on every page, such as 'staging'.")
    local: Local = Local()
    limits: Limits = Limits()


def load_settings(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Read settings from ``path``, else $TOLLHOUSE_CONFIG, else ./tollhouse.yaml, else defaults.

    Raises PolicyError with every problem at its file:line:column.
    """
    if path is None:
        named = environ.get("TOLLHOUSE_CONFIG")
        path = Path(named) if named else Path("tollhouse.yaml")
        if not named and not path.exists():
            path = None
    document = _read(path, environ)
    value = document.value if document.value is not None else {}
    if not isinstance(value, dict):
        raise PolicyError((document.problem((), "settings are a mapping of keys"),))
    _as_paths(value)
    _override(value, environ)
    settings = validate(Document(document.path, value, document.marks), Settings)
    if settings.workers > 1:
        raise PolicyError(
            (document.problem(("workers",), "more than one worker needs Redis, which is not"
                              " supported yet; set workers: 1"),)
        )  # fmt: skip
    base = path.parent if path is not None else Path()
    return settings.model_copy(
        update={
            "state_dir": _absolute(base, settings.state_dir, _default_state_dir(environ)),
            "policies": [(base / policy).resolve() for policy in settings.policies],
            "models_dir": (base / settings.models_dir).resolve() if settings.models_dir else None,
        }
    )


def _read(path: Path | None, environ: Mapping[str, str]) -> Document:
    if path is None:
        return Document(Path("built-in defaults"), {}, {})
    documents = read_documents(path, environ)
    if len(documents) > 1:
        raise PolicyError((f"{path.name}: settings are one document, not {len(documents)}",))
    return documents[0] if documents else Document(path, {}, {})


def _as_paths(value: dict[str, Any]) -> None:
    for name in ("state_dir", "models_dir"):
        if isinstance(value.get(name), str):
            value[name] = Path(value[name]).expanduser()
    policies = value.get("policies")
    if isinstance(policies, str):
        policies = [policies]
    if isinstance(policies, list):
        value["policies"] = [
            Path(item).expanduser() if isinstance(item, str) else item for item in policies
        ]


def _override(value: dict[str, Any], environ: Mapping[str, str]) -> None:
    """Put every TOLLHOUSE_ variable where it belongs. Raises PolicyError for an unknown one."""
    names = override_names()
    problems: list[str] = []
    for variable, text in environ.items():
        if not variable.startswith(PREFIX) or variable in RESERVED:
            continue
        if variable.startswith(RESERVED_PREFIXES):
            continue
        where = names.get(variable)
        if where is None:
            hint = suggest(variable, list(names))
            problems.append(f"environment variable {variable}: no such setting{hint}")
            continue
        target = value
        for part in where[:-1]:
            target = target.setdefault(part, {})
        target[where[-1]] = parse_documents(text.encode(), Path(variable), {})[0].value
        if where[-1] in ("state_dir", "models_dir"):
            target[where[-1]] = Path(text).expanduser()
        if where[-1] == "policies":
            target["policies"] = [Path(part) for part in text.split(os.pathsep)]
    if problems:
        raise PolicyError(tuple(problems))


def override_names() -> dict[str, tuple[str, ...]]:
    """Each variable that overrides a setting, and the path of its key."""
    names: dict[str, tuple[str, ...]] = {}
    for name, field in Settings.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, _Section):
            for inner in kind.model_fields:
                names[f"{PREFIX}{name}_{inner}".upper()] = (name, inner)
        else:
            names[f"{PREFIX}{name}".upper()] = (name,)
    return names


def _default_state_dir(environ: Mapping[str, str]) -> Path:
    home = environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(home) / "tollhouse"


def _absolute(base: Path, given: Path, default: Path) -> Path:
    return default if given == Path() else (base / given).resolve()
