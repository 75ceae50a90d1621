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
    owner: str = Field("", description="Whom to ask about it.")


class Auth(Section):
    """How we show a provider who we are; by reference only."""

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

    connect: Duration = Field(2.0, description="To open a connection.")
    # A whole answer has no first byte before it is finished, and models that think are silent for
    # minutes, also between two events. What is down is found out by ``connect``.
    first_byte: Duration | None = Field(
        None,
        description="Until the answer begins; of a whole one, until it is done. default: 10m,"
        " of api: local 30s.",
    )
    idle: Duration | None = Field(
        None, description="Between two chunks of an answer. default: 5m, of api: local 30s."
    )
    total: Duration = Field(600.0, description="For the whole request, all attempts.")


class HealthSection(Section):
    """When a provider is left alone for a while."""

    window: Duration = Field(30.0, description="What is looked at.")
    min_requests: Size = Field(20, description="Fewer requests in the window prove nothing.")
    error_rate: Share = Field(0.5, description="At this share of failures it is ejected.")
    eject: Duration = Field(30.0, description="How long, before one request may probe.")


class ProviderLimits(Section):
    """What one provider is asked at once."""

    concurrent: Size = Field(256, description="Requests in progress; one more is refused.")
    per_tenant: Share = Field(0.8, description="Of them, one tenant's at most.")


class NetworkSection(Section):
    """The way to one provider."""

    proxy: ProxyUrl | None = Field(
        None, description="http://[user:password@]host:port; with a password, a reference."
    )
    ca_file: str | None = Field(
        None, description="Absolute path of a PEM file: authorities instead of the system's."
    )
    client_cert: PemReference | None = Field(
        None, description="PEM of our certificate, its chain and, unless apart, its key."
    )
    client_key: PemReference | None = Field(None, description="PEM of the key, if apart.")

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
        None, description="Of the file of path or hub; another one is refused."
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
        "auto", description="Where it runs; auto is a GPU where ONNX Runtime can use one."
    )
    prefix_scope: Literal["tenant", "key", "user", "none"] = Field(
        "tenant", description="Whose requests read the common beginning of their prompts once."
    )
    max_batch: NotYet = None
    memory: NotYet = None

    @model_validator(mode="after")
    def _one_reference(self) -> "Runtime":
        if sum(value is not None for value in (self.model, self.path, self.hub)) > 1:
            raise ValueError("give one of model, path and hub")
        if self.sha256 is not None and self.path is None and self.hub is None:
            raise ValueError("sha256 belongs to path or hub; the catalogue pins its own")
        return self


class ProviderSection(Section):
    """Somebody who answers."""

    name: Name = Field(description="Named by models.")
    api: Literal["openai", "azure", "anthropic", "local"] = Field(
        description="Whose paths and headers, or this node's model process."
    )
    base_url: str | None = Field(
        None, description="https://host/v1, for azure https://host; not for api: local."
    )
    api_version: Annotated[str, Field(pattern=r"^[A-Za-z0-9.-]{1,32}$")] | None = Field(
        None, description="Azure's older paths, with deployments; without it /openai/v1."
    )
    dialects: list[Literal["chat", "responses", "messages"]] | None = Field(
        None, min_length=1, description="What it speaks, where that is not what its vendor does."
    )
    auth: Auth | None = None
    simulated: bool = Field(False, description="Said wherever the provider is shown.")
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

    when_input_over: Size = Field(description="Prompt tokens above which the clause holds.")
    multiply: dict[Literal["input", "output"], Money] = Field(
        description="Factors of input and output."
    )


class ServiceTierSection(Section):
    """A contract's clause for answers that the provider served in another tier."""

    name: str = Field(min_length=1, description="As answers name it: flex, priority, batch.")
    multiply: dict[Literal["input", "output"], Money] = Field(
        description="Factors of input and output."
    )


class Amortised(Section):
    """What running one's own machine costs."""

    machine_hour: Money = Field(description="Dollars per hour of the machine.")
    currency: Literal["USD"] = Field("USD", description="Of machine_hour.")
    allocate_by: Literal["compute_seconds"] = Field(
        "compute_seconds", description="What a request takes of the machine."
    )


Meter = Literal[
    "input", "cached_input", "cache_write", "cache_write_1h", "output", "reasoning",
    "input_audio", "output_audio", "input_image", "input_video", "cached_audio", "cached_image",
    "output_image", "output_video", "citation",
]  # fmt: skip


class PriceSection(Section):
    """Where a model's price comes from."""

    source: Literal["genai-prices", "contract", "internal", "unpriced"] = Field(
        description="Where the price comes from; unpriced is shown as such, never as zero."
    )
    provider: str | None = Field(None, description="The name in genai-prices, if it differs.")
    contract_id: str | None = Field(
        None, description="Named in the price book, and on a request's page for all but tenants."
    )
    currency: Literal["USD"] = Field("USD", description="Of per_mtok.")
    effective_from: str | None = Field(None, description="A date, 2026-10-01, UTC.")
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

    name: Name = Field(description="What clients, routes and tenants call it.")
    provider: Name = Field(description="Who answers.")
    upstream_model: str = Field(min_length=1, description="Its name at the provider.")
    vendor_model: str | None = Field(
        None,
        min_length=1,
        description="The model's own name, where upstream_model is a deployment or an alias:"
        " by it prices and limits are looked up.",
    )
    price: PriceSection
    capabilities: list[
        Literal["chat", "tools", "vision", "json_schema", "embeddings", "completions"]
    ] = Field(["chat"], min_length=1, description="What it may be asked.")
    context: Size | None = Field(None, description="Tokens; unknown is not checked.")
    max_output: Size = Field(4096, description="Worst case of a request that sets no limit.")
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

    model: Names | None = Field(None, description="Names a client may send; * stands for anything.")
    tenant: Names | None = Field(None, description="Ids; * stands for anything.")
    tags: Tags = Field({}, description="Tags and their values; * stands for any value.")
    when: str | None = Field(None, description="A CEL condition on request and tenant.")


class TargetSection(Section):
    """What the router is to achieve. Exactly one of quality, cost and large_share."""

    quality: Share | None = Field(None, description="Of the large model's quality.")
    cost: Share | None = Field(None, description="Of the cost of asking the large model always.")
    large_share: Share | None = Field(None, description="Of the requests, to the large model.")
    of: Literal["large"] = Field("large", description="What the share is of.")
    confidence: Share = Field(0.9, description="That the quality is reached.")
    until_then: Literal["large", "exam", "prior"] = Field(
        "large",
        description="Whom easy requests ask while no quality is measured here: large; small where"
        " an exam proves the kind of request, else large; or as the shipped prior guesses.",
    )

    @model_validator(mode="after")
    def _one(self) -> "TargetSection":
        if sum(v is not None for v in (self.quality, self.cost, self.large_share)) != 1:
            raise ValueError("give exactly one of quality, cost and large_share")
        return self


class AlwaysLargeSection(Section):
    """Requests the small model is never asked."""

    tools: bool = Field(True, description="Requests with tools.")
    images: bool = Field(True, description="Requests with images, audio or files.")
    json_schema: bool = Field(True, description="Requests for structured output.")
    prompt_tokens_over: Size | None = Field(6000, description="Longer prompts.")


_ON = ("when_failing", "true", "True")  # YAML 1.1 reads the key ``on`` as true


class FallbackSection(Section):
    """Whom to ask when a target fails before its first byte."""

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
    to: Names = Field(description="Models, tried in order.")

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

    ttl: Duration = Field(86_400.0, description="Age at which an answer dies.")
    scope: Literal["tenant", "key", "user"] = Field("tenant", description="Who shares answers.")
    sampled: Literal["allow", "deny"] = Field("allow", description="Answers at temperature > 0.")


class SemanticSection(Section):
    """The semantic cache of a route."""

    ttl: Duration = Field(21_600.0, description="Age at which an answer dies.")
    max_wrong: SmallShare = Field(
        0.01, description="Aimed-at share of wrong answers, at most 20%; not measured yet."
    )
    of: Literal["hits"] = Field("hits", description="What the share is of.")
    skip_when: str | None = Field(None, description="A CEL condition on request.")
    judge: NotYet = None
    judged_misses: NotYet = None


class CacheSection(Section):
    """Both caches of a route; off unless written."""

    exact: Annotated[ExactSection | None, *OFF_OR_ON] = Field(
        None, description="off, on, or its keys."
    )
    semantic: Annotated[SemanticSection | None, *OFF_OR_ON] = Field(
        None, description="off, on, or its keys."
    )


def _one_model(value: Any) -> Any:
    if isinstance(value, dict):
        raise ValueError("a split of the traffic is not supported yet; name one model")
    return value


Target = Annotated[Name, BeforeValidator(_one_model)]


class RouteSection(Section):
    """One rule: whom requests go to. The first that matches wins."""

    name: Name = Field(description="Shown in answers and bills.")
    match: MatchSection
    to: Name | None = Field(None, description="The one model that answers.")
    small: Target | None = Field(None, description="Answers what is easy.")
    large: Target | None = Field(None, description="Answers the rest.")
    target: TargetSection | None = Field(None, description="Default: quality 95%.")
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
    """What holds for every route that does not say otherwise, key by key."""

    baseline: Name | None = Field(None, description="Model that every saving is measured against.")
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
    """What the router is taken to have said, in a policy test."""

    p_small: Share = Field(description="That the small model answers well.")
    p_large: Share = Field(description="That the large model answers well.")


class GivenSection(Section):
    """The request of a policy test."""

    tenant: Name = Field(description="Who asks.")
    model: str = Field(description="What is asked for.")
    tags: Tags = Field({}, description="Beside those of the tenant.")
    messages: list[GivenMessage] = Field([], description="Their length is what counts.")
    tools: Annotated[int, Field(ge=0)] = Field(0, description="How many.")
    images: Annotated[int, Field(ge=0)] = Field(0, description="How many.")
    json_schema: bool = Field(False, description="Structured output is asked for.")
    stream: bool = Field(False, description="As in a request.")
    temperature: float = Field(1.0, description="As in a request.")
    scores: Scores | None = None


class ExpectSection(Section):
    """What a policy test expects."""

    route: Name | None = Field(None, description="Route that takes it.")
    target: Name | None = Field(None, description="Model that is tried first.")
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
    concurrent: Size | None = Field(None, description="Requests in progress.")
    max_output_tokens: Size | None = Field(None, description="Of one request.")


class BudgetSection(Section):
    """An amount of money per period."""

    name: Name = Field(description="Shown when it is used up.")
    amount: Money = Field(description="Dollars per period.")
    currency: Literal["USD"] = Field("USD", description="Of amount.")
    period: Literal["calendar_month", "day"] = Field(
        "calendar_month", description="When it begins anew."
    )
    timezone: str = Field("UTC", description="Where the period begins at midnight.")
    enforce: Literal["hard", "soft"] = Field(
        "hard", description="hard: reserved before, never exceeded."
    )
    on_exceeded: Literal["reject", "downgrade", "allow"] = Field(
        "reject", description="What becomes of a request that does not fit."
    )
    downgrade_to: Name | None = Field(None, description="Model that answers instead.")
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

    tags: Tags = Field(description="Requests with these tags only.")


class CacheCharge(Section):
    """What a cached answer is charged."""

    charge: Share = Field(0.0, description="Of what the baseline would have cost.")


class ChargingSection(Section):
    """What a tenant is charged for what its requests cost."""

    mode: NotYet = None
    markup: Share = Field(0.0, description="Added to cost.")
    cache_hits: CacheCharge = CacheCharge()
    failures: Literal["possible", "charge"] = Field(
        "possible", description="A provider that fails in silence: noted as possible, or charged."
    )
    local: NotYet = None


class CorsSection(Section):
    """Pages of other origins that may ask from a browser."""

    origins: list[Origin] = Field(
        min_length=1, description="https://host[:port], as the browser says it; * is any."
    )


class KeySection(Section):
    """A key by its digest, read-only at run time."""

    id: Name = Field(description="Shown in bills instead of the key.")
    hash: Annotated[str, Field(pattern=r"^hmac-sha256:[0-9a-f]{64}$")] = Field(
        description="hmac-sha256: and 64 hex digits."
    )
    project: Name = Field("default", description="Groups usage below the tenant.")
    expires: str | None = Field(None, description="A date, 2027-06-30, UTC.")
    tags: Tags = Field({}, description="Given to every request with this key.")


class TenantSection(Section):
    """Whoever pays."""

    id: Name = Field(description="Named by keys, routes and reports.")
    name: str = Field("", description="Shown instead of the id.")
    cost_center: str = Field("", description="Shown on statements.")
    tags: Tags = Field({}, description="Given to every request.")
    required_tags: list[Name] = Field([], description="A request without them is refused.")
    allow_models: list[str] | None = Field(
        None, description="Names it may send; * as in a match; all by default."
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
