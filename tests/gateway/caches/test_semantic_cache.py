"""The semantic cache around its judgement: partitions, limits, expiry, threads; made-up vectors."""

import threading
import time

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.caches.semantic import SemanticCache, SemanticHit
from gateway.caches.semantic.facets import extract
from gateway.caches.semantic.index import Index
from gateway.caches.semantic.slot import Slot
from gateway.caches.semantic.verifier import shipped
from tests.gateway.caches.cached_answers import NOW_US, stored

Vector = npt.NDArray[np.float32]
ASKED = "How do I reset a router?"


def unit(seed: int, dimensions: int = 384) -> Vector:
    vector = np.random.default_rng(seed).standard_normal(dimensions).astype(np.float32)
    return vector / np.float32(np.linalg.norm(vector))


def lookup(
    cache: SemanticCache,
    partition: bytes = b"p",
    *,
    text: str = ASKED,
    vector: Vector | None = None,
    now_us: int = NOW_US,
    max_wrong: float = 0.01,
) -> SemanticHit | None:
    found = unit(1) if vector is None else vector
    return cache.lookup(partition, text, found, now_us=now_us, max_wrong=max_wrong)


def filled() -> SemanticCache:
    cache = SemanticCache(entries_per_namespace_max=16, namespaces_max=3)
    cache.store(b"p", ASKED, unit(1), stored("a", expires_us=NOW_US + 10))
    return cache


def test_a_hit_names_its_likeness_and_its_probability() -> None:
    """A client can see why it got a stored answer, with cosine 1 for the same question."""
    hit = lookup(filled())
    assert hit is not None
    assert hit.entry.cache_id == "a"
    assert hit.similarity == pytest.approx(1.0, abs=1e-5)
    assert 0.9 <= hit.probability <= 1.0


def test_another_partition_never_sees_it() -> None:
    """The same text and vector under another key find nothing: there is no search across."""
    cache = filled()
    assert lookup(cache, b"q") is None
    cache.store(b"q", "Why is the sky blue?", unit(2), stored("b"))
    assert lookup(cache, b"q") is None
    assert lookup(cache, b"p") is not None


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), max_size=12))
def test_a_partition_returns_only_what_was_stored_in_it(stores: list[tuple[int, int]]) -> None:
    """However stores interleave, a hit is the tenant's own answer to the very question."""
    cache = SemanticCache(entries_per_namespace_max=8, namespaces_max=4)
    for tenant, question in stores:
        text = f"Why is planet number {question} round?"
        cache.store(b"%d" % tenant, text, unit(question), stored(f"{tenant}:{question}"))
    for tenant in range(6):
        for question in range(5):
            text = f"Why is planet number {question} round?"
            hit = lookup(cache, b"%d" % tenant, text=text, vector=unit(question))
            assert hit is None or hit.entry.cache_id == f"{tenant}:{question}"
    assert len(cache.stats()) <= 4


def test_an_expired_entry_is_not_served() -> None:
    """Nine microseconds after now it is a hit; at the tenth, its very end, it is none."""
    cache = filled()
    assert lookup(cache, now_us=NOW_US + 9) is not None
    assert lookup(cache, now_us=NOW_US + 10) is None


def test_unlike_vectors_do_not_hit_even_with_equal_text() -> None:
    """Below the floor nothing is compared: a broken encoder costs hits, not errors."""
    assert lookup(filled(), vector=unit(9)) is None


def test_equal_vectors_do_not_hit_with_another_number() -> None:
    """A broken encoder that maps all texts to one vector serves nothing wrong."""
    cache = SemanticCache(entries_per_namespace_max=4, namespaces_max=1)
    cache.store(b"p", "What is 3 plus 4?", unit(1), stored("a"))
    assert lookup(cache, text="What is 3 plus 5?") is None
    assert cache.stats()[b"p".hex()].refused_by_facets == 1


def test_a_promise_of_no_error_serves_nothing() -> None:
    """max_wrong 0 switches the tier off, and a smaller allowed error needs a higher threshold."""
    assert lookup(filled(), max_wrong=0.0) is None
    judge = shipped()
    assert judge.threshold_for(0.001) > judge.threshold_for(0.01) == judge.threshold_for(0.5)


def test_deleting_and_clearing_forget_at_once() -> None:
    """A purged answer is not found by the next lookup, and cleared partitions are gone."""
    cache = filled()
    assert cache.delete("a")
    assert not cache.delete("a")
    assert lookup(cache) is None
    cache = filled()
    cache.clear()
    assert lookup(cache) is None
    assert cache.stats() == {}


def test_the_same_question_keeps_its_newest_answer_only() -> None:
    """A question asked again replaces its entry rather than crowding out others."""
    cache = filled()
    cache.store(b"p", ASKED, unit(1), stored("b"))
    hit = lookup(cache)
    assert hit is not None
    assert hit.entry.cache_id == "b"
    assert cache.stats()[b"p".hex()].entries == 1


def test_limits_hold_and_the_newest_entries_stay() -> None:
    """Of fifty questions eight stay at most, with the last among them; of four partitions two."""
    cache = SemanticCache(entries_per_namespace_max=8, namespaces_max=2, dimensions=8)
    for number in range(50):
        text = f"What is {number} plus 1?"
        cache.store(b"p", text, unit(number, 8), stored(str(number)))
        assert cache.stats()[b"p".hex()].entries <= 8
    hit = lookup(cache, text="What is 49 plus 1?", vector=unit(49, 8))
    assert hit is not None
    assert lookup(cache, text="What is 0 plus 1?", vector=unit(0, 8)) is None
    for name in (b"q", b"r", b"s"):
        cache.store(name, ASKED, unit(1, 8), stored(name.decode()))
    assert len(cache.stats()) == 2


def test_a_vector_of_another_width_is_refused() -> None:
    """A changed embedding model must not fill the index with vectors that cannot be compared."""
    with pytest.raises(ValueError, match="384"):
        filled().store(b"p", ASKED, unit(1, 8), stored("x"))


def test_the_index_agrees_with_brute_force() -> None:
    """The nearest of 300 random vectors, against a full sort."""
    index = Index(entries_max=400, dimensions=16)
    vectors = [unit(seed, 16) for seed in range(300)]
    for number, vector in enumerate(vectors):
        index.add(vector, Slot(facets=extract("x"), entry=stored(str(number))))
    query = unit(1_000, 16)
    expected = sorted(range(300), key=lambda n: -float(vectors[n] @ query))[:8]
    found = index.nearest(query, count=8, floor=-1.0)
    assert [slot.entry.cache_id for _, slot in found if slot.entry] == [str(n) for n in expected]


@pytest.mark.parametrize("readers", [3])
def test_readers_and_a_writer_share_a_namespace_without_harm(readers: int) -> None:
    """While entries come, go and are rebuilt, a reader gets the answer to its question only."""
    cache = SemanticCache(entries_per_namespace_max=64, namespaces_max=2, dimensions=32)
    vectors = [unit(seed, 32) for seed in range(100)]
    texts = [f"What is {number} plus 1?" for number in range(100)]
    stop = threading.Event()
    wrong: list[str] = []
    hits = [0] * readers

    def read(reader: int) -> None:
        number = reader
        while not stop.is_set():
            number = (number + 7) % 100
            hit = lookup(cache, text=texts[number], vector=vectors[number])
            if hit is not None:
                hits[reader] += 1
                if hit.entry.cache_id.split("-")[0] != str(number):
                    wrong.append(hit.entry.cache_id)

    threads = [threading.Thread(target=read, args=(reader,)) for reader in range(readers)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 10
    for turn in range(600):
        number = turn % 100
        cache.store(b"p", texts[number], vectors[number], stored(f"{number}-{turn}"))
        if turn % 3 == 0:
            cache.delete(f"{number}-{turn}")
    while not all(hits) and time.monotonic() < deadline:
        cache.store(b"p", texts[5], vectors[5], stored("5-x"))
    stop.set()
    for thread in threads:
        thread.join(timeout=20)
    assert not wrong
    assert all(hits)
