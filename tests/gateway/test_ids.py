"""ULIDs: their form, their order, and what is refused as one; against the specification."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.ids import UlidFactory, encode, timestamp_ms

CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def reference_decode(ulid: str) -> int:
    """Digit by digit, as the specification says: base 32, most significant first."""
    return sum(CROCKFORD.index(digit) * 32**power for power, digit in enumerate(reversed(ulid)))


@given(st.integers(0, 2**128 - 1))
def test_encoding_agrees_with_the_specification_for_every_value(value: int) -> None:
    """A reference decoder reads any 128-bit value back, and its top 48 bits are the time."""
    ulid = encode(value)
    assert len(ulid) == 26
    assert reference_decode(ulid) == value
    assert timestamp_ms(ulid) == value >> 80


def test_the_specification_s_own_example_is_read() -> None:
    """A published ULID gives its published time, so the reading is not only our own."""
    assert timestamp_ms("01ARZ3NDEKTSV4RRFFQ69G5FAV") == 1_469_922_850_259


@given(st.integers(0, 2**128 - 1), st.integers(0, 2**128 - 1))
def test_text_order_is_number_order(one: int, other: int) -> None:
    """Sorted as text, as a database sorts them, ids keep the order of their numbers."""
    assert (encode(one) < encode(other)) == (one < other)


def test_a_hundred_thousand_are_distinct_well_formed_and_in_the_order_of_their_time() -> None:
    """No two requests share an id, and each id's time lies within the run."""
    new_id = UlidFactory()
    before_ms = time.time_ns() // 1_000_000
    made = [new_id() for _ in range(100_000)]
    after_ms = time.time_ns() // 1_000_000
    assert len(set(made)) == len(made)
    assert all(len(ulid) == 26 for ulid in made)
    assert set("".join(made)) <= set(CROCKFORD)
    times = [reference_decode(ulid) >> 80 for ulid in made[::1000]]
    assert times == sorted(times)
    assert before_ms <= times[0]
    assert times[-1] <= after_ms


def test_the_random_part_uses_every_bit_and_repeats_no_block() -> None:
    """A stuck bit or a block used twice would let ids collide or be guessed."""
    new_id = UlidFactory()
    randoms = [reference_decode(new_id()) & (2**80 - 1) for _ in range(1200)]  # several blocks
    assert len(set(randoms)) == len(randoms)
    for bit in range(80):
        ones = sum(value >> bit & 1 for value in randoms)
        assert 400 < ones < 800, f"bit {bit} is set {ones} times of 1200"


def test_two_factories_share_no_randomness() -> None:
    """Two workers that start together must not give out the same ids."""
    one, other = UlidFactory(), UlidFactory()
    assert not {one()[10:] for _ in range(500)} & {other()[10:] for _ in range(500)}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "01ARZ3NDEKTSV4RRFFQ69G5FA",
        "01ARZ3NDEKTSV4RRFFQ69G5FAVV",
        "01arz3ndektsv4rrffq69g5fav",
        "01ARZ3NDEKTSV4RRFFQ69G5FAI",
        "01ARZ3NDEKTSV4RRFFQ69G5FA\n",
        "L1ARZ3NDEKTSV4RRFFQ69G5FAV",
        "８1ARZ3NDEKTSV4RRFFQ69G5FAV",
        "80000000000000000000000000",
        "ZZZZZZZZZZZZZZZZZZZZZZZZZZ",
    ],
    ids=[
        "empty",
        "short",
        "long",
        "lower",
        "letter I",
        "newline",
        "letter L",
        "wide",
        "2**128",
        "Z",
    ],
)
def test_text_that_is_no_ulid_is_refused(text: str) -> None:
    """Wrong length, case, alphabet or digits get a ValueError and never a wrong time."""
    with pytest.raises(ValueError, match="is not a ULID"):
        timestamp_ms(text)
