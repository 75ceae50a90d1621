"""Prices: compared with genai-prices' own calculation, and bounded from above."""

import random
from datetime import UTC, datetime
from decimal import Decimal

import genai_prices
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.prices import (
    ContractTier,
    PriceSchedule,
    ServiceTier,
    all_prices,
    content_hash,
    from_contract,
    from_genai_prices,
    from_machine_hour,
)
from gateway.wire.usage import Usage

MODELS = [
    ("openai", "gpt-4o"),
    ("openai", "gpt-4o-mini"),
    ("openai", "gpt-5.4"),
    ("openai", "gpt-5.5"),
    ("openai", "o3"),
    ("google", "gemini-2.5-pro"),
    ("anthropic", "claude-sonnet-4-5"),
    ("anthropic", "claude-opus-4-1"),
    ("deepseek", "deepseek-chat"),
    ("deepseek", "deepseek-v4-flash"),
]
EDGES = [0, 1, 199_999, 200_000, 200_001, 271_999, 272_000, 272_001, 1_000_000]


def moment_us(*at: int) -> int:
    return int(datetime(*at, tzinfo=UTC).timestamp()) * 1_000_000  # type: ignore[misc,arg-type]


def listed(provider: str, model: str) -> PriceSchedule:
    schedule = from_genai_prices(provider, model)
    assert schedule is not None
    return schedule


def random_usage(rng: random.Random) -> Usage:
    prompt = rng.choice([*EDGES, rng.randrange(400_000)])
    cached = rng.randrange(prompt + 1)
    written = rng.randrange(prompt - cached + 1)
    completion = rng.randrange(20_000)
    return Usage(
        prompt_tokens=prompt,
        cached_tokens=cached,
        cache_write_tokens=written,
        cache_write_1h_tokens=rng.randrange(written + 1),
        completion_tokens=completion,
        reasoning_tokens=rng.randrange(completion + 1),
    )


def reference_pico(provider: str, model: str, usage: Usage, at_us: int) -> Decimal:
    priced = genai_prices.calc_price(
        genai_prices.Usage(
            input_tokens=usage.prompt_tokens,
            cache_read_tokens=usage.cached_tokens,
            cache_write_tokens=usage.cache_write_tokens,
            cache_write_1h_tokens=usage.cache_write_1h_tokens,
            web_searches=usage.web_searches,
            output_tokens=usage.completion_tokens,
        ),
        model,
        provider_id=provider,
        genai_request_timestamp=datetime.fromtimestamp(at_us / 1e6, UTC),
    )
    return priced.total_price * 10**12


@pytest.mark.parametrize(("provider", "model"), MODELS)
def test_costs_equal_the_list_calculation(provider: str, model: str) -> None:
    """Random tokens around every tier, at random moments around every change of price."""
    rng = random.Random(model)
    schedule = listed(provider, model)
    for _ in range(100):
        usage = random_usage(rng)
        at_us = rng.randrange(moment_us(2025, 1, 1), moment_us(2026, 12, 31))
        price = schedule.at(at_us, usage.prompt_tokens)
        assert price is not None
        assert price.cost_pico(usage) == reference_pico(provider, model, usage, at_us)


@pytest.mark.parametrize(("provider", "model"), MODELS)
def test_the_worst_case_bounds_every_smaller_request(provider: str, model: str) -> None:
    """A hard budget holds only if no answer costs more than its reservation."""
    rng = random.Random(model)
    schedule = listed(provider, model)
    for _ in range(100):
        usage = random_usage(rng)
        at_us = rng.randrange(moment_us(2025, 1, 1), moment_us(2026, 12, 31))
        bound = schedule.worst_case_pico(
            at_us,
            prompt_tokens=usage.prompt_tokens + rng.randrange(300_000),
            output_tokens=-(-usage.completion_tokens // 2),
            choices=2,
        )
        price = schedule.at(at_us, usage.prompt_tokens)
        assert price is not None
        assert price.cost_pico(usage) <= bound


def test_what_is_kept_for_an_hour_and_what_is_searched_have_prices_of_their_own() -> None:
    """The sum is exact to the pico-dollar, and the public price list agrees."""
    usage = Usage(
        prompt_tokens=100, cached_tokens=10, cache_write_tokens=60, cache_write_1h_tokens=20,
        completion_tokens=5, web_searches=3,
    )  # fmt: skip
    now_us = moment_us(2026, 11, 1)
    price = listed("anthropic", "claude-sonnet-4-5").at(now_us, 100)
    assert price is not None
    assert price.prices(usage)
    assert price.cost_pico(usage) == 30_438_000_000
    assert reference_pico("anthropic", "claude-sonnet-4-5", usage, now_us) == 30_438_000_000


@pytest.mark.parametrize(
    "usage",
    [
        Usage(prompt_tokens=5, web_searches=1),
        Usage(prompt_tokens=5, other_fees=True),
        Usage(prompt_tokens=5, cache_write_tokens=5),
        Usage(prompt_tokens=5, prompt_audio_tokens=1),
        Usage(completion_tokens=5, completion_audio_tokens=1),
        Usage(completion_tokens=5, completion_image_tokens=1),
        Usage(completion_tokens=5, completion_video_tokens=1),
        Usage(completion_tokens=5, citation_tokens=1),
        Usage(prompt_tokens=5, cached_tokens=2, cached_audio_tokens=1),
    ],
)
def test_what_has_no_rate_is_not_priced(usage: Usage) -> None:
    """Not at the price of something else, and not at zero."""
    price = contract(per_mtok={"input": "1", "output": "1"}, tiers=[]).at(0, 0)
    assert price is not None
    assert price.prices(Usage(prompt_tokens=5, cached_tokens=3, completion_tokens=5))
    assert not price.prices(usage)


def test_writing_for_an_hour_is_not_priced_as_writing_for_five_minutes() -> None:
    """A contract that lacks the dearer rate leaves such an answer unpriced."""
    usage = Usage(prompt_tokens=5, cache_write_tokens=5, cache_write_1h_tokens=2)
    terms = {"input": "1", "output": "1", "cache_write": "1.25"}
    short, long = (
        contract(per_mtok=terms | more, tiers=[]).at(0, 0) for more in ({}, {"cache_write_1h": "2"})
    )
    assert short is not None
    assert long is not None
    assert not short.prices(usage)
    assert long.prices(usage)
    assert long.cost_pico(usage) == 3 * 1_250_000 + 2 * 2_000_000


def test_the_images_of_an_answer_cost_what_the_list_says_of_images() -> None:
    """An image token costs twelve times a text token, and the reservation covers it."""
    usage = Usage(prompt_tokens=10, completion_tokens=1345, completion_image_tokens=1290)
    schedule = listed("google", "gemini-2.5-flash-image")
    price = schedule.at(moment_us(2026, 11, 1), 10)
    assert price is not None
    assert price.prices(usage)
    assert price.cost_pico(usage) == 10 * 300_000 + 55 * 2_500_000 + 1290 * 30_000_000
    bound = schedule.worst_case_pico(moment_us(2026, 11, 1), prompt_tokens=10, output_tokens=1345)
    assert bound >= price.cost_pico(usage)


def test_a_contract_names_rates_of_every_kind_of_token_and_fees() -> None:
    """Twelve rates and two fees, each of another size, make the sum worked out by hand."""
    terms = {
        "input": "1", "cached_input": "2", "cached_audio": "3", "cached_image": "4", "output": "5",
        "input_audio": "6", "input_image": "7", "input_video": "8", "output_audio": "9",
        "output_image": "10", "output_video": "11", "citation": "12",
    }  # fmt: skip
    usage = Usage(
        prompt_tokens=100, cached_tokens=30, cached_audio_tokens=10, cached_image_tokens=5,
        prompt_audio_tokens=30, prompt_image_tokens=15, prompt_video_tokens=10,
        completion_tokens=50, completion_audio_tokens=1, completion_image_tokens=2,
        completion_video_tokens=3, citation_tokens=4, web_searches=2,
    )  # fmt: skip
    price = contract(
        per_mtok=terms, tiers=[], per_thousand={"request": "5", "web_search": "10"}
    ).at(0, 0)
    assert price is not None
    assert price.prices(usage)
    cached = 15 * 2 + 10 * 3 + 5 * 4
    fresh = 20 * 6 + 10 * 7 + 10 * 8 + 30 * 1
    written = 1 * 9 + 2 * 10 + 3 * 11 + 4 * 12 + 40 * 5
    fees = 5_000_000_000 + 2 * 10_000_000_000
    assert price.cost_pico(usage) == (cached + fresh + written) * 10**6 + fees
    assert content_hash(price) == price.source_hash


def test_a_service_tier_has_the_price_that_the_contract_gives_it_or_none() -> None:
    """Flex halves the bill, an unknown tier has no price, and reservations cover the dearest."""
    flex = ServiceTier(name="flex", multiply={"input": "0.5", "output": "0.5"})
    rush = ServiceTier(name="priority", multiply={"input": "2", "output": "1.8"})
    schedule = contract(service_tiers=[flex, rush])
    usage = Usage(prompt_tokens=1000, completion_tokens=10)
    standard, half = schedule.at(0, 1000), schedule.of_tier("flex")
    assert standard is not None
    assert half is not None
    halved, dear = half.at(0, 1000), half.at(0, 272_001)
    assert halved is not None
    assert dear is not None
    assert halved.cost_pico(usage) * 2 == standard.cost_pico(usage)
    assert dear.cost_pico(usage) == 1000 * 4_250_000 + 10 * 19_125_000, "the clauses multiply"
    assert schedule.of_tier("batch") is None
    assert schedule.of_tier("") is schedule
    assert "+flex" in halved.price_id
    ids = {price.price_id for price in all_prices([schedule])}
    assert len(ids) == 6
    assert all(content_hash(price) == price.source_hash for price in all_prices([schedule]))
    priority = schedule.of_tier("priority")
    assert priority is not None
    fast = priority.at(0, 1000)
    assert fast is not None
    bound = schedule.worst_case_pico(0, prompt_tokens=1000, output_tokens=10)
    assert bound >= fast.cost_pico(usage), "whichever tier the provider serves in"


def test_what_the_provider_says_it_cost_goes_before_a_list_and_above_a_contract() -> None:
    """A list says what most pay; a contract's tokens may have fees beside them."""
    public = listed("openai", "gpt-4o").at(moment_us(2026, 11, 1), 10)
    agreed = contract().at(0, 10)
    assert public is not None
    assert agreed is not None
    tokens = agreed.cost_pico(Usage(prompt_tokens=10))
    for told in (1, tokens, 10**12):
        usage = Usage(prompt_tokens=10, told_pico=told, other_fees=True)
        assert public.prices(usage)
        assert public.cost_pico(usage) == told
        assert agreed.cost_pico(usage) == max(told, tokens)


def test_a_price_without_the_newer_rates_keeps_its_name() -> None:
    """Books that are older than those rates still verify."""
    plain = contract(per_mtok={"input": "1", "output": "1"}, tiers=[]).at(0, 0)
    newer = contract(
        per_mtok={"input": "1", "output": "1", "cache_write_1h": "2"},
        tiers=[ContractTier(when_input_over=10, multiply={"input": "3"})],
    )
    assert plain is not None
    assert b"cache_write_1h" not in msgspec.json.encode(plain.rates)
    assert {p.rates.cache_write_1h for p in newer.prices} == {2_000_000, 6_000_000}
    assert all(content_hash(price) == price.source_hash for price in (plain, *newer.prices))


def test_a_date_decides_the_price_of_o3() -> None:
    """A million tokens cost 10 dollars one second before 10 June 2025, and 2 from then on."""
    schedule = listed("openai", "o3")
    million = Usage(prompt_tokens=1_000_000)
    before = schedule.at(moment_us(2025, 6, 9, 23, 59, 59), 1_000_000)
    after = schedule.at(moment_us(2025, 6, 10), 1_000_000)
    assert before is not None
    assert after is not None
    assert (before.cost_pico(million), after.cost_pico(million)) == (10 * 10**12, 2 * 10**12)


def test_the_tier_reached_prices_the_whole_request() -> None:
    """One token above 200,000 doubles the price of all tokens, not of that one."""
    schedule = listed("google", "gemini-2.5-pro")
    now_us = moment_us(2026, 11, 1)
    low, high = schedule.at(now_us, 200_000), schedule.at(now_us, 200_001)
    assert low is not None
    assert high is not None
    assert low.cost_pico(Usage(prompt_tokens=200_000)) == 250_000_000_000
    assert high.cost_pico(Usage(prompt_tokens=200_001)) == 500_002_500_000


@pytest.mark.parametrize(
    ("provider", "model"), [("openai", "gpt-99"), ("nobody", "gpt-4o"), ("mistral", "no-such")]
)
def test_an_unknown_model_is_unpriced(provider: str, model: str) -> None:
    """No price of a similar model is guessed."""
    assert from_genai_prices(provider, model) is None


def test_a_model_sold_by_the_minute_is_unpriced_and_not_free() -> None:
    """Minutes of speech have no rate per token, and zero would be a lie in the books."""
    assert from_genai_prices("openai", "whisper-1") is None


def test_float_noise_of_the_list_is_rounded_away() -> None:
    """Every list price that exists becomes whole pico-dollars close to itself."""
    from genai_prices import data_snapshot

    together = next(p for p in data_snapshot.get_snapshot().providers if p.id == "together")
    for model in together.models:
        for price in all_prices([from_genai_prices("together", model.id)]):
            assert isinstance(price.rates.input, int)


def test_equal_prices_have_equal_ids_and_different_ones_do_not() -> None:
    """Books name a price by its content, so an id must stand for one price for ever."""
    first, again = listed("openai", "gpt-5.4"), listed("openai", "gpt-5.4")
    assert first == again
    prices = all_prices([listed(*model) for model in MODELS])
    assert len({price.price_id for price in prices}) == len(prices)
    assert all(content_hash(price) == price.source_hash for price in prices)


def contract(**changes: object) -> PriceSchedule:
    terms = {
        "contract_id": "C-1",
        "provider": "openai",
        "model": "gpt-5.5",
        "currency": "USD",
        "per_mtok": {"input": "4.25", "cached_input": "0.425", "output": "25.5"},
        "tiers": [ContractTier(when_input_over=272_000, multiply={"input": "2", "output": "1.5"})],
    }
    return from_contract(**(terms | changes))  # type: ignore[arg-type]


def test_a_contract_is_exact_and_its_tier_multiplies_all_rates() -> None:
    """Input, cached input and output all double at token 272,001."""
    usage = Usage(prompt_tokens=1000, cached_tokens=400, completion_tokens=10)
    low, high = contract().at(0, 272_000), contract().at(0, 272_001)
    assert low is not None
    assert high is not None
    assert low.cost_pico(usage) == 600 * 4_250_000 + 400 * 425_000 + 10 * 25_500_000
    assert high.cost_pico(usage) == 600 * 8_500_000 + 400 * 850_000 + 10 * 38_250_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"currency": "EUR"}, "EUR"),
        ({"per_mtok": {"input": "1"}}, "both input and output"),
        ({"per_mtok": {"input": "1", "output": "1", "images": "1"}}, "unknown price 'images'"),
        ({"per_mtok": {"input": "0.0000001", "output": "1"}}, "finer than 6"),
        ({"per_mtok": {"input": "-1", "output": "1"}}, "negative"),
        ({"tiers": [ContractTier(when_input_over=1, multiply={"all": "2"})]}, "unknown factor"),
        ({"per_thousand": {"image": "1"}}, "unknown fee 'image'"),
        ({"service_tiers": [ServiceTier(name="flex", multiply={})] * 2}, "'flex' is there twice"),
        (
            {
                "tiers": [
                    ContractTier(when_input_over=9, multiply={}),
                    ContractTier(when_input_over=5, multiply={}),
                ]
            },
            "tiers must rise",
        ),
    ],
)
def test_a_bad_contract_is_refused_with_a_sentence(
    changes: dict[str, object], message: str
) -> None:
    """An operator reads the mistake in a price before anything is billed by it."""
    with pytest.raises(ValueError, match=message):
        contract(**changes)


def test_own_hardware_costs_its_compute_time() -> None:
    """At 0.36 dollars an hour, 1.5 seconds cost 150 micro-dollars, however many tokens."""
    schedule = from_machine_hour(provider="local", model="small", machine_hour="0.36")
    price = schedule.at(0, 10)
    assert price is not None
    usage = Usage(prompt_tokens=900, completion_tokens=100, compute_us=1_500_000)
    assert price.cost_pico(usage) == 150_000_000  # 0.36 USD per hour is 0.0001 per second
    assert (
        schedule.worst_case_pico(0, prompt_tokens=900, output_tokens=100, compute_seconds=2)
        == 200_000_000
    )


@given(
    prompt=st.integers(0, 10**6),
    parts=st.tuples(*[st.floats(0, 1)] * 6),
    completion=st.integers(0, 10**6),
)
def test_every_token_is_billed_exactly_once(
    prompt: int, parts: tuple[float, ...], completion: int
) -> None:
    """At a rate of one for every bucket the cost is the number of tokens, whatever overlaps."""
    cached = int(prompt * parts[0])
    reasoning = int(completion * parts[1])
    usage = Usage(
        prompt_tokens=prompt,
        cached_tokens=cached,
        cache_write_tokens=int((prompt - cached) * parts[2]),
        prompt_audio_tokens=int(prompt * parts[3]),
        prompt_image_tokens=int(prompt * parts[4]),
        completion_tokens=completion,
        reasoning_tokens=reasoning,
        completion_audio_tokens=int((completion - reasoning) * parts[5]),
    )
    price = contract(per_mtok={"input": "0.000001", "output": "0.000001"}, tiers=[]).at(0, 0)
    assert price is not None
    assert price.cost_pico(usage) == prompt + completion
