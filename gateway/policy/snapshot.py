"""What a loaded policy is at run time: frozen structs, compiled prices, closures for conditions.

``Policy`` is built by ``compile.py`` and swapped by one reference; a request keeps the one it
began with. Knows no YAML, no file, no request body.
"""

import re
from collections.abc import Callable, Mapping
from typing import Literal

import msgspec

from gateway.prices import Price, PriceSchedule
from gateway.wire.dialects import DialectName, provider_paths
from gateway.wire.fees import Fee
from gateway.wire.openai import Endpoint

Api = Literal["openai", "azure", "anthropic", "local"]
OnExceeded = Literal["reject", "downgrade", "allow"]

_NAME_LENGTH_MAX = 128  # a wildcard takes no longer names into books and reports
AUTO = "auto"  # the model's name with which a client asks to be routed


class Secret(str):
    """A credential that does not print itself. ``reveal`` is the one way to the text."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "Secret(***)"

    def __str__(self) -> str:
        return "***"

    def __format__(self, spec: str) -> str:
        return "***"

    def reveal(self) -> str:
        """The text itself, for the one header that carries it."""
        return str.__str__(self)


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """Deadlines of one provider, in seconds."""

    connect_seconds: float = 2.0
    first_byte_seconds: float = 600.0
    idle_seconds: float = 300.0
    total_seconds: float = 600.0


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """When a provider's circuit breaker opens, and for how long."""

    window_seconds: float = 30.0
    min_requests: int = 20
    error_rate: float = 0.5
    eject_seconds: float = 30.0


Scope = Literal["tenant", "key", "user"]


class LocalRuntime(msgspec.Struct, frozen=True, kw_only=True):
    """How the node's model process runs a local model."""

    model: str = ""  # empty, with path and hub: as tollhouse.yaml says under local.generation
    path: str = ""  # of a file of this machine
    hub: str = ""  # REPO@REV/FILE
    sha256: str = ""  # of a file or of the hub's; empty: not pinned here
    device: Literal["auto", "cpu", "cuda"] = "auto"
    slots: int | None = None  # None, here and below: as tollhouse.yaml says
    context_tokens: int | None = None
    ends_nonsense: bool = True  # an answer that has become none ends early
    prefix_scope: Scope | Literal["none"] = "tenant"  # who shares the beginnings of prompts

    @property
    def reference(self) -> str:
        """Which model, as it is written; no two kinds of reference can be taken for one another."""
        return self.path or self.hub or self.model


class Proxy(msgspec.Struct, frozen=True, kw_only=True):
    """An HTTP proxy that is asked for a tunnel."""

    host: str
    port: int
    authorization: Secret | None = None  # the whole value of the header, "Basic …"


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """The way to a provider, where it is not simply the open net."""

    proxy: Proxy | None = None
    ca_pem: str = ""  # authorities, instead of the system's
    client_pem: Secret | None = None  # our certificate and its key


class Provider(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who answers: a hosted API, or this node's model process."""

    name: str
    api: Api
    base_url: str = ""  # empty for the local provider
    authorization: Secret | None = None  # the whole value of the header, "Bearer …"
    authorization_header: str = "authorization"  # or "x-api-key", or "api-key"
    dialects: tuple[DialectName, ...] = ("chat",)
    simulated: bool = False  # said wherever the provider's name is shown
    timeouts: Timeouts = Timeouts()
    health: Health = Health()
    concurrent_max: int = 256
    tenant_share: float = 0.8  # of concurrent_max, for one tenant
    runtime: LocalRuntime = LocalRuntime()
    network: Network = Network()


_CHAT_PATHS = provider_paths(("chat",))


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A model of the catalogue: whom to ask, under which name, at which price."""

    name: str
    provider: Provider
    upstream_model: str
    vendor_model: str = ""  # the model's own name; empty: upstream_model
    prices: PriceSchedule | None  # None: unpriced; shown as such, never zero
    capabilities: frozenset[str] = frozenset({"chat"})
    context_tokens: int | None = None  # None: not known, not checked
    output_tokens_max: int = 4096  # assumed worst case where the request sets no limit
    limit_field: str = "max_tokens"  # of a chat, for a limit of ours
    thinks: bool = False  # before it answers, and its thoughts are billed and not shown
    fee: Fee | None = None  # what it does of its own accord, billed beside its tokens
    media: frozenset[str] = frozenset()  # price buckets of the media that it makes
    # Below the base URL, of each endpoint that the provider speaks.
    paths: Mapping[Endpoint, str] = msgspec.field(default_factory=lambda: _CHAT_PATHS)


def globs_take(globs: "tuple[re.Pattern[str], ...]", name: str) -> bool:
    """Whether a client's name for a model, no longer than names are, is one of these."""
    return (
        bool(globs)
        and len(name) <= _NAME_LENGTH_MAX
        and any(pattern.match(name) is not None for pattern in globs)
    )


class QualityTarget(msgspec.Struct, frozen=True, kw_only=True):
    """Exactly one of the three is set; each is a share between 0 and 1."""

    quality: float | None = None  # of the large model's quality
    confidence: float = 0.9
    cost: float | None = None  # of the cost of sending all to the large model
    large_share: float | None = None  # of the requests
    until_then: Literal["large", "exam", "prior"] = (
        "large"  # who decides while no quality is measured
    )

    @property
    def unmeasured(self) -> bool:
        """A quality is promised, and nothing but the prior could keep it."""
        return self.until_then != "prior" and self.quality is not None and self.quality > 0.0


class AlwaysLarge(msgspec.Struct, frozen=True, kw_only=True):
    """Requests that the small model is never asked."""

    tools: bool = True
    images: bool = True
    json_schema: bool = True
    prompt_tokens_over: int | None = 6000


class ExactRule(msgspec.Struct, frozen=True, kw_only=True):
    """The exact cache of one route."""

    ttl_seconds: float = 86_400.0
    scope: Scope = "tenant"
    sampled: Literal["allow", "deny"] = "allow"


class SemanticRule(msgspec.Struct, frozen=True, kw_only=True):
    """The semantic cache of one route."""

    ttl_seconds: float = 21_600.0
    max_wrong: float = 0.01  # promised share of wrong answers among hits
    skip_when: "Condition | None" = None


class RequestFacts(msgspec.Struct, frozen=True, kw_only=True):
    """All of a request that a policy may look at. Token numbers are estimates from bytes.

    Without a request, the defaults stand: a short plain chat that ends with a user's text.
    """

    tenant: str
    key: str
    model: str
    endpoint: Endpoint
    tags: Mapping[str, str]
    input_tokens: int = 1
    has_tools: bool = False
    has_images: bool = False  # or audio, or files
    stream: bool = False
    temperature: float = 1.0
    has_json: bool = False  # it asks for structured output
    output_tokens: int = 0  # of one answer, as the request limits it; 0: it sets no limit
    prompt_bytes: int = 0  # of one prompt, where a request has several
    ends_with_user_text: bool = True


Condition = Callable[[RequestFacts], bool]


class Match(msgspec.Struct, frozen=True, kw_only=True):
    """All conditions of a route but the model's name, each with its text, for explanations."""

    models: tuple[str, ...] = ()  # names and wildcards as written, for explanations
    fixed: tuple[tuple[str, Condition], ...] = ()  # look at tenant and tags alone
    when: tuple[str, Condition] | None = None  # looks at the request

    def first_failing(self, facts: RequestFacts) -> str | None:
        """The text of the first condition that does not hold; None where all do."""
        conditions = (*self.fixed, self.when) if self.when is not None else self.fixed
        return next((text for text, holds in conditions if not holds(facts)), None)


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """One rule. Either ``to`` (a fixed target) or ``small`` and ``large`` (by difficulty)."""

    name: str
    where: str  # "routing.yaml:12", for explanations
    matches: Match
    models: frozenset[str]  # model names it matches; neither names nor globs: any
    model_globs: "tuple[re.Pattern[str], ...]" = ()  # names that vendors change: claude-*
    to: Model | None = None
    small: Model | None = None
    large: Model | None = None
    target: QualityTarget = QualityTarget(quality=0.95)
    always_large: AlwaysLarge = AlwaysLarge()
    fallback: tuple[Model, ...] = ()
    fallback_on: frozenset[str] = frozenset({"timeout", "429", "5xx", "overloaded"})
    exact: ExactRule | None = None  # None: off
    semantic: SemanticRule | None = None  # None: off
    identity: bytes = b""  # digest of this rule and what it names: the caches' part of the key

    def names(self, model: str) -> bool:
        """Whether the rule is for this name of a model."""
        if model in self.models:
            return True
        globs = self.model_globs
        return globs_take(globs, model) if globs else not self.models


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """An amount of money per period. ``tags`` narrows it to requests that carry them."""

    name: str
    amount_pico: int
    period: Literal["calendar_month", "day"] = "calendar_month"
    timezone: str = "UTC"
    enforce: Literal["hard", "soft"] = "hard"
    on_exceeded: OnExceeded = "reject"
    downgrade_to: Model | None = None
    tags: Mapping[str, str] = {}


class Charging(msgspec.Struct, frozen=True, kw_only=True):
    """What the tenant is charged, from what the request cost. In parts per million of cost."""

    markup_ppm: int = 0
    cache_hits_ppm: int = 0  # share of the stored answer's list price charged on a cache hit
    failures: bool = False  # charge what an attempt without an answer may have cost


class RateLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Per tenant. None: unlimited."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None
    max_output_tokens: int | None = None

    @property
    def any(self) -> bool:
        """Something must be counted over several requests."""
        return (
            self.requests_per_minute is not None
            or self.tokens_per_minute is not None
            or self.concurrent is not None
        )


class StaticKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key written in YAML by its digest; read-only at run time."""

    id: str
    digest: str  # hex of HMAC-SHA-256(pepper, key)
    project: str = "default"
    expires_us: int | None = None
    tags: Mapping[str, str] = {}


class Tenant(msgspec.Struct, frozen=True, kw_only=True):
    """The unit that is billed."""

    id: str
    name: str = ""
    cost_center: str = ""
    tags: Mapping[str, str] = {}
    required_tags: tuple[str, ...] = ()
    allow_models: frozenset[str] | None = None  # None: every model
    allow_globs: "tuple[re.Pattern[str], ...]" = ()  # beside them
    limits: RateLimits = RateLimits()
    budgets: tuple[Budget, ...] = ()
    charging: Charging = Charging()
    cors_origins: frozenset[str] = frozenset()  # pages that may ask with its keys; "*": any
    keys: tuple[StaticKey, ...] = ()

    def may_use(self, model: str) -> bool:
        """Whether it may ask for a model by this name."""
        allowed = self.allow_models
        return allowed is None or model in allowed or globs_take(self.allow_globs, model)


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the admins decided, as one immutable value."""

    version: str  # hex digest of the canonical form, 12 characters
    providers: Mapping[str, Provider]
    models: Mapping[str, Model]
    routes: tuple[Route, ...]  # first match wins
    tenants: Mapping[str, Tenant]
    baseline: Model | None  # counterfactual of every "saved" figure
    compute: Price | None = None  # of this node's own processor time; None: nothing says
    cors_origins: frozenset[str] = frozenset()  # of all tenants: a preflight carries no key
    known_models: frozenset[str]  # names a client may send: auto, models, names in matches
    known_globs: "tuple[re.Pattern[str], ...]" = ()  # beside them: wildcards in matches
    warnings: tuple[str, ...] = ()  # what is accepted and may not be what is meant

    def knows(self, model: str) -> bool:
        """Whether a client may send this name at all."""
        return model in self.known_models or globs_take(self.known_globs, model)
