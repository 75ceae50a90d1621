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
_PPM = 10**6


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """Pico-dollars per token and bucket; per second of own compute; per request and search.

    A rate that is unset leaves no trace in a price's digest: earlier prices keep their names.
    """

    input: int
    cached_input: int
    cache_write: int
    output: int
    reasoning: int
    input_audio: int
    output_audio: int
    input_image: int
    compute_pico_per_second: int = 0
    request_pico: int = 0
    cache_write_1h: int | msgspec.UnsetType = msgspec.UNSET  # unset: as cache_write
    web_search_pico: int | msgspec.UnsetType = msgspec.UNSET  # unset: not known

    @property
    def dearest_input(self) -> int:
        """What a token of the prompt costs at most."""
        dearest = max(
            self.input, self.cached_input, self.cache_write, self.input_audio, self.input_image
        )
        written_1h = self.cache_write_1h
        return dearest if written_1h is msgspec.UNSET else max(dearest, written_1h)

    @property
    def dearest_output(self) -> int:
        """What a token of the completion costs at most."""
        return max(self.output, self.reasoning, self.output_audio)


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

    def prices(self, usage: Usage) -> bool:
        """Whether every part of ``usage`` has a rate: what has none is unpriced, never zero."""
        if usage.other_fees:
            return False
        return not usage.web_searches or self.rates.web_search_pico is not msgspec.UNSET

    def cost_pico(self, usage: Usage) -> int:
        """Price one answer exactly. Every token is billed in one bucket and only once.

        Cached and written tokens go first; audio and image tokens are billed as such as far as
        they cannot overlap the cached ones, because providers do not report the overlap.
        """
        rates = self.rates
        cached = usage.cached_tokens
        written = usage.cache_write_tokens
        fresh = usage.prompt_tokens - cached - written
        reasoning = usage.reasoning_tokens
        cost = (
            cached * rates.cached_input
            + written * rates.cache_write
            + reasoning * rates.reasoning
            + rates.request_pico
        )
        if usage.cache_write_1h_tokens and rates.cache_write_1h is not msgspec.UNSET:
            dearer = rates.cache_write_1h - rates.cache_write
            cost += usage.cache_write_1h_tokens * dearer
        if usage.web_searches and rates.web_search_pico is not msgspec.UNSET:
            cost += usage.web_searches * rates.web_search_pico
        if usage.prompt_audio_tokens or usage.prompt_image_tokens:
            audio = min(usage.prompt_audio_tokens, fresh)
            image = min(usage.prompt_image_tokens, fresh - audio)
            fresh -= audio + image
            cost += audio * rates.input_audio + image * rates.input_image
        spoken = usage.completion_audio_tokens
        if spoken:
            cost += spoken * rates.output_audio
        if usage.compute_us and rates.compute_pico_per_second:
            cost += divide_half_even(usage.compute_us * rates.compute_pico_per_second, 10**6)
        return (
            cost
            + fresh * rates.input
            + (usage.completion_tokens - reasoning - spoken) * rates.output
        )

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

    prices: tuple[Price, ...]

    def at(self, now_us: int, prompt_tokens: int) -> Price | None:
        """The price of a request begun at ``now_us``; None where no price applies (unpriced)."""
        for price in self.prices:
            if prompt_tokens >= price.min_input_tokens and price.active(now_us):
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
            if price.min_input_tokens < reached and price.active(now_us):
                reached = price.min_input_tokens
                bound = _upper_bound_pico(
                    price.rates, prompt_tokens, output_tokens * choices, compute_seconds
                )
                worst = max(worst, bound)
        return worst


class ContractTier(msgspec.Struct, frozen=True, kw_only=True):
    """A contract's long-context clause: above so many prompt tokens, all rates are multiplied."""

    when_input_over: int
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
) -> PriceSchedule:
    """Negotiated prices, in exact decimal dollars per million tokens.

    ``per_mtok`` has the buckets of ``Rates``; ``input`` and ``output`` are required, the others
    default to them, and ``cache_write_1h`` to ``cache_write``. Multiplied rates round half-even to
    a pico-dollar per token. Raises ValueError with a sentence for an unknown bucket, a bad number,
    another currency than USD or a bad tier.
    """
    if currency != "USD":
        raise ValueError(
            f"currency {currency!r} is not supported; give the contract's price in USD"
        )
    unknown = sorted(set(per_mtok) - set(_MORE_BUCKETS))
    if unknown:
        raise ValueError(f"unknown price {unknown[0]!r}; there are {', '.join(_MORE_BUCKETS)}")
    given = {bucket: _rate(bucket, text) for bucket, text in per_mtok.items()}
    if "input" not in given or "output" not in given:
        raise ValueError("a contract's price needs both input and output per million tokens")
    base = _with_defaults(given)
    levels = [(0, base)]
    for tier in tiers:
        if tier.when_input_over <= levels[-1][0]:
            raise ValueError(f"tiers must rise: over {tier.when_input_over} comes too late")
        levels.append((tier.when_input_over + 1, _multiplied(base, tier.multiply)))
    return PriceSchedule(
        tuple(
            _price(
                provider=provider,
                model=model,
                currency=currency,
                rates=rates,
                source=f"contract:{contract_id}",
                effective_from_us=effective_from_us,
                effective_to_us=None,
                min_input_tokens=min_input_tokens,
            )
            for min_input_tokens, rates in reversed(levels)
        )
    )


def from_machine_hour(*, provider: str, model: str, machine_hour: str) -> PriceSchedule:
    """Own hardware: dollars per hour of one machine, allocated by seconds of compute used.

    Raises ValueError where ``machine_hour`` is no exact, non-negative amount.
    """
    hour_pico = parse_usd(machine_hour)
    if hour_pico < 0:
        raise ValueError(f"machine_hour {machine_hour!r} is negative")
    rates = Rates(
        **dict.fromkeys(_BUCKETS, 0), compute_pico_per_second=divide_half_even(hour_pico, 3600)
    )
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


_BUCKETS = (
    "input",
    "cached_input",
    "cache_write",
    "output",
    "reasoning",
    "input_audio",
    "output_audio",
    "input_image",
)
_MORE_BUCKETS = (*_BUCKETS, "cache_write_1h")  # with those that not every price has
_OUTPUT_BUCKETS = frozenset({"output", "reasoning", "output_audio"})
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
}


def _with_defaults(given: Mapping[str, int]) -> Rates:
    """Buckets without a price of their own cost what plain input or output costs."""
    plain = {
        bucket: given["output" if bucket in _OUTPUT_BUCKETS else "input"] for bucket in _BUCKETS
    }
    return Rates(**{**plain, **given})


def _rate(bucket: str, text: str) -> int:
    rate = parse_decimal(text, _MTOK_PLACES)
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
            for bucket in _MORE_BUCKETS
            if getattr(base, bucket) is not msgspec.UNSET
        },
    )


def _thresholds(prices: "ModelPrice") -> set[int]:
    """The prompt sizes at which one of the rates changes; a public tier starts *above* a number."""
    found = {0}
    for name in _PUBLIC_NAMES.values():
        found.update(tier.start + 1 for tier in getattr(getattr(prices, name), "tiers", ()))
    return found


def _public_rates(prices: "ModelPrice", prompt_tokens: int) -> Rates | None:
    """The rates at this prompt size; None where neither prompt nor completion has a token price."""
    given: dict[str, int] = {}
    for bucket, name in _PUBLIC_NAMES.items():
        rate: Any = getattr(prices, name)
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
    rates: Rates, prompt_tokens: int, output_tokens: int, compute_seconds: int
) -> int:
    return (
        prompt_tokens * rates.dearest_input
        + output_tokens * rates.dearest_output
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
    return Price(
        price_id=f"{provider}/{model}{since}{tier}~{digest[:12]}",
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
            if name not in ("price_id", "source_hash")
        }
    ).source_hash


def all_prices(schedules: Iterable[PriceSchedule | None]) -> tuple[Price, ...]:
    """Every price of some models once, to be entered into the ledger's price book."""
    found = {p.price_id: p for schedule in schedules if schedule for p in schedule.prices}
    return tuple(found.values())


def _date_text(at_us: int) -> str:
    return datetime.fromtimestamp(at_us / 1e6, UTC).date().isoformat()


def _midnight_us(day: date) -> int:
    return (day - date(1970, 1, 1)).days * DAY_US


def _time_of_day_us(value: time) -> int:
    offset = value.utcoffset() or timedelta(0)
    local = timedelta(hours=value.hour, minutes=value.minute, seconds=value.second)
    return ((local - offset) // timedelta(microseconds=1)) % DAY_US
