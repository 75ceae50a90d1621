"""The language of policies, as pydantic models: what may be written, with its units and defaults.

Unknown keys are errors. Keys of the language that are not honoured yet are declared as
``NotYet``, so that they are refused by name and never ignored. Knows no run-time struct.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    model_validator,
)

from gateway.policy.values import (
    OFF_OR_ON,
    ContextTokens,
    Duration,
    Money,
    Name,
    Names,
    NotYet,
    Origin,
    PemReference,
    ProxyUrl,
    SecretReference,
    Share,
    Size,
    Slots,
    SmallShare,
    Statuses,
    Tags,
    statuses_as_text,
)


class Section(BaseModel):
    """Strict about keys and types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Metadata(Section):
    """A document's name and owner, for people."""

    name: Name = Field(description="The document's name, for people.")
    owner: str = Field("", description="The person or team to ask about it.")


class Auth(Section):
    """Credentials for a provider, given by reference only."""

    bearer: SecretReference | None = Field(
        None, description="A reference, ${env:NAME} or ${file:/path}: authorization: Bearer."
    )
    key: SecretReference | None = Field(
        None, description="A reference: the vendor's own header, api-key or x-api-key."
    )

    @model_validator(mode="after")
    def _one(self) -> "Auth":
        if (self.bearer is None) == (self.key is None):
            raise ValueError("give either bearer or key")
        return self


class TimeoutsSection(Section):
    """Deadlines of one provider."""

    connect: Duration = Field(2.0, description="Time to open a connection.")
    # A whole answer has no first byte before it is finished, and models that think are silent for
    # minutes, also between two events. What is down is found out by ``connect``.
    first_byte: Duration | None = Field(
        None,
        description="Time until an answer begins, and until a whole one is done. default: 10m,"
        " of api: local 30s.",
    )
    idle: Duration | None = Field(
        None, description="Time between two chunks of an answer. default: 5m, of api: local 30s."
    )
    total: Duration = Field(600.0, description="Time for the whole request, with all attempts.")


class HealthSection(Section):
    """When the gateway stops asking a failing provider for a while."""

    window: Duration = Field(
        30.0, description="Length of the sliding window in which failures are counted."
    )
    min_requests: Size = Field(
        20, description="Requests in the window before the provider may be ejected."
    )
    error_rate: Share = Field(
        0.5, description="Share of failures at which the provider is ejected."
    )
    eject: Duration = Field(30.0, description="Time before one request may try the provider again.")


class ProviderLimits(Section):
    """How many requests one provider gets at once."""

    concurrent: Size = Field(
        256, description="Requests in progress at once; one more waits shortly, then is refused."
    )
    per_tenant: Share = Field(
        0.8, description="Largest share of those slots that one tenant may hold."
    )


class NetworkSection(Section):
    """How one provider is reached over the network."""

    proxy: ProxyUrl | None = Field(
        None, description="http://[user:password@]host:port; one with a password is a reference."
    )
    ca_file: str | None = Field(
        None, description="Absolute path of a PEM file of authorities that replace the system's."
    )
    client_cert: PemReference | None = Field(
        None,
        description="PEM of our certificate, its chain and, unless client_key has it, its key.",
    )
    client_key: PemReference | None = Field(
        None, description="PEM of the key, if client_cert does not hold it."
    )

    @model_validator(mode="after")
    def _key_has_certificate(self) -> "NetworkSection":
        if self.client_key is not None and self.client_cert is None:
            raise ValueError("a client_key needs a client_cert")
        return self


class Runtime(Section):
    """The local model behind an ``api: local`` provider."""

    model: Name | None = Field(
        None, description="A name of the model catalogue. default: local.generation."
    )
    path: Annotated[str, Field(pattern=r"^/.+\.gguf$", max_length=4096)] | None = Field(
        None, description="Absolute path of a GGUF file of this machine, instead of a name."
    )
    hub: (
        Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+@[0-9a-f]{40}/.+\.gguf$", max_length=1024)]
        | None
    ) = Field(None, description="A file of Hugging Face, owner/repo@revision/file.gguf.")
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        None, description="Digest of the file of path or hub; a file with another one is refused."
    )
    slots: Slots | None = Field(
        None, description="Generations that run at once. default: local.slots."
    )
    context: ContextTokens | None = Field(
        None, description="Tokens of prompt and answer together. default: local.context_tokens."
    )
    ends_nonsense: bool = Field(
        True,
        description="End an answer that loops or is in another script, and ask the next model.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where the model runs; auto takes a GPU where ONNX Runtime can use one."
    )
    prefix_scope: Literal["tenant", "key", "user", "none"] = Field(
        "tenant",
        description="Requests of one tenant, key or user share equal beginnings of prompts.",
    )
    max_batch: NotYet = None
    memory: NotYet = None

    @model_validator(mode="after")
    def _one_reference(self) -> "Runtime":
        if sum(value is not None for value in (self.model, self.path, self.hub)) > 1:
            raise ValueError("give one of model, path and hub")
        if self.sha256 is not None and self.path is None and self.hub is None:
            raise ValueError("sha256 belongs to path or hub; the catalogue pins its own")
        if not f"{self.path}{self.hub}".isprintable():
            raise ValueError("path and hub have printable characters only")
        # As local_models.references.problem, which the model process asks.
        file = (self.hub or "").partition("@")[2].partition("/")[2]
        if file.startswith("/") or ".." in file.split("/"):
            raise ValueError("hub names a file within its repository")
        return self


class ProviderSection(Section):
    """A provider: a service that answers requests, or this node's own model."""

    name: Name = Field(description="The name by which models refer to it.")
    api: Literal["openai", "azure", "anthropic", "local"] = Field(
        description="The vendor's API to speak, or local for this node's model process."
    )
    base_url: str | None = Field(
        None, description="Base URL: https://host/v1, for azure https://host; none for api: local."
    )
    api_version: Annotated[str, Field(pattern=r"^[A-Za-z0-9.-]{1,32}$")] | None = Field(
        None, description="Version for Azure's older paths with deployments; without it /openai/v1."
    )
    dialects: list[Literal["chat", "responses", "messages"]] | None = Field(
        None,
        min_length=1,
        description="Dialects that it speaks, where they differ from its vendor's.",
    )
    auth: Auth | None = None
    simulated: bool = Field(
        False, description="The provider is a simulation; pages and reports say so beside its name."
    )
    timeouts: TimeoutsSection = TimeoutsSection()
    health: HealthSection = HealthSection()
    limits: ProviderLimits = ProviderLimits()
    runtime: Runtime | None = None
    network: NetworkSection | None = None

    @model_validator(mode="after")
    def _fits_api(self) -> "ProviderSection":
        if self.api == "local" and (self.base_url is not None or self.auth is not None):
            raise ValueError("a local provider has no base_url and no auth")
        if self.api == "local" and self.network is not None:
            raise ValueError("a local provider has no network")
        if self.api == "local" and self.dialects is not None:
            raise ValueError(
                "a local provider speaks chat and decisions, and has no dialects to set"
            )
        if self.api != "local" and self.base_url is None:
            raise ValueError(f"a provider with api: {self.api} needs a base_url")
        if self.api != "local" and self.runtime is not None:
            raise ValueError("only a local provider has a runtime")
        if self.api != "azure" and self.api_version is not None:
            raise ValueError("only a provider with api: azure has an api_version")
        if self.api == "openai" and self.auth is not None and self.auth.key is not None:
            raise ValueError("a provider with api: openai takes auth: {bearer: ...}")
        return self


class TierSection(Section):
    """A contract's long-context clause."""

    when_input_over: Size = Field(
        description="The clause holds for prompts of more tokens than this."
    )
    multiply: dict[Literal["input", "output"], Money] = Field(
        description="Factors for the prices of input and output."
    )


class ServiceTierSection(Section):
    """A contract's clause for answers that the provider served in another tier."""

    name: str = Field(
        min_length=1, description="The tier's name as answers give it: flex, priority, batch."
    )
    multiply: dict[Literal["input", "output"], Money] = Field(
        description="Factors for the prices of input and output."
    )


class Amortised(Section):
    """Cost of running a machine of one's own."""

    machine_hour: Money = Field(description="Dollars per hour of the machine.")
    currency: Literal["USD"] = Field("USD", description="Currency of machine_hour.")
    allocate_by: Literal["compute_seconds"] = Field(
        "compute_seconds", description="The measure by which a request uses the machine."
    )


Meter = Literal[
    "input", "cached_input", "cache_write", "cache_write_1h", "output", "reasoning",
    "input_audio", "output_audio", "input_image", "input_video", "cached_audio", "cached_image",
    "output_image", "output_video", "citation",
]  # fmt: skip


class PriceSection(Section):
    """Source of a model's price."""

    source: Literal["genai-prices", "contract", "internal", "unpriced"] = Field(
        description="Source of the price; an unpriced model is shown as such, never as zero."
    )
    provider: str | None = Field(
        None, description="The provider's name in genai-prices, if it differs."
    )
    contract_id: str | None = Field(
        None, description="The contract's number, shown in the price book and to admins."
    )
    currency: Literal["USD"] = Field("USD", description="Currency of per_mtok.")
    effective_from: str | None = Field(
        None, description="Date from which the price holds, such as 2026-10-01, UTC."
    )
    per_mtok: dict[Meter, Money] | None = Field(
        None, description="Dollars per million tokens; kinds without a rate are unpriced."
    )
    per_thousand: dict[Literal["request", "web_search"], Money] | None = Field(
        None, description="Dollars per thousand requests or web searches."
    )
    tiers: list[TierSection] = []
    service_tiers: list[ServiceTierSection] = []
    amortised: Amortised | None = None

    @model_validator(mode="after")
    def _fits_source(self) -> "PriceSection":
        if self.source == "contract" and (self.contract_id is None or self.per_mtok is None):
            raise ValueError("source: contract needs contract_id and per_mtok")
        if self.source == "contract" and not {"input", "output"} <= set(self.per_mtok or {}):
            raise ValueError("per_mtok needs input and output")
        if self.source == "internal" and self.amortised is None:
            raise ValueError("source: internal needs amortised: {machine_hour: ...}")
        terms = (self.per_mtok, self.per_thousand, self.tiers or None, self.service_tiers or None)
        if self.source != "contract" and any(term is not None for term in terms):
            raise ValueError(
                "per_mtok, per_thousand, tiers and service_tiers belong to source: contract"
            )
        return self


class ModelSection(Section):
    """A model of the catalogue."""

    name: Name = Field(description="The name that clients, routes and tenants use.")
    provider: Name = Field(description="The provider that answers.")
    upstream_model: str = Field(min_length=1, description="The model's name at the provider.")
    vendor_model: str | None = Field(
        None,
        min_length=1,
        description="The model's own name, where upstream_model is a deployment or an alias:"
        " by it prices and limits are looked up.",
    )
    price: PriceSection
    capabilities: list[
        Literal["chat", "tools", "vision", "json_schema", "embeddings", "completions"]
    ] = Field(["chat"], min_length=1, description="What the model can do.")
    context: Size | None = Field(
        None, description="Tokens of its context window; without it no length is checked."
    )
    max_output: Size = Field(
        4096, description="Output tokens that a request without a limit is reckoned with."
    )
    limit_field: Literal["max_tokens", "max_completion_tokens"] | None = Field(
        None,
        description="In which field a chat is sent the gateway's limit. default: as OpenAI's"
        " and Azure's models and those that reason want it, else max_tokens.",
    )


class ModelsDocument(Section):
    """kind: Models."""

    apiVersion: Literal["tollhouse/v1"]
    kind: Literal["Models"]
    metadata: Metadata
    providers: list[ProviderSection] = []
    models: list[ModelSection] = []


class MatchSection(Section):
    """Which requests a route takes. Everything given must hold."""

    model: Names | None = Field(None, description="Names that clients send; * stands for any text.")
    tenant: Names | None = Field(None, description="Ids of tenants; * stands for any text.")
    tags: Tags = Field({}, description="Tags with their values; * stands for any value.")
    when: str | None = Field(None, description="A condition in CEL on request and tenant.")


class TargetSection(Section):
    """What the router is to achieve. Exactly one of quality, cost and large_share."""

    quality: Share | None = Field(None, description="Share of the large model's quality to reach.")
    cost: Share | None = Field(
        None, description="Share of the cost of sending every request to the large model."
    )
    large_share: Share | None = Field(
        None, description="Share of the requests to send to the large model."
    )
    of: Literal["large"] = Field("large", description="The reference of the share.")
    confidence: Share = Field(0.9, description="Confidence with which the quality is reached.")
    until_then: Literal["large", "exam", "prior"] = Field(
        "large",
        description="Model for easy requests while no quality is measured: large; small where an"
        " exam proves the kind of request, else large; or as the shipped prior guesses.",
    )

    @model_validator(mode="after")
    def _one(self) -> "TargetSection":
        if sum(v is not None for v in (self.quality, self.cost, self.large_share)) != 1:
            raise ValueError("give exactly one of quality, cost and large_share")
        return self


class AlwaysLargeSection(Section):
    """Requests that never go to the small model."""

    tools: bool = Field(True, description="Send requests with tools to the large model.")
    images: bool = Field(
        True, description="Send requests with images, audio or files to the large model."
    )
    json_schema: bool = Field(
        True, description="Send requests for structured output to the large model."
    )
    prompt_tokens_over: Size | None = Field(
        6000, description="Send prompts of more tokens than this to the large model."
    )


_ON = ("when_failing", "true", "True")  # YAML 1.1 reads the key ``on`` as true


class FallbackSection(Section):
    """Models to ask when a target fails before its first byte."""

    on: Annotated[
        list[Literal["timeout", "429", "5xx", "overloaded", "404"]],
        BeforeValidator(statuses_as_text),
        Statuses(),
    ] = Field(
        ["timeout", "429", "5xx", "overloaded"],
        min_length=1,
        description="What counts as failing; also spelt when_failing, which no tool of YAML 1.1"
        " mistakes for true. 404: the provider no longer has the model.",
    )
    to: Names = Field(description="Models to ask, in this order.")

    @model_validator(mode="before")
    @classmethod
    def _on(cls, value: Any) -> Any:
        """Take ``when_failing``, and what tools of YAML 1.1 make of the key ``on``, as ``on``."""
        if not isinstance(value, dict):
            return value
        spelt = [key for key in ("on", *_ON) if key in value]
        if len(spelt) > 1:
            raise ValueError(f"'{spelt[0]}' and '{spelt[1]}' are the same key; write one")
        return {"on" if key in _ON else key: inner for key, inner in value.items()}

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: Any, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        found = handler.resolve_ref_schema(handler(core_schema))
        found["patternProperties"] = {f"^({'|'.join(_ON)})$": found["properties"]["on"]}
        return found


class ExactSection(Section):
    """The exact cache of a route."""

    ttl: Duration = Field(86_400.0, description="Age at which a stored answer is dropped.")
    scope: Literal["tenant", "key", "user"] = Field(
        "tenant", description="The circle that shares stored answers."
    )
    sampled: Literal["allow", "deny"] = Field(
        "allow", description="Whether answers at a temperature above 0 are stored."
    )


class SemanticSection(Section):
    """The semantic cache of a route."""

    ttl: Duration = Field(21_600.0, description="Age at which a stored answer is dropped.")
    max_wrong: SmallShare = Field(
        0.01, description="Share of wrong answers to stay below, at most 20%; not measured yet."
    )
    of: Literal["hits"] = Field("hits", description="The reference of the share.")
    skip_when: str | None = Field(
        None, description="A condition in CEL on request; where it holds, the tier is not asked."
    )
    judge: NotYet = None
    judged_misses: NotYet = None


class CacheSection(Section):
    """Both caches of a route; off unless written."""

    exact: Annotated[ExactSection | None, *OFF_OR_ON] = Field(
        None, description="off, on, or its settings."
    )
    semantic: Annotated[SemanticSection | None, *OFF_OR_ON] = Field(
        None, description="off, on, or its settings."
    )


def _one_model(value: Any) -> Any:
    if isinstance(value, dict):
        raise ValueError("a split of the traffic is not supported yet; name one model")
    return value


Target = Annotated[Name, BeforeValidator(_one_model)]


class RouteSection(Section):
    """One rule that says which models answer. The first rule that matches wins."""

    name: Name = Field(description="Name of the route, shown in answers and bills.")
    match: MatchSection
    to: Name | None = Field(None, description="The one model that answers every request.")
    small: Target | None = Field(None, description="The model for easy requests.")
    large: Target | None = Field(None, description="The model for all other requests.")
    target: TargetSection | None = Field(
        None, description="What the router aims at. Default: quality 95%."
    )
    always_large: AlwaysLargeSection | None = None
    fallback: Annotated[list[FallbackSection], Field(max_length=1)] | None = None
    cache: CacheSection | None = None
    cascade: NotYet = None
    learn: NotYet = None
    hedge: NotYet = None
    sticky: NotYet = None

    @model_validator(mode="after")
    def _one_kind(self) -> "RouteSection":
        routed = self.small is not None and self.large is not None
        if (self.to is not None) == routed or (self.small is None) != (self.large is None):
            raise ValueError("a route has either 'to', or both 'small' and 'large'")
        if self.to is not None and self.target is not None:
            raise ValueError("'target' belongs to a route with small and large")
        return self


class Defaults(Section):
    """Defaults for every route that does not say otherwise, key by key."""

    baseline: Name | None = Field(
        None, description="The model against which every saving is measured."
    )
    target: TargetSection | None = Field(None, description="As in a route.")
    always_large: AlwaysLargeSection | None = Field(None, description="As in a route.")
    fallback: Annotated[list[FallbackSection], Field(max_length=1)] | None = Field(
        None, description="As in a route."
    )
    cache: CacheSection | None = Field(None, description="As in a route.")


class GivenMessage(Section):
    """A message of a policy test."""

    role: str = Field(description="As in a request.")
    content: str = Field(description="As in a request.")


class Scores(Section):
    """The router's verdict as a policy test assumes it."""

    p_small: Share = Field(description="Probability that the small model answers well.")
    p_large: Share = Field(description="Probability that the large model answers well.")


class GivenSection(Section):
    """The request of a policy test."""

    tenant: Name = Field(description="The tenant that asks.")
    model: str = Field(description="The model that is asked for.")
    tags: Tags = Field(
        {}, description="Tags of the request or its key, beside those of the tenant."
    )
    messages: list[GivenMessage] = Field(
        [], description="Messages; their length and the last one's role count."
    )
    tools: Annotated[int, Field(ge=0)] = Field(0, description="Number of them in the request.")
    images: Annotated[int, Field(ge=0)] = Field(0, description="Number of them in the request.")
    json_schema: bool = Field(False, description="Whether structured output is asked for.")
    stream: bool = Field(False, description="As in a request.")
    temperature: float = Field(1.0, description="As in a request.")
    scores: Scores | None = None


class ExpectSection(Section):
    """What a policy test expects."""

    route: Name | None = Field(None, description="The route that takes the request.")
    target: Name | None = Field(None, description="The model that is tried first.")
    cache: NotYet = None

    @model_validator(mode="after")
    def _expects(self) -> "ExpectSection":
        if self.route is None and self.target is None:
            raise ValueError("a test expects a route, a target, or both")
        return self


class TestSection(Section):
    """A test the policy must pass to be loaded."""

    __test__ = False  # not one of pytest's

    name: str = Field(description="What the test promises, as a sentence.")
    given: GivenSection
    expect: ExpectSection


class RoutingDocument(Section):
    """kind: Routing."""

    apiVersion: Literal["tollhouse/v1"]
    kind: Literal["Routing"]
    metadata: Metadata
    defaults: Defaults = Defaults()
    routes: list[RouteSection] = Field(min_length=1)
    tests: list[TestSection] = []
    rollout: NotYet = None


class LimitsSection(Section):
    """Rates of one tenant; unlimited unless written."""

    rpm: Size | None = Field(None, description="Requests per minute.")
    tpm: Size | None = Field(None, description="Tokens per minute, prompt and answer.")
    concurrent: Size | None = Field(None, description="Requests in progress at once.")
    max_output_tokens: Size | None = Field(None, description="Output tokens of one request.")


class BudgetSection(Section):
    """An amount of money per period."""

    name: Name = Field(description="Name of the budget, shown when it is used up.")
    amount: Money = Field(description="Dollars per period.")
    currency: Literal["USD"] = Field("USD", description="Currency of amount.")
    period: Literal["calendar_month", "day"] = Field(
        "calendar_month", description="Length of the period, after which the budget begins anew."
    )
    timezone: str = Field("UTC", description="Timezone at whose midnight the period begins.")
    enforce: Literal["hard", "soft"] = Field(
        "hard", description="hard: money is held before each call, so the budget is never exceeded."
    )
    on_exceeded: Literal["reject", "downgrade", "allow"] = Field(
        "reject", description="What happens to a request that does not fit."
    )
    downgrade_to: Name | None = Field(None, description="The model that answers instead.")
    match: "BudgetMatch | None" = None
    alerts: NotYet = None

    @model_validator(mode="after")
    def _downgrade(self) -> "BudgetSection":
        if (self.on_exceeded == "downgrade") != (self.downgrade_to is not None):
            raise ValueError("on_exceeded: downgrade and downgrade_to go together")
        if self.on_exceeded == "downgrade" and self.enforce == "soft":
            raise ValueError("on_exceeded: downgrade needs enforce: hard; soft only counts")
        return self


class BudgetMatch(Section):
    """Narrows a budget to some requests."""

    tags: Tags = Field(description="The budget covers requests with these tags only.")


class CacheCharge(Section):
    """What a cached answer is charged."""

    charge: Share = Field(
        0.0, description="Share of the baseline's price that a cached answer is charged."
    )


class ChargingSection(Section):
    """How a tenant's charge is computed from the cost of its requests."""

    mode: NotYet = None
    markup: Share = Field(0.0, description="Share of the cost that is added to it.")
    cache_hits: CacheCharge = CacheCharge()
    failures: Literal["possible", "charge"] = Field(
        "possible",
        description="Cost of a call that failed in silence: noted as possible, or charged.",
    )
    local: NotYet = None


class CorsSection(Section):
    """Pages of other origins that may ask from a browser."""

    origins: list[Origin] = Field(
        min_length=1,
        description="Origins as browsers send them, https://host[:port]; * stands for any.",
    )


class KeySection(Section):
    """A key by its digest, read-only at run time."""

    id: Name = Field(description="Id of the key, shown in bills in its place.")
    hash: Annotated[str, Field(pattern=r"^hmac-sha256:[0-9a-f]{64}$")] = Field(
        description="The key's digest: hmac-sha256: and 64 hex digits."
    )
    project: Name = Field("default", description="Project to which the key's usage is booked.")
    expires: str | None = Field(
        None, description="Date at whose start the key ends, such as 2027-06-30, UTC."
    )
    tags: Tags = Field({}, description="Tags that every request with this key gets.")


class TenantSection(Section):
    """A tenant: the unit that is billed."""

    id: Name = Field(description="Id by which keys, routes and reports name the tenant.")
    name: str = Field("", description="Name shown in place of the id.")
    cost_center: str = Field("", description="Cost center shown on statements.")
    tags: Tags = Field({}, description="Tags that every request of the tenant gets.")
    required_tags: list[Name] = Field(
        [], description="Tags that every request must have; one without them is refused."
    )
    allow_models: list[str] | None = Field(
        None, description="Models that the tenant may ask for; * as in a match. default: all."
    )
    limits: LimitsSection = LimitsSection()
    budgets: list[BudgetSection] = []
    charging: ChargingSection = ChargingSection()
    cors: CorsSection | None = None
    keys: list[KeySection] = []
    privacy: NotYet = None


class TenantsDocument(Section):
    """kind: Tenants."""

    apiVersion: Literal["tollhouse/v1"]
    kind: Literal["Tenants"]
    metadata: Metadata
    tenants: list[TenantSection] = Field(min_length=1)


KINDS: dict[str, type[ModelsDocument] | type[RoutingDocument] | type[TenantsDocument]] = {
    "Models": ModelsDocument,
    "Routing": RoutingDocument,
    "Tenants": TenantsDocument,
}
