"""Validated documents to the run-time Policy: names resolved, prices compiled, digests taken.

Every dangling name, duplicate and unreachable route is a problem with its place. Pure, but for the
files of authorities that a provider names.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

import orjson
from pydantic import BaseModel

from gateway.money import parse_usd
from gateway.policy import schema
from gateway.policy.addresses import literal, never_reached
from gateway.policy.conditions import compile_condition, compile_match, covers, glob
from gateway.policy.network import compile_network
from gateway.policy.snapshot import (
    AUTO,
    AlwaysLarge,
    Api,
    Budget,
    Charging,
    ExactRule,
    Health,
    LocalRuntime,
    Model,
    Network,
    Policy,
    Provider,
    QualityTarget,
    RateLimits,
    Route,
    Secret,
    SemanticRule,
    StaticKey,
    Tenant,
    Timeouts,
    globs_take,
)
from gateway.prices import (
    ContractTier,
    Price,
    PriceSchedule,
    ServiceTier,
    from_contract,
    from_genai_prices,
    from_machine_hour,
)
from gateway.wire.dialects import DialectName, provider_paths
from gateway.wire.fees import fee_of_model, media_of_model
from gateway.yaml_documents import Document, Where, refusal, suggest

_PPM = 1_000_000
_NAMED_MAX = 5  # tenants or routes in one message
_VENDOR_SPEAKS: dict[Api, tuple[DialectName, ...]] = {
    "openai": ("chat", "responses"),
    "azure": ("chat", "responses"),
    "anthropic": ("messages",),
    "local": ("chat", "decisions"),
}
# Our own model process thinks of nothing: where it is silent, it is stuck.
_LOCAL_SILENCE = Timeouts(first_byte_seconds=30.0, idle_seconds=30.0)
# Names under which OpenAI's reasoning models are sold, fine-tuned ones and resellers' too.
_REASONS = re.compile(r"(?:^|[/:])(?:o[1-9]|gpt-[5-9])(?![0-9])")
# Those, and others whose thoughts are billed and not streamed.
_THINKS_UNSEEN = re.compile(
    r"(?:^|[/:])(?:o[1-9](?![0-9])|gpt-[5-9](?![0-9])|gemini-(?:2\.5|[3-9])|grok-[4-9])"
    r"(?!.*(?:-chat|non-reasoning|-image))"
)
_OPENAI_HOST = "api.openai.com"
_PRIOR_NOT_MEASURED = (
    "not measured: the small model's answers are chosen by the shipped prior, whose quality on your"
    " requests nobody knows"
)
_SEMANTIC_NOT_MEASURED = (
    "not measured: nobody knows which share of the semantic cache's answers is wrong on your"
    " requests; leave it off where a wrong answer costs more than a call"
)
_KEY_HEADERS: dict[Api, str] = {"azure": "api-key", "anthropic": "x-api-key"}
T = TypeVar("T")


@dataclass
class Sources:
    """The documents of a policy, by kind, each with the text it came from."""

    models: list[tuple[Document, schema.ModelsDocument]] = field(default_factory=list)
    routing: list[tuple[Document, schema.RoutingDocument]] = field(default_factory=list)
    tenants: list[tuple[Document, schema.TenantsDocument]] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)  # files that hold nothing

    @property
    def emptiness(self) -> str:
        """Which files hold nothing, for a message about what is missing."""
        return f"; empty: {', '.join(self.empty)}" if self.empty else ""


def compile_policy(sources: Sources, *, now_us: int) -> Policy:
    """One Policy of all documents. Raises PolicyError with every problem found."""
    return _Compiler(now_us).compile(sources)


class _Compiler:
    """One compilation and the problems it has met."""

    def __init__(self, now_us: int) -> None:
        self._now_us = now_us
        self._problems: list[str] = []
        self._warnings: list[str] = []
        self._first: dict[tuple[str, str, str], str] = {}  # where each name is defined first
        self._providers: dict[str, Provider] = {}
        self._models: dict[str, Model] = {}
        self._api_versions: dict[str, str | None] = {}  # by provider
        self._unmade: set[str] = set()  # models with a problem of their own: naming them is none
        self._digests: dict[str, Any] = {}  # by model: what decides its answers

    def compile(self, sources: Sources) -> Policy:
        for document, models in sources.models:
            self._add_providers(document, models.providers)
        for document, models in sources.models:
            self._add_models(document, models.models)
        if not sources.routing:
            self._problems.append(f"there is no document of kind: Routing{sources.emptiness}")
        if not sources.tenants:
            self._problems.append(f"there is no document of kind: Tenants{sources.emptiness}")
        if len(sources.routing) > 1:
            document = sources.routing[1][0]
            self._problem(document, (), "a second document of kind: Routing: which of their routes"
                          " would come first?")  # fmt: skip
        routes, baseline = self._routes(sources)
        tenants = self._tenants(sources)
        self._check_tenants(sources, tenants)
        self._check_unpriced(sources, tenants)
        if self._problems:
            raise refusal(self._problems)
        names = {AUTO, *self._models, *(name for route in routes for name in route.models)}
        return Policy(
            version=_version(sources),
            providers=self._providers,
            models=self._models,
            routes=tuple(routes),
            tenants=tenants,
            baseline=baseline,
            compute=_compute_price(self._models.values()),
            cors_origins=frozenset().union(*(t.cors_origins for t in tenants.values())),
            known_models=frozenset(names),
            known_globs=tuple(
                dict.fromkeys(glob for route in routes for glob in route.model_globs)
            ),
            warnings=tuple(dict.fromkeys(self._warnings)),
        )

    # Models

    def _add_providers(
        self, document: Document, sections: Iterable[schema.ProviderSection]
    ) -> None:
        for index, section in enumerate(sections):
            where: Where = ("providers", index)
            self._refuse_twice(document, where, "provider", section.name, self._providers)
            silent = _LOCAL_SILENCE if section.api == "local" else Timeouts()
            self._providers[section.name] = Provider(
                name=section.name,
                api=section.api,
                base_url=self._base_url(document, (*where, "base_url"), section),
                authorization=_authorization(section.auth),
                authorization_header=_KEY_HEADERS[section.api]
                if section.auth is not None and section.auth.key is not None
                else "authorization",
                dialects=tuple(section.dialects or _VENDOR_SPEAKS[section.api]),
                simulated=section.simulated,
                timeouts=Timeouts(
                    connect_seconds=section.timeouts.connect,
                    first_byte_seconds=section.timeouts.first_byte or silent.first_byte_seconds,
                    idle_seconds=section.timeouts.idle or silent.idle_seconds,
                    total_seconds=section.timeouts.total,
                ),
                health=Health(
                    window_seconds=section.health.window,
                    min_requests=section.health.min_requests,
                    error_rate=section.health.error_rate,
                    eject_seconds=section.health.eject,
                ),
                concurrent_max=section.limits.concurrent,
                tenant_share=section.limits.per_tenant,
                runtime=_runtime(section.runtime or schema.Runtime()),
                network=self._network(document, where, section),
            )

            self._api_versions[section.name] = section.api_version

    def _network(
        self, document: Document, where: Where, section: schema.ProviderSection
    ) -> Network:
        return compile_network(
            section.network or schema.NetworkSection(),
            tls=(section.base_url or "").startswith("https:"),
            problem=lambda key, message: self._problem(document, (*where, "network", key), message),
        )

    def _base_url(self, document: Document, where: Where, section: schema.ProviderSection) -> str:
        url = section.base_url
        if url is None:
            return ""
        try:
            parts = urlsplit(url)
            sound = bool(parts.hostname) and parts.port != 0 and url.isascii() and url.isprintable()
        except ValueError:
            sound = False
        if not sound or parts.scheme not in ("http", "https") or set(url) & set(" @#?\\"):
            self._problem(document, where, "a base_url reads https://host[:port]/v1, without user,"
                          " query or fragment")  # fmt: skip
        elif (refused := never_reached(parts.hostname or "")) is not None:
            self._problem(document, where, refused)
        elif parts.scheme == "http" and section.auth is not None and _public(parts.hostname or ""):
            self._warn(document, where, "over http:// everybody on the way can read the key and the"
                       " prompts; write https://, unless that network is yours")  # fmt: skip
        elif section.api != "azure" and parts.path in ("", "/"):
            self._warn(document, where, "it has no path: is /v1 missing? The gateway adds only what"
                       " follows it, such as /chat/completions")  # fmt: skip
        url = url.rstrip("/")
        if section.api == "azure":
            url = url.removesuffix("/v1").removesuffix("/openai")
            url += "/openai" if section.api_version is not None else "/openai/v1"
        return url

    def _add_models(self, document: Document, sections: Iterable[schema.ModelSection]) -> None:
        for index, section in enumerate(sections):
            where: Where = ("models", index)
            self._refuse_twice(document, where, "model", section.name, self._models)
            if section.name == AUTO:
                self._problem(document, (*where, "name"), "'auto' is the router's own name")
            provider = self._find(document, (*where, "provider"), "provider", section.provider,
                                  self._providers)  # fmt: skip
            if provider is None:
                self._unmade.add(section.name)
                continue
            self._models[section.name] = Model(
                name=section.name,
                provider=provider,
                upstream_model=section.upstream_model,
                vendor_model=section.vendor_model or "",
                prices=self._prices(document, (*where, "price"), section),
                capabilities=frozenset(section.capabilities),
                context_tokens=section.context,
                output_tokens_max=section.max_output,
                limit_field=section.limit_field
                or _limit_field(section, provider, self._api_versions[provider.name]),
                thinks=bool(_THINKS_UNSEEN.search(section.vendor_model or section.upstream_model)),
                fee=fee_of_model(section.vendor_model or section.upstream_model),
                media=media_of_model(section.vendor_model or section.upstream_model),
                paths=provider_paths(
                    provider.dialects,
                    deployment=quote(section.upstream_model, safe=""),
                    api_version=self._api_versions[provider.name],
                ),
            )
            # Who answers, and as whom: not at which price, nor with which timeouts.
            self._digests[section.name] = [
                provider.name, provider.api, provider.base_url, provider.runtime.reference,
                section.upstream_model,
            ]  # fmt: skip

    def _prices(
        self, document: Document, where: Where, model: schema.ModelSection
    ) -> PriceSchedule | None:
        price = model.price
        provider = price.provider or model.provider
        if price.source == "unpriced":
            return None
        if price.source == "genai-prices":
            name = model.vendor_model or model.upstream_model
            found = from_genai_prices(provider, name)
            vendor = _vendor(self._providers[model.provider])
            if found is None and price.provider is None and vendor is not None:
                found = from_genai_prices(vendor, name)
            if found is None:
                message = (
                    f"genai-prices knows no model '{name}' of '{provider}': write price.provider"
                    " or vendor_model, where they have other names there; a contract price; or"
                    " source: unpriced"
                )
                self._problem(document, where, message)
            return found
        try:
            if price.source == "internal":
                assert price.amortised is not None, "checked by the schema"
                return from_machine_hour(
                    provider=provider,
                    model=model.upstream_model,
                    machine_hour=price.amortised.machine_hour,
                )
            assert price.per_mtok is not None, "checked by the schema"
            return from_contract(
                contract_id=price.contract_id or "",
                provider=provider,
                model=model.upstream_model,
                currency=price.currency,
                per_mtok={str(meter): rate for meter, rate in price.per_mtok.items()},
                effective_from_us=self._date_us(document, where, price.effective_from) or 0,
                tiers=[
                    ContractTier(
                        when_input_over=t.when_input_over,
                        multiply={str(side): factor for side, factor in t.multiply.items()},
                    )
                    for t in price.tiers
                ],
                per_thousand={str(fee): rate for fee, rate in (price.per_thousand or {}).items()},
                service_tiers=[
                    ServiceTier(
                        name=tier.name,
                        multiply={str(side): factor for side, factor in tier.multiply.items()},
                    )
                    for tier in price.service_tiers
                ],
            )
        except ValueError as error:
            self._problem(document, where, str(error))
            return None

    # Routing

    def _routes(self, sources: Sources) -> tuple[list[Route], Model | None]:
        routes: list[Route] = []
        baseline: Model | None = None
        earlier: dict[str, schema.MatchSection] = {}
        hidden: dict[str, list[tuple[Where, str]]] = {}  # by the route that hides them
        for document, routing in sources.routing[:1]:
            defaults = routing.defaults
            baseline = self._model(document, ("defaults", "baseline"), defaults.baseline)
            for index, section in enumerate(routing.routes):
                where: Where = ("routes", index)
                self._refuse_twice(document, where, "route", section.name, earlier)
                for name, match in earlier.items():
                    if covers(match, section.match):
                        hidden.setdefault(name, []).append((where, section.name))
                        break
                earlier[section.name] = section.match
                route = self._route(document, where, section, defaults)
                if route is not None:
                    routes.append(route)
            self._say_hidden(document, hidden)
            self._warn_of_circles(document, routing)
        return routes, baseline

    def _say_hidden(
        self, document: Document, hidden: Mapping[str, list[tuple[Where, str]]]
    ) -> None:
        """One problem per route that comes too early, however many are behind it."""
        for name, routes in hidden.items():
            where, _ = routes[0]
            message = f"route never reached: '{name}' before it takes every such request"
            if len(routes) > 1:
                others = _named([other for _, other in routes[1:]])
                message += f", and those of {others}: move '{name}' behind them"
            self._problem(document, where, message)

    def _warn_of_circles(self, document: Document, routing: schema.RoutingDocument) -> None:
        """Fallbacks of several routes that lead back to where they began."""
        leads: dict[str, set[str]] = {}
        places: dict[str, Where] = {}
        for index, route in enumerate(routing.routes):
            rules = route.fallback
            place: Where = ("routes", index, "fallback", 0, "to")
            if rules is None:
                rules, place = routing.defaults.fallback, ("defaults", "fallback", 0, "to")
            for rule in rules or ():
                own = {name for name in (route.to, route.small, route.large) if name is not None}
                for name in own:
                    leads.setdefault(name, set()).update(set(rule.to) - own)
                    places[name] = place
        told: set[str] = set()
        for name in leads:
            circle = {other for other in _reached(leads, name) if name in _reached(leads, other)}
            if name in circle and name not in told:
                told |= circle
                message = (
                    f"the fallbacks of {_named(sorted(circle))} lead in a circle: a request follows"
                    " its own route's fallback alone, and fails where that fails"
                )
                self._warn(document, places[name], message)

    def _route(
        self,
        document: Document,
        where: Where,
        section: schema.RouteSection,
        defaults: schema.Defaults,
    ) -> Route | None:
        match = section.match
        matches = self._try(
            document,
            (*where, "match", "when"),
            lambda: compile_match(match.tenant, match.tags, match.when, match.model),
        )
        to = self._model(document, (*where, "to"), section.to)
        small = self._model(document, (*where, "small"), section.small)
        large = self._model(document, (*where, "large"), section.large)
        target = section.target or defaults.target or schema.TargetSection(quality=0.95)
        always_large = section.always_large or defaults.always_large or schema.AlwaysLargeSection()
        cache = section.cache or defaults.cache or schema.CacheSection()
        rule, fallback = self._fallback(document, where, section, defaults)
        at = (*where, "cache") if section.cache is not None else ("defaults", "cache")
        semantic = self._semantic(document, (*at, "semantic"), cache.semantic)
        if section.small is not None and target.until_then == "prior":
            at = (*where, "target") if section.target is not None else ("defaults", "target")
            self._warn(document, (*at, "until_then"), _PRIOR_NOT_MEASURED)
        if matches is None or (to is None and (small is None or large is None)):
            return None
        merged = {
            "target": target,
            "always_large": always_large,
            "cache": cache,
            "fallback": [] if rule is None else [rule],
        }
        named = [model.name for model in (to, small, large, *fallback) if model is not None]
        # A request may name a model that its route does not, and is then answered by that one.
        globs = tuple(glob(name) for name in match.model or () if "*" in name)
        named += [name for name in sorted(self._models) if globs_take(globs, name)]
        reachable = sorted(self._models) if match.model is None else named
        return Route(
            name=section.name,
            where=document.locate(where),
            matches=matches,
            models=frozenset(name for name in match.model or () if "*" not in name),
            model_globs=globs,
            to=to,
            small=small,
            large=large,
            target=QualityTarget(
                quality=target.quality,
                confidence=target.confidence,
                cost=target.cost,
                large_share=target.large_share,
                until_then=target.until_then,
            ),
            always_large=AlwaysLarge(
                tools=always_large.tools,
                images=always_large.images,
                json_schema=always_large.json_schema,
                prompt_tokens_over=always_large.prompt_tokens_over,
            ),
            fallback=fallback,
            fallback_on=frozenset(rule.on) if rule is not None else frozenset(),
            exact=None
            if cache.exact is None
            else ExactRule(
                ttl_seconds=cache.exact.ttl, scope=cache.exact.scope, sampled=cache.exact.sampled
            ),
            semantic=semantic,
            identity=hashlib.sha256(
                _canonical(
                    [
                        _written(section.model_copy(update=merged)),
                        [self._digests[name] for name in reachable],
                    ]
                )
            ).digest(),
        )

    def _fallback(
        self,
        document: Document,
        where: Where,
        section: schema.RouteSection,
        defaults: schema.Defaults,
    ) -> tuple[schema.FallbackSection | None, tuple[Model, ...]]:
        rules, place = section.fallback, (*where, "fallback")
        if rules is None:
            rules, place = defaults.fallback or [], ("defaults", "fallback")
        if not rules:
            return None, ()
        found = [self._model(document, (*place, 0, "to"), name) for name in rules[0].to]
        for name in rules[0].to:
            if name in (section.to, section.large, section.small):
                message = f"'{name}' is asked by this route anyway, and not once more as a fallback"
                self._warn(document, (*place, 0, "to"), message)
        return rules[0], tuple(model for model in found if model is not None)

    def _semantic(
        self, document: Document, where: Where, section: schema.SemanticSection | None
    ) -> SemanticRule | None:
        if section is None:
            return None
        skip = None
        if section.skip_when is not None:
            text: str = section.skip_when
            skip = self._try(document, (*where, "skip_when"), lambda: compile_condition(text))
        self._warn(document, where, _SEMANTIC_NOT_MEASURED)
        return SemanticRule(ttl_seconds=section.ttl, max_wrong=section.max_wrong, skip_when=skip)

    # Tenants

    def _tenants(self, sources: Sources) -> dict[str, Tenant]:
        tenants: dict[str, Tenant] = {}
        known = {AUTO, *self._models, *self._unmade}
        for _, routing in sources.routing:
            known.update(name for route in routing.routes for name in route.match.model or ())
        globs = tuple(glob(name) for name in known if "*" in name)
        for document, parsed in sources.tenants:
            for index, section in enumerate(parsed.tenants):
                where: Where = ("tenants", index)
                self._refuse_twice(document, where, "tenant", section.id, tenants)
                allowed = section.allow_models or ()
                for number, name in enumerate(allowed):
                    if "*" not in name and name not in known and not globs_take(globs, name):
                        message = f"there is no model '{name}'{suggest(name, sorted(known))}"
                        self._problem(document, (*where, "allow_models", number), message)
                tenants[section.id] = Tenant(
                    id=section.id,
                    name=section.name or section.id,
                    cost_center=section.cost_center,
                    tags=dict(section.tags),
                    required_tags=tuple(section.required_tags),
                    allow_models=frozenset(name for name in allowed if "*" not in name)
                    if section.allow_models is not None
                    else None,
                    allow_globs=tuple(glob(name) for name in allowed if "*" in name),
                    limits=RateLimits(
                        requests_per_minute=section.limits.rpm,
                        tokens_per_minute=section.limits.tpm,
                        concurrent=section.limits.concurrent,
                        max_output_tokens=section.limits.max_output_tokens,
                    ),
                    budgets=self._budgets(document, where, section.budgets),
                    charging=Charging(
                        markup_ppm=round(section.charging.markup * _PPM),
                        cache_hits_ppm=round(section.charging.cache_hits.charge * _PPM),
                        failures=section.charging.failures == "charge",
                    ),
                    cors_origins=frozenset(section.cors.origins if section.cors else ()),
                    keys=tuple(
                        StaticKey(
                            id=key.id,
                            digest=key.hash.removeprefix("hmac-sha256:"),
                            project=key.project,
                            expires_us=self._date_us(
                                document, (*where, "keys", number, "expires"), key.expires
                            ),
                            tags=dict(key.tags),
                        )
                        for number, key in enumerate(section.keys)
                    ),
                )
        return tenants

    def _check_tenants(self, sources: Sources, tenants: Mapping[str, Tenant]) -> None:
        """A tenant that a match names without a star must exist."""
        for document, routing in sources.routing:
            for index, section in enumerate(routing.routes):
                for number, name in enumerate(section.match.tenant or ()):
                    if "*" not in name and name not in tenants:
                        self._problem(
                            document,
                            ("routes", index, "match", "tenant", number),
                            f"there is no tenant '{name}'{suggest(name, tenants)}",
                        )

    def _check_unpriced(self, sources: Sources, tenants: Mapping[str, Tenant]) -> None:
        """A hard budget cannot be kept where nobody knows a price: say who is shut out."""
        for document, models in sources.models:
            for index, section in enumerate(models.models):
                if section.price.source != "unpriced":
                    continue
                shut_out = [
                    tenant.id
                    for tenant in tenants.values()
                    if tenant.may_use(section.name)
                    and any(
                        b.enforce == "hard" and b.on_exceeded != "allow" for b in tenant.budgets
                    )
                ]
                if shut_out:
                    self._warn(
                        document,
                        ("models", index, "price", "source"),
                        f"a hard budget refuses what has no price: no use of '{section.name}' by"
                        f" {_named(shut_out, quote='')}; write a contract price, or enforce: soft",
                    )

    def _budgets(
        self, document: Document, where: Where, sections: list[schema.BudgetSection]
    ) -> tuple[Budget, ...]:
        budgets: dict[str, Budget] = {}
        for index, section in enumerate(sections):
            place = (*where, "budgets", index)
            self._refuse_twice(document, place, "budget", section.name, budgets)
            try:
                ZoneInfo(section.timezone)
            except (ZoneInfoNotFoundError, ValueError, OSError):
                message = f"no time zone '{section.timezone}'{_zone_meant(section.timezone)}"
                self._problem(document, (*place, "timezone"), message)
            budgets[section.name] = Budget(
                name=section.name,
                amount_pico=parse_usd(section.amount),
                period=section.period,
                timezone=section.timezone,
                enforce=section.enforce,
                on_exceeded=section.on_exceeded,
                downgrade_to=self._model(document, (*place, "downgrade_to"), section.downgrade_to),
                tags=dict(section.match.tags) if section.match is not None else {},
            )
        return tuple(budgets.values())

    # Problems

    def _model(self, document: Document, where: Where, name: str | None) -> Model | None:
        if name is None or name in self._unmade:
            return None
        return self._find(document, where, "model", name, self._models)

    def _find(
        self, document: Document, where: Where, kind: str, name: str, known: Mapping[str, T]
    ) -> T | None:
        found = known.get(name)
        if found is None:
            hint = suggest(name, list(known))
            if kind == "model" and name == AUTO:
                hint = ": it is the router's own name; write the model that is to answer"
            self._problem(document, where, f"there is no {kind} '{name}'{hint}")
        return found

    def _try(self, document: Document, where: Where, make: Callable[[], T]) -> T | None:
        try:
            return make()
        except ValueError as error:
            self._problem(document, where, str(error))
            return None

    def _date_us(self, document: Document, where: Where, text: str | None) -> int | None:
        if text is None:
            return None
        try:
            day = datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
        except ValueError:
            self._problem(document, where, f"a date reads 2026-10-01, not {text!r}")
            return None
        return int(day.timestamp()) * 1_000_000

    def _refuse_twice(
        self, document: Document, where: Where, kind: str, name: str, known: Mapping[str, object]
    ) -> None:
        place = (kind, str(where[:-1]) if kind == "budget" else "", name)
        if name in known and place in self._first:
            first = self._first[place]
            self._problem(
                document, where, f"the {kind} '{name}' is defined twice, first at {first}"
            )
        else:
            self._first[place] = document.locate(where)

    def _warn(self, document: Document, where: Where, message: str) -> None:
        self._warnings.append(document.problem(where, message))

    def _problem(self, document: Document, where: Where, message: str) -> None:
        self._problems.append(document.problem(where, message))


def _named(names: Sequence[str], quote: str = "'") -> str:
    """``'a', 'b' and 9 more``."""
    more = len(names) - _NAMED_MAX
    shown = ", ".join(f"{quote}{name}{quote}" for name in names[:_NAMED_MAX])
    return f"{shown} and {more} more" if more > 0 else shown


def _reached(leads: Mapping[str, Iterable[str]], start: str) -> set[str]:
    """Whatever can be reached from ``start`` in one step or more."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        for name in leads.get(waiting.pop(), ()):
            if name not in found:
                found.add(name)
                waiting.append(name)
    return found


def _zone_meant(name: str) -> str:
    """``Berlin`` is Europe's; other words, whatever is spelt like them."""
    zones = sorted(available_timezones())
    city = next((zone for zone in zones if zone.rpartition("/")[2].lower() == name.lower()), None)
    return f"; did you mean '{city}'?" if city else suggest(name, zones)


def _limit_field(section: schema.ModelSection, provider: Provider, api_version: str | None) -> str:
    """OpenAI's reasoning models refuse the older name; many other providers know no other.

    A deployment's name at Azure says nothing, so all of Azure is sent the name that all its models
    take, since there is one (2024-09).
    """
    vendor = _vendor(provider)
    newer = vendor == "openai" or (vendor == "azure" and (api_version or "9") >= "2024-09")
    if newer or _REASONS.search(section.vendor_model or section.upstream_model):
        return "max_completion_tokens"
    return "max_tokens"


def _public(host: str) -> bool:
    """Whether a host may lie beyond our own network, as far as its name tells."""
    address = literal(host)
    return address.is_global if address is not None else "." in host


def _vendor(provider: Provider) -> str | None:
    """Whose models a provider certainly sells, as genai-prices names it; None: anybody's."""
    if provider.api == "azure":
        return "azure"
    host = urlsplit(provider.base_url).hostname or ""
    return {_OPENAI_HOST: "openai", "api.anthropic.com": "anthropic"}.get(host)


def _authorization(auth: schema.Auth | None) -> Secret | None:
    if auth is None:
        return None
    return Secret(f"Bearer {auth.bearer}" if auth.key is None else auth.key)


def _runtime(section: schema.Runtime) -> LocalRuntime:
    return LocalRuntime(
        model=section.model or "",
        path=section.path or "",
        hub=section.hub or "",
        sha256=section.sha256 or "",
        device=section.device,
        slots=section.slots,
        context_tokens=section.context,
        ends_nonsense=section.ends_nonsense,
        prefix_scope=section.prefix_scope,
    )


def _written(section: BaseModel) -> Any:
    return section.model_dump(mode="json")


def _canonical(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def _version(sources: Sources) -> str:
    """12 hex digits of SHA-256 over all documents in canonical form, secrets aside.

    Section by section: to write out 10,000 tenants at once would hold up every other thread.
    """
    digest = hashlib.sha256()
    for _, parsed in (*sources.models, *sources.routing, *sources.tenants):
        for name in type(parsed).model_fields:
            value = getattr(parsed, name)
            for section in value if isinstance(value, list) else (value,):
                shown = _shown(section) if isinstance(section, BaseModel) else section
                digest.update(_canonical([name, shown]) + b"\n")
    return digest.hexdigest()[:12]


def _shown(section: BaseModel) -> Any:
    """A section less its secrets: of them only that they are there."""
    dumped = _written(section)
    if isinstance(section, schema.ProviderSection):
        dumped["auth"] = dumped["auth"] is not None
        dumped["network"] = {
            key: value if key == "ca_file" else value is not None
            for key, value in (dumped["network"] or {}).items()
        }
    return dumped


def _compute_price(models: Iterable[Model]) -> Price | None:
    """What a second of this node's processor costs: of the embedder, else of any model on it."""
    priced = [
        (model, price)
        for model in models
        if model.provider.api == "local" and model.prices is not None
        for price in model.prices.prices
        if price.rates.compute_pico_per_second
    ]
    priced.sort(key=lambda found: "embeddings" not in found[0].capabilities)
    return priced[0][1] if priced else None
