"""What a token costs, as integers: rates with their dates and tiers, and their sources.

A ``Price`` is immutable and named by its content, so that any booked event can be priced again.
Refuses to know tenants, mark-ups, the ledger and the clock: the time is passed in.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.money import divide_half_even, parse_decimal, parse_usd
from gateway.wire.usage import Usage

if TYPE_CHECKING:
    from genai_prices.types import ModelPrice

DAY_US = 86_400_000_000
# Dollars per million tokens with six decimals are whole pico-dollars per token.
_MTOK_PLACES = 6
_KCOUNT_PLACES = 9  # dollars per thousand with nine decimals are whole pico-dollars
_PPM = 10**6


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """Pico-dollars per token and bucket; per second of own compute; per request and search.

    A rate that is unset is not known, unless its comment says otherwise: what it would price is
    unpriced. It leaves no trace in a price's digest, so earlier prices keep their names.
    """

    input: int
    cached_input: int
    cache_write: int | msgspec.UnsetType = msgspec.UNSET
    output: int
    reasoning: int
    input_audio: int | msgspec.UnsetType = msgspec.UNSET
    output_audio: int | msgspec.UnsetType = msgspec.UNSET
    input_image: int
    compute_pico_per_second: int = 0
    request_pico: int = 0
    cache_write_1h: int | msgspec.UnsetType = msgspec.UNSET
    web_search_pico: int | msgspec.UnsetType = msgspec.UNSET
    input_video: int | msgspec.UnsetType = msgspec.UNSET  # unset: as input_image
    cached_audio: int | msgspec.UnsetType = msgspec.UNSET
    cached_image: int | msgspec.UnsetType = msgspec.UNSET  # unset: as cached_input
    output_image: int | msgspec.UnsetType = msgspec.UNSET
    output_video: int | msgspec.UnsetType = msgspec.UNSET
    citation: int | msgspec.UnsetType = msgspec.UNSET
    service_tier: str | msgspec.UnsetType = msgspec.UNSET  # unset: the standard one

    @property
    def dearest_input(self) -> int:
        """What a token of the prompt costs at most."""
        return max(
            self.input,
            self.cached_input,
            self.cache_write or 0,
            self.cache_write_1h or 0,
            self.input_audio or 0,
            self.input_image,
            self.input_video or 0,
            self.cached_audio or 0,
            self.cached_image or 0,
        )

    @property
    def dearest_output(self) -> int:
        """What a token of the completion costs at most."""
        return max(
            self.output,
            self.reasoning,
            self.output_audio or 0,
            self.output_image or 0,
            self.output_video or 0,
            self.citation or 0,
        )


_UNSET = msgspec.UNSET
_CONTRACT = "contract:"
# Buckets that cost nothing like plain text, and the tokens they price.
_WITHOUT_DEFAULT = (
    ("cache_write", "cache_write_tokens"),
    ("cache_write_1h", "cache_write_1h_tokens"),
    ("input_audio", "prompt_audio_tokens"),
    ("cached_audio", "cached_audio_tokens"),
    ("output_audio", "completion_audio_tokens"),
    ("output_image", "completion_image_tokens"),
    ("output_video", "completion_video_tokens"),
    ("citation", "citation_tokens"),
)


def _or(rate: int | msgspec.UnsetType, plain: int) -> int:
    """A rate, or the plain one where it is unset: ``Price.prices`` says whether that is right."""
    return plain if rate is _UNSET else rate


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """One immutable row of the price book: a model's rates in one tier and one span of time."""

    price_id: str  # "openai/o3@2025-06-10~76117625b178": content-addressed
    provider: str
    model: str
    currency: str
    rates: Rates
    source: str  # "genai-prices@0.2.3", "contract:OAI-2026-114" or "internal"
    source_hash: str  # hex SHA-256 of all that decides the cost, over canonical JSON
    effective_from_us: int
    effective_to_us: int | None  # None: until further notice
    min_input_tokens: int  # from this many prompt tokens on, the whole request costs these rates
    daily_window_us: tuple[int, int] | None = None  # microseconds of the UTC day; may wrap midnight
    # What a token costs at most: computed once, because every request is bounded by them.
    dearest_input: int = 0
    dearest_output: int = 0
    always: bool = False  # active at any time: no need to ask

    def __post_init__(self) -> None:
        timeless = self.effective_to_us is None and self.daily_window_us is None
        msgspec.structs.force_setattr(self, "always", timeless and self.effective_from_us <= 0)
        msgspec.structs.force_setattr(self, "dearest_input", self.rates.dearest_input)
        msgspec.structs.force_setattr(self, "dearest_output", self.rates.dearest_output)

    def prices(self, usage: Usage) -> bool:
        """Whether every part of ``usage`` has a rate: what has none is unpriced, never zero."""
        if usage.told_pico:
            return True
        rates = self.rates
        # A fee for each request pays for the searches that it makes.
        if usage.other_fees or (
            usage.web_searches and rates.web_search_pico is _UNSET and not rates.request_pico
        ):
            return False
        if not (
            usage.cache_write_tokens
            or usage.prompt_audio_tokens
            or usage.cached_audio_tokens
            or usage.completion_audio_tokens
            or usage.completion_image_tokens
            or usage.completion_video_tokens
            or usage.citation_tokens
        ):
            return True  # what is left has the rate of text
        return all(
            getattr(rates, bucket) is not _UNSET
            for bucket, count in _WITHOUT_DEFAULT
            if getattr(usage, count)
        )

    def cost_pico(self, usage: Usage) -> int:
        """Price one answer exactly. Every token is billed in one bucket and only once.

        Cached and written tokens go first; audio, image and video tokens are billed as such as far
        as they cannot overlap the cached ones, because few providers report the overlap.

        What the provider says that the answer cost goes before a list price, which is only what
        most customers pay; before a contract's only where it is more, for fees beside the tokens.
        """
        cost = self._tokens_pico(usage)
        if not usage.told_pico:
            return cost
        return max(cost, usage.told_pico) if self.source.startswith(_CONTRACT) else usage.told_pico

    def _tokens_pico(self, usage: Usage) -> int:
        rates = self.rates
        cached = usage.cached_tokens
        written = usage.cache_write_tokens
        fresh = usage.prompt_tokens - cached - written
        text = usage.completion_tokens - usage.reasoning_tokens
        cost = (
            cached * rates.cached_input + usage.reasoning_tokens * rates.reasoning
        ) + rates.request_pico
        if written:
            rate = _or(rates.cache_write, rates.input)
            kept = usage.cache_write_1h_tokens
            cost += (written - kept) * rate + kept * _or(rates.cache_write_1h, rate)
        if usage.cached_audio_tokens or usage.cached_image_tokens:
            plain = rates.cached_input
            cost += usage.cached_audio_tokens * (_or(rates.cached_audio, plain) - plain)
            cost += usage.cached_image_tokens * (_or(rates.cached_image, plain) - plain)
        if usage.web_searches:
            cost += usage.web_searches * (rates.web_search_pico or 0)
        if usage.prompt_audio_tokens or usage.prompt_image_tokens or usage.prompt_video_tokens:
            audio = min(max(0, usage.prompt_audio_tokens - usage.cached_audio_tokens), fresh)
            fresh -= audio
            image = min(max(0, usage.prompt_image_tokens - usage.cached_image_tokens), fresh)
            fresh -= image
            video = min(usage.prompt_video_tokens, fresh)
            fresh -= video
            cost += audio * _or(rates.input_audio, rates.input) + image * rates.input_image
            cost += video * _or(rates.input_video, rates.input_image)
        others = (
            usage.completion_audio_tokens
            + usage.completion_image_tokens
            + usage.completion_video_tokens
            + usage.citation_tokens
        )
        if others:
            text -= others
            plain = rates.output
            cost += usage.completion_audio_tokens * _or(rates.output_audio, plain)
            cost += usage.completion_image_tokens * _or(rates.output_image, plain)
            cost += usage.completion_video_tokens * _or(rates.output_video, plain)
            cost += usage.citation_tokens * _or(rates.citation, plain)
        if usage.compute_us and rates.compute_pico_per_second:
            cost += divide_half_even(usage.compute_us * rates.compute_pico_per_second, 10**6)
        return cost + fresh * rates.input + text * rates.output

    def active(self, now_us: int) -> bool:
        """Whether this price applies at ``now_us`` (UTC microseconds), by date and time of day."""
        if now_us < self.effective_from_us:
            return False
        if self.effective_to_us is not None and now_us >= self.effective_to_us:
            return False
        if self.daily_window_us is None:
            return True
        start, end = self.daily_window_us
        time_us = now_us % DAY_US
        return start <= time_us < end if start <= end else time_us >= start or time_us < end


class PriceSchedule(msgspec.Struct, frozen=True):
    """All prices of one model, the one that wins first: narrowest time, then highest tier."""

    prices: tuple[Price, ...]  # of the standard service tier
    service_tiers: tuple[tuple[str, "PriceSchedule"], ...] = ()  # others that have known prices

    def of_tier(self, service_tier: str) -> "PriceSchedule | None":
        """The prices of a service tier; None where they are not known."""
        return dict(self.service_tiers).get(service_tier) if service_tier else self

    def at(self, now_us: int, prompt_tokens: int) -> Price | None:
        """The price of a request begun at ``now_us``; None where no price applies (unpriced)."""
        for price in self.prices:
            if prompt_tokens >= price.min_input_tokens and (price.always or price.active(now_us)):
                return price
        return None

    def worst_case_pico(
        self,
        now_us: int,
        *,
        prompt_tokens: int,
        output_tokens: int,
        choices: int = 1,
        compute_seconds: int = 60,
    ) -> int:
        """An upper bound of the cost of a request of at most this many tokens.

        Assumes the dearest bucket for each token and the dearest tier that the true prompt, which
        may be shorter, can fall into. ``output_tokens`` is per choice; own compute is bounded by
        ``compute_seconds``. 0 where no price applies.
        """
        worst = 0
        reached = prompt_tokens + 1  # from how many tokens on an earlier price takes all
        for price in self.prices:
            if price.min_input_tokens < reached and (price.always or price.active(now_us)):
                reached = price.min_input_tokens
                bound = _upper_bound_pico(
                    price, prompt_tokens, output_tokens * choices, compute_seconds
                )
                worst = max(worst, bound)
        for _, schedule in self.service_tiers:  # the provider may serve in any of them
            bound = schedule.worst_case_pico(
                now_us,
                prompt_tokens=prompt_tokens,
                output_tokens=output_tokens,
                choices=choices,
                compute_seconds=compute_seconds,
            )
            worst = max(worst, bound)
        return worst


class ContractTier(msgspec.Struct, frozen=True, kw_only=True):
    """A contract's long-context clause: above so many prompt tokens, all rates are multiplied."""

    when_input_over: int
    multiply: Mapping[str, str]  # keys "input" and "output"; exact decimals


class ServiceTier(msgspec.Struct, frozen=True, kw_only=True):
    """A contract's clause for answers served in another tier: all rates are multiplied."""

    name: str  # as the provider's answers name it: "flex", "priority"
    multiply: Mapping[str, str]  # keys "input" and "output"; exact decimals


def from_genai_prices(provider: str, model: str) -> PriceSchedule | None:
    """The public list prices of a model, offline; None (unpriced) where it is unknown.

    None too where the model is sold by something else than tokens. Rates are rounded to six
    decimals per million tokens, which only removes float noise of the source.
    """
    # 0.5 s to import, and needed only while a policy is compiled.
    from genai_prices import __version__, data_snapshot, types

    try:
        _, found = data_snapshot.get_snapshot().find_provider_model(model, None, provider, None)
    except LookupError:
        return None
    conditional = found.prices
    if isinstance(conditional, types.ModelPrice):
        conditional = [types.ConditionalPrice(prices=conditional)]
    prices: list[Price] = []
    end_us: int | None = None  # where the entries seen so far, which take precedence, begin
    for position, entry in reversed(list(enumerate(conditional))):
        start_us, window = 0, None
        # The first entry applies where nothing else does, whatever its own constraint says.
        if position and isinstance(entry.constraint, types.StartDateConstraint):
            start_us = _midnight_us(entry.constraint.start_date)
        elif position and isinstance(entry.constraint, types.TimeOfDateConstraint):
            window = (
                _time_of_day_us(entry.constraint.start_time),
                _time_of_day_us(entry.constraint.end_time),
            )
        if end_us is not None and start_us >= end_us and window is None:
            continue  # never in force
        for threshold in sorted(_thresholds(entry.prices), reverse=True):
            rates = _public_rates(entry.prices, threshold)
            if rates is None:
                return None
            prices.append(
                _price(
                    provider=provider,
                    model=model,
                    currency="USD",
                    rates=rates,
                    source=f"genai-prices@{__version__}",
                    effective_from_us=start_us,
                    effective_to_us=None if window else end_us,
                    min_input_tokens=threshold,
                    daily_window_us=window,
                )
            )
        if window is None:
            end_us = start_us
    return PriceSchedule(tuple(prices))


def from_contract(
    *,
    contract_id: str,
    provider: str,
    model: str,
    currency: str,
    per_mtok: Mapping[str, str],
    effective_from_us: int = 0,
    tiers: Sequence[ContractTier] = (),
    per_thousand: Mapping[str, str] | None = None,
    service_tiers: Sequence[ServiceTier] = (),
) -> PriceSchedule:
    """Negotiated prices, in exact decimal dollars per million tokens.

    ``per_mtok`` has the buckets of ``Rates``; ``input`` and ``output`` are required.
    ``cached_input`` and ``input_image`` default to ``input``, ``reasoning`` to ``output``; tokens
    of any other kind are unpriced without a rate of their own. ``per_thousand`` has the fees of
    ``request`` and ``web_search``. Multiplied rates round half-even to a pico-dollar per token.
    Raises ValueError with a sentence for an unknown bucket, a bad number, another currency than
    USD or a bad tier.
    """
    if currency != "USD":
        raise ValueError(
            f"currency {currency!r} is not supported; give the contract's price in USD"
        )
    unknown = sorted(set(per_mtok) - set(BUCKETS))
    if unknown:
        raise ValueError(f"unknown price {unknown[0]!r}; there are {', '.join(BUCKETS)}")
    given = {bucket: _rate(bucket, text) for bucket, text in per_mtok.items()}
    if "input" not in given or "output" not in given:
        raise ValueError("a contract's price needs both input and output per million tokens")
    base = msgspec.structs.replace(_with_defaults(given), **_fees(per_thousand or {}))
    levels = [(0, base)]
    for tier in tiers:
        if tier.when_input_over <= levels[-1][0]:
            raise ValueError(f"tiers must rise: over {tier.when_input_over} comes too late")
        levels.append((tier.when_input_over + 1, _multiplied(base, tier.multiply)))

    def priced(levels: Iterable[tuple[int, Rates]]) -> tuple[Price, ...]:
        return tuple(
            _price(
                provider=provider,
                model=model,
                currency=currency,
                rates=rates,
                source=_CONTRACT + contract_id,
                effective_from_us=effective_from_us,
                effective_to_us=None,
                min_input_tokens=min_input_tokens,
            )
            for min_input_tokens, rates in levels
        )

    levels.reverse()
    served: list[tuple[str, PriceSchedule]] = []
    for mode in service_tiers:
        if mode.name in dict(served):
            raise ValueError(f"the service tier {mode.name!r} is there twice")
        multiplied = [
            (
                least,
                msgspec.structs.replace(_multiplied(rates, mode.multiply), service_tier=mode.name),
            )
            for least, rates in levels
        ]
        served.append((mode.name, PriceSchedule(priced(multiplied))))
    return PriceSchedule(priced(levels), tuple(served))


def _fees(per_thousand: Mapping[str, str]) -> dict[str, int]:
    """Pico-dollars for one of each, of dollars per thousand."""
    unknown = sorted(set(per_thousand) - {"request", "web_search"})
    if unknown:
        raise ValueError(f"unknown fee {unknown[0]!r}; there are request, web_search")
    return {
        f"{name}_pico": _rate(name, text, _KCOUNT_PLACES) for name, text in per_thousand.items()
    }


def from_machine_hour(*, provider: str, model: str, machine_hour: str) -> PriceSchedule:
    """Own hardware: dollars per hour of one machine, allocated by seconds of compute used.

    Raises ValueError where ``machine_hour`` is no exact, non-negative amount.
    """
    hour_pico = parse_usd(machine_hour)
    if hour_pico < 0:
        raise ValueError(f"machine_hour {machine_hour!r} is negative")
    free: dict[str, Any] = dict.fromkeys(BUCKETS, 0)
    rates = Rates(**free, compute_pico_per_second=divide_half_even(hour_pico, 3600))
    return PriceSchedule(
        (
            _price(
                provider=provider,
                model=model,
                currency="USD",
                rates=rates,
                source="internal",
                effective_from_us=0,
                effective_to_us=None,
                min_input_tokens=0,
            ),
        )
    )


# A bucket of tokens and its name in genai-prices.
_PUBLIC_NAMES = {
    "input": "input_mtok",
    "cached_input": "cache_read_mtok",
    "cache_write": "cache_write_mtok",
    "cache_write_1h": "cache_write_1h_mtok",
    "output": "output_mtok",
    "reasoning": "output_reasoning_mtok",
    "input_audio": "input_audio_mtok",
    "output_audio": "output_audio_mtok",
    "input_image": "input_image_mtok",
    "input_video": "input_video_mtok",
    "cached_audio": "cache_audio_read_mtok",
    "cached_image": "cache_image_read_mtok",
    "output_image": "output_image_mtok",
    "output_video": "output_video_mtok",
    "citation": "output_citation_mtok",
}
BUCKETS = tuple(_PUBLIC_NAMES)
_OUTPUT_BUCKETS = frozenset(
    {"output", "reasoning", "output_audio", "output_image", "output_video", "citation"}
)
# Without a rate of their own they cost what plain input or output does.
_PLAIN_BUCKETS = {"cached_input": "input", "input_image": "input", "reasoning": "output"}


def _with_defaults(given: Mapping[str, Any]) -> Rates:
    return Rates(**{**{name: given[plain] for name, plain in _PLAIN_BUCKETS.items()}, **given})


def _rate(bucket: str, text: str, places: int = _MTOK_PLACES) -> int:
    rate = parse_decimal(text, places)
    if rate < 0:
        raise ValueError(f"{bucket}: {text!r} is negative")
    return rate


def _multiplied(base: Rates, multiply: Mapping[str, str]) -> Rates:
    unknown = sorted(set(multiply) - {"input", "output"})
    if unknown:
        raise ValueError(f"unknown factor {unknown[0]!r}; there are input, output")
    factor_ppm = {side: _rate(side, text) for side, text in multiply.items()}
    return msgspec.structs.replace(
        base,
        **{
            bucket: divide_half_even(
                getattr(base, bucket)
                * factor_ppm.get("output" if bucket in _OUTPUT_BUCKETS else "input", _PPM),
                _PPM,
            )
            for bucket in BUCKETS
            if getattr(base, bucket) is not msgspec.UNSET
        },
    )


def _thresholds(prices: "ModelPrice") -> set[int]:
    """The prompt sizes at which one of the rates changes; a public tier starts *above* a number."""
    found = {0}
    for name in _PUBLIC_NAMES.values():
        found.update(tier.start + 1 for tier in getattr(getattr(prices, name, None), "tiers", ()))
    return found


def _public_rates(prices: "ModelPrice", prompt_tokens: int) -> Rates | None:
    """The rates at this prompt size; None where neither prompt nor completion has a token price."""
    given: dict[str, int] = {}
    for bucket, name in _PUBLIC_NAMES.items():
        rate: Any = getattr(prices, name, None)  # None too: a unit it does not know yet
        if rate is None:
            continue
        for tier in getattr(rate, "tiers", ()):
            if prompt_tokens > tier.start:
                rate = tier  # the highest tier reached, as tiers are sorted
        amount = getattr(rate, "base", getattr(rate, "price", rate))
        given[bucket] = int(round(amount, _MTOK_PLACES).scaleb(_MTOK_PLACES))
    if "input" not in given and "output" not in given:
        return None
    # An embedding model has no output price: it writes no tokens.
    given = {"input": 0, "output": 0} | given
    found: Any = prices  # these two are dynamic attributes
    request_pico = _per_thousand(found.requests_kcount)
    search_pico = _per_thousand(found.web_searches_kcount)
    return msgspec.structs.replace(
        _with_defaults(given),
        request_pico=request_pico or 0,
        web_search_pico=msgspec.UNSET if search_pico is None else search_pico,
    )


def _per_thousand(amount: Any) -> int | None:
    """Pico-dollars for one of what costs so many dollars per thousand; None where it costs none."""
    if amount is None:
        return None
    return int(round(getattr(amount, "base", amount), _MTOK_PLACES).scaleb(12)) // 1000


def _upper_bound_pico(
    price: Price, prompt_tokens: int, output_tokens: int, compute_seconds: int
) -> int:
    rates = price.rates
    return (
        prompt_tokens * price.dearest_input
        + output_tokens * price.dearest_output
        + compute_seconds * rates.compute_pico_per_second
        + rates.request_pico
    )


def _price(
    *,
    provider: str,
    model: str,
    currency: str,
    rates: Rates,
    source: str,
    effective_from_us: int,
    effective_to_us: int | None,
    min_input_tokens: int,
    daily_window_us: tuple[int, int] | None = None,
) -> Price:
    """Build a price and name it by its content, so that equal prices have equal ids everywhere."""
    content = [
        provider,
        model,
        currency,
        rates,
        source.partition("@")[0],  # a newer price list that says the same is the same price
        effective_from_us,
        effective_to_us,
        min_input_tokens,
        daily_window_us,
    ]
    digest = hashlib.sha256(msgspec.json.encode(content, order="deterministic")).hexdigest()
    since = f"@{_date_text(effective_from_us)}" if effective_from_us else ""
    tier = f">{min_input_tokens - 1}" if min_input_tokens else ""
    served = f"+{rates.service_tier}" if rates.service_tier else ""
    return Price(
        price_id=f"{provider}/{model}{since}{tier}{served}~{digest[:12]}",
        provider=provider,
        model=model,
        currency=currency,
        rates=rates,
        source=source,
        source_hash=digest,
        effective_from_us=effective_from_us,
        effective_to_us=effective_to_us,
        min_input_tokens=min_input_tokens,
        daily_window_us=daily_window_us,
    )


def content_hash(price: Price) -> str:
    """The digest that ``price.source_hash`` must equal: recomputed by ``ledger verify``."""
    return _price(
        **{
            name: getattr(price, name)
            for name in Price.__struct_fields__
            if name not in ("price_id", "source_hash", "dearest_input", "dearest_output", "always")
        }
    ).source_hash


def all_prices(schedules: Iterable[PriceSchedule | None]) -> tuple[Price, ...]:
    """Every price of some models once, to be entered into the ledger's price book."""
    found: dict[str, Price] = {}
    for schedule in filter(None, schedules):
        for each in (schedule, *[served for _, served in schedule.service_tiers]):
            found |= {price.price_id: price for price in each.prices}
    return tuple(found.values())


def _date_text(at_us: int) -> str:
    return datetime.fromtimestamp(at_us / 1e6, UTC).date().isoformat()


def _midnight_us(day: date) -> int:
    return (day - date(1970, 1, 1)).days * DAY_US


def _time_of_day_us(value: time) -> int:
    offset = value.utcoffset() or timedelta(0)
    local = timedelta(hours=value.hour, minutes=value.minute, seconds=value.second)
    return ((local - offset) // timedelta(microseconds=1)) % DAY_US
