"""The exact cache: the right entry, within its bytes, for its own tenant only."""

import threading

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.caches.exact import ENTRY_OVERHEAD_BYTES, ExactCache, entry_size_bytes, exact_key
from tests.gateway.caches.cached_answers import NOW_US, stored


def key(
    secret: bytes = b"s", scope: str = "tenant", route: bytes = b"r", canonical: bytes = b"c"
) -> bytes:
    return exact_key(tenant_secret=secret, scope=scope, route_identity=route, canonical=canonical)


@settings(max_examples=100, deadline=None)
@given(
    st.tuples(st.binary(max_size=4), st.text(max_size=4), st.binary(max_size=4), st.binary()),
    st.tuples(st.binary(max_size=4), st.text(max_size=4), st.binary(max_size=4), st.binary()),
)
def test_keys_meet_only_when_every_part_is_equal(
    one: tuple[bytes, str, bytes, bytes], other: tuple[bytes, str, bytes, bytes]
) -> None:
    """No shift of bytes from one part to the next, and no other tenant, makes the same key."""
    # HMAC pads a secret with zeros, so secrets here end in a byte that is none.
    equal = (one[0] + b"!", *one[1:]) == (other[0] + b"!", *other[1:])
    assert (key(one[0] + b"!", *one[1:]) == key(other[0] + b"!", *other[1:])) is equal


def test_a_live_entry_is_returned_until_the_microsecond_it_expires() -> None:
    """One microsecond before its end it is served; at the end it is gone and its bytes are free."""
    cache = ExactCache(bytes_max=100_000)
    cache.put(key(), stored("a", expires_us=NOW_US))
    assert cache.get(key(), NOW_US - 1) is not None
    assert cache.get(key(), NOW_US) is None
    assert cache.stats.expired == 1
    assert cache.stats.entries == 0


def test_the_least_recently_used_entry_goes_first() -> None:
    """Room for two: the entry that was read stays, the other makes way for the third."""
    room_for_two = 2 * (ENTRY_OVERHEAD_BYTES + 100)
    cache = ExactCache(bytes_max=room_for_two)
    cache.put(b"a", stored("a"))
    cache.put(b"b", stored("b"))
    assert cache.get(b"a", NOW_US) is not None
    cache.put(b"c", stored("c"))
    assert cache.get(b"b", NOW_US) is None
    assert cache.get(b"a", NOW_US) is not None
    assert cache.stats.evicted == 1


def test_an_entry_above_the_whole_budget_is_refused_and_displaces_nothing() -> None:
    """One byte too large, it would otherwise empty the cache and still not fit."""
    cache = ExactCache(bytes_max=ENTRY_OVERHEAD_BYTES + 100)
    cache.put(b"a", stored("a"))
    cache.put(b"b", stored("b", size_bytes=101))
    assert cache.get(b"a", NOW_US) is not None
    assert cache.stats.refused == 1


def test_a_deleted_entry_is_gone_and_deleting_it_again_says_so() -> None:
    """An operator's purge takes effect at once, and a cleared cache holds no bytes."""
    cache = ExactCache(bytes_max=100_000)
    cache.put(b"a", stored("id"))
    assert cache.delete("id")
    assert not cache.delete("id")
    assert cache.get(b"a", NOW_US) is None
    cache.put(b"a", stored("id"))
    cache.clear()
    assert cache.stats.size_bytes == 0


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["put", "get", "delete"]), st.integers(0, 5), st.integers(0, 3000)),
    max_size=40,
)


@settings(max_examples=100, deadline=None)
@given(OPERATIONS)
def test_the_bytes_budget_is_never_exceeded(operations: list[tuple[str, int, int]]) -> None:
    """And the count of bytes is that of the entries held, whatever happened before."""
    cache = ExactCache(bytes_max=8_000)
    held: dict[bytes, int] = {}
    for number, (verb, name, size_bytes) in enumerate(operations):
        slot = b"%d" % name
        if verb == "put":
            entry = stored(f"{name}-{number}", size_bytes=size_bytes)
            cache.put(slot, entry)
            held[slot] = entry_size_bytes(entry)
        elif verb == "get":
            cache.get(slot, NOW_US)
        else:
            cache.delete(f"{name}-{number}")
        assert cache.stats.size_bytes <= 8_000
    alive = [slot for slot in held if cache.get(slot, NOW_US) is not None]
    assert cache.stats.size_bytes == sum(held[slot] for slot in alive)


def test_threads_may_share_it() -> None:
    """Four threads put, get and delete the same few keys; the books still balance."""
    cache = ExactCache(bytes_max=10_000)

    def work(seed: int) -> None:
        for number in range(500):
            slot = b"%d" % ((number * seed) % 7)
            cache.put(slot, stored(f"{seed}-{number}"))
            cache.get(slot, NOW_US)
            cache.delete(f"{seed}-{number - 1}")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2, 3, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert not any(thread.is_alive() for thread in threads)
    stats = cache.stats
    assert stats.size_bytes == stats.entries * (ENTRY_OVERHEAD_BYTES + 100)
