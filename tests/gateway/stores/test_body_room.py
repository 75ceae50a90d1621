"""Room for bodies: nothing is taken twice, nothing is lost, no limit is passed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import Overloaded, RateLimited
from gateway.stores.body_room import BodyLease, BodyRoom

STEPS = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from(["take", "end"]), st.integers(0, 60)), max_size=60
)


@given(STEPS)
def test_what_is_held_is_what_was_taken_and_not_given_back(
    steps: list[tuple[int, str, int]],
) -> None:
    """Six requests of two tenants grow and end in any order, also twice."""
    room = BodyRoom(tenant_bytes_max=100, bytes_max=150)
    leases = [BodyLease(room, f"t{number % 2}") for number in range(6)]
    held, ended = [0] * 6, [False] * 6
    for number, step, size in steps:
        if step == "end":
            leases[number].end()
            held[number], ended[number] = 0, True
        elif not ended[number]:
            tenant = sum(held[number % 2 :: 2]) + size
            refused = tenant > 100 or sum(held) + size > 150
            try:
                leases[number].take(size)
            except RateLimited:
                assert tenant > 100
            except Overloaded:
                assert tenant <= 100 < sum(held) + size
            else:
                assert not refused or not size
                held[number] += size
        assert room.held_bytes == sum(held)
    for lease in leases:
        lease.end()
    assert room.held_bytes == 0


def test_a_lease_that_has_ended_takes_nothing() -> None:
    """A late chunk of a finished request must not occupy room for ever."""
    room = BodyRoom(tenant_bytes_max=10, bytes_max=10)
    lease = BodyLease(room, "t")
    lease.end()
    lease.take(10)
    assert room.held_bytes == 0
    with pytest.raises(RateLimited):
        BodyLease(room, "t").take(11)
