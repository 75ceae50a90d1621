"""Caches that tenants share: who floods one loses its own entries, and nobody else's."""

from collections import defaultdict

import msgspec
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gateway.caches.entry import StoredAnswer
from gateway.caches.exact import ENTRY_OVERHEAD_BYTES, ExactCache, entry_size_bytes
from gateway.caches.repeats import Repeats
from gateway.caches.semantic import SemanticCache
from gateway.wire.openai import parse_request
from tests.gateway.caches.cached_answers import NOW_US, stored

SIZE_BYTES = ENTRY_OVERHEAD_BYTES + 100


def of(tenant: str, name: str, size_bytes: int = 100) -> StoredAnswer:
    return msgspec.structs.replace(
        stored(f"{tenant}/{name}", size_bytes=size_bytes), tenant_id=tenant
    )


def put(cache: ExactCache, tenant: str, number: int) -> None:
    cache.put(f"{tenant}/{number}".encode(), of(tenant, str(number)))


def held(cache: ExactCache, tenant: str, numbers: range) -> int:
    """How many of these entries are there."""
    return sum(cache.get(f"{tenant}/{n}".encode(), NOW_US) is not None for n in numbers)


def test_a_flood_evicts_the_flooder_and_nobody_else() -> None:
    """A tenant with a quarter of the cache keeps all of it, though it asks for nothing."""
    cache = ExactCache(bytes_max=100 * SIZE_BYTES)
    for number in range(25):
        put(cache, "quiet", number)
    for number in range(10_000):
        put(cache, "loud", number)
    assert held(cache, "quiet", range(25)) == 25
    assert held(cache, "loud", range(10_000)) == 75


def test_a_tenant_that_is_alone_has_the_whole_cache() -> None:
    """Fairness reserves nothing for the absent: of 500 entries its latest 100 stay."""
    cache = ExactCache(bytes_max=100 * SIZE_BYTES)
    for number in range(500):
        put(cache, "only", number)
    assert held(cache, "only", range(500)) == 100
    assert held(cache, "only", range(400)) == 0, "its oldest went first"


def test_a_newcomer_gets_its_part_of_a_full_cache() -> None:
    """Whoever has most gives it up, until both have half."""
    cache = ExactCache(bytes_max=100 * SIZE_BYTES)
    for number in range(200):
        put(cache, "old", number)
    for number in range(200):
        put(cache, "new", number)
    assert held(cache, "new", range(200)) == 50
    assert held(cache, "old", range(200)) == 50


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["put", "put", "put", "get", "delete"]),
            st.sampled_from("abc"),
            st.integers(0, 9),
            st.integers(0, 3_000),
        ),
        max_size=120,
    )
)
def test_nobody_within_its_equal_part_ever_loses_an_entry_to_another(
    operations: list[tuple[str, str, int, int]],
) -> None:
    """Whatever is stored, used and deleted, of whatever sizes; and the sum stays within bounds."""
    bytes_max = 12_000
    cache = ExactCache(bytes_max=bytes_max)
    sizes: dict[str, dict[bytes, int]] = defaultdict(dict)
    for operation, tenant, number, size in operations:
        key = f"{tenant}/{number}".encode()
        entry = of(tenant, str(number), size)
        if operation == "get":
            cache.get(key, NOW_US)
        elif operation == "delete":
            cache.delete(entry.cache_id)
            sizes[tenant].pop(key, None)
        else:
            safe = {
                other: set(kept)
                for other, kept in sizes.items()
                if other != tenant and sum(kept.values()) <= bytes_max // 3
            }
            cache.put(key, entry)
            sizes[tenant][key] = entry_size_bytes(entry)
            there = set(cache._entries)
            for other, kept in safe.items():
                assert kept <= there, (other, operations)
            for kept_sizes in sizes.values():
                for gone in set(kept_sizes) - there:
                    del kept_sizes[gone]
        assert cache.stats.size_bytes <= bytes_max
        assert cache.stats.size_bytes == sum(map(entry_size_bytes, cache._entries.values()))


def test_semantic_partitions_of_a_flooder_displace_its_own() -> None:
    """200 partitions of a loud tenant leave all five of a quiet one in the cache of twenty."""
    cache = SemanticCache(entries_per_namespace_max=10, namespaces_max=20, dimensions=4)
    vector = np.array([1, 0, 0, 0], np.float32)

    def store(tenant: str, number: int) -> bytes:
        partition = f"{tenant}/{number}".encode().ljust(32, b".")
        cache.store(partition, "What is it?", vector, of(tenant, str(number)))
        return partition

    quiet = [store("quiet", number) for number in range(5)]
    for number in range(200):
        store("loud", number)
    assert set(quiet) <= set(cache._namespaces)
    assert len(cache._namespaces) == 20


def test_repeated_bodies_of_a_flooder_displace_its_own() -> None:
    """Of 512 places the quiet tenant keeps its 100, and the flooder gets the other 412."""
    repeats = Repeats()
    bodies = [
        b'{"model":"m","messages":[{"role":"user","content":"%d"}]}' % number
        for number in range(1_000)
    ]
    for raw in bodies[:100]:
        repeats.learn("quiet", raw, parse_request("chat", raw))
    for raw in bodies:
        repeats.learn("loud", raw, parse_request("chat", raw))
    assert all(repeats.get("quiet", "chat", raw) is not None for raw in bodies[:100])
    assert sum(repeats.get("loud", "chat", raw) is not None for raw in bodies) == 412
