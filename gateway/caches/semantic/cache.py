"""The semantic cache: private indexes by partition; a hit needs likeness, equal facets, and the
verifier's word.

Knows texts, vectors and stored answers. There is no search across partitions to get wrong.
"""

import threading
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec

from gateway.caches.entry import StoredAnswer
from gateway.caches.semantic import facets, verifier
from gateway.caches.semantic.slot import Slot

if TYPE_CHECKING:
    from gateway.caches.semantic.index import Index, Vector

CANDIDATES: Final = 8
COSINE_FLOOR: Final = 0.55


class SemanticHit(msgspec.Struct, frozen=True, kw_only=True):
    """An entry that may be served, and why."""

    entry: StoredAnswer
    similarity: float  # cosine
    probability: float  # calibrated: that the stored answer serves this question too
    reason: str  # shown verbatim


class NamespaceStats(msgspec.Struct, kw_only=True):
    """Counts of one partition since it was created."""

    entries: int = 0
    lookups: int = 0
    hits: int = 0
    refused_by_facets: int = 0
    refused_by_verifier: int = 0


class _Namespace:
    def __init__(self, index: "Index", tenant_id: str) -> None:
        self.index = index
        self.tenant_id = tenant_id
        self.stats = NamespaceStats()
        self.used_us = 0


class SemanticCache:
    """At most ``namespaces_max`` partitions of ``entries_per_namespace_max`` entries each.

    ``lookup`` takes no lock and may run in any thread; the methods that change something take one.
    The tenant that has most of them makes room for a new one, by its least recently used.
    """

    def __init__(
        self, *, entries_per_namespace_max: int, namespaces_max: int, dimensions: int = 384
    ) -> None:
        self._entries_max = entries_per_namespace_max
        self._namespaces_max = namespaces_max
        self._dimensions = dimensions
        self._lock = threading.Lock()
        self._namespaces: dict[bytes, _Namespace] = {}
        self._places: dict[str, tuple[bytes, Slot]] = {}  # cache_id → where it lies

    def lookup(
        self, partition: bytes, text: str, vector: "Vector", *, now_us: int, max_wrong: float
    ) -> SemanticHit | None:
        """The best entry that may be served, for a promised share of wrong answers among hits.

        vector: float32 [dimensions], unit length. Under 1 ms at 10,000 entries.
        """
        namespace = self._namespaces.get(partition)
        if namespace is None:
            return None
        namespace.used_us = now_us
        namespace.stats.lookups += 1
        judge = verifier.shipped()
        threshold = judge.threshold_for(max_wrong)
        asked: facets.Facets | None = None
        nearest = namespace.index.nearest(vector, count=CANDIDATES, floor=COSINE_FLOOR)
        for cosine, slot in nearest:
            entry = slot.entry
            if entry is None or not entry.alive(now_us):
                continue
            asked = facets.extract(text) if asked is None else asked
            if facets.conflict(slot.facets, asked) is not None:
                namespace.stats.refused_by_facets += 1
                continue
            probability = judge.probability(slot.facets, asked, cosine)
            if probability < threshold:
                namespace.stats.refused_by_verifier += 1
                continue
            namespace.stats.hits += 1
            return SemanticHit(
                entry=entry,
                similarity=cosine,
                probability=probability,
                reason=f"all facets equal, probability {probability:.3f} >= {threshold:.3f}",
            )
        return None

    def store(self, partition: bytes, text: str, vector: "Vector", entry: StoredAnswer) -> None:
        """Add one answer under the question ``text``; the same question's older answer goes.

        vector: float32 [dimensions], unit length. Raises ``ValueError`` for another shape.
        """
        if vector.shape != (self._dimensions,):
            raise ValueError(f"a vector of {self._dimensions} was expected, not {vector.shape}")
        slot = Slot(facets=facets.extract(text), entry=entry)
        with self._lock:
            namespace = self._namespaces.get(partition)
            if namespace is None:
                namespace = self._open(partition, entry.tenant_id)
            namespace.used_us = max(namespace.used_us, entry.stored_us)
            same = [
                old
                for cosine, old in namespace.index.nearest(vector, count=CANDIDATES, floor=0.999)
                if old.facets == slot.facets
            ]
            self._forget(namespace, same)
            namespace.index.add(vector, slot)
            self._places[entry.cache_id] = (partition, slot)
            if len(self._places) > 2 * self._entries_max * max(1, len(self._namespaces)):
                self._prune_places()

    def delete(self, cache_id: str) -> bool:
        """Forget one entry; whether it was there."""
        with self._lock:
            partition, slot = self._places.pop(cache_id, (b"", None))
            namespace = self._namespaces.get(partition)
            if slot is None or slot.entry is None or namespace is None:
                return False
            namespace.index.forget([slot])
            return True

    def delete_where(self, doomed: Callable[[StoredAnswer], bool]) -> int:
        """Forget every entry of which ``doomed`` holds; how many there were."""
        count = 0
        with self._lock:
            for namespace in self._namespaces.values():
                found = namespace.index.slots()
                slots = [s for s in found if s.entry is not None and doomed(s.entry)]
                self._forget(namespace, slots)
                count += len(slots)
        return count

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._namespaces = {}
            self._places = {}

    def stats(self) -> dict[str, NamespaceStats]:
        """Counts by partition, named by the first 12 hex digits of its key."""
        with self._lock:
            return {
                partition.hex()[:12]: msgspec.structs.replace(
                    namespace.stats, entries=len(namespace.index)
                )
                for partition, namespace in self._namespaces.items()
            }

    def _open(self, partition: bytes, tenant_id: str) -> _Namespace:
        from gateway.caches.semantic.index import Index

        if len(self._namespaces) >= self._namespaces_max:
            counts = Counter(namespace.tenant_id for namespace in self._namespaces.values())
            whose, most = counts.most_common(1)[0]
            if counts[tenant_id] + 1 >= most and counts[tenant_id]:
                whose = tenant_id
            theirs = {key: n for key, n in self._namespaces.items() if n.tenant_id == whose}
            oldest = min(theirs, key=lambda key: theirs[key].used_us)
            gone = self._namespaces.pop(oldest)
            for slot in gone.index.slots():
                if slot.entry is not None:
                    self._places.pop(slot.entry.cache_id, None)
        index = Index(entries_max=self._entries_max, dimensions=self._dimensions)
        namespace = _Namespace(index, tenant_id)
        self._namespaces[partition] = namespace
        return namespace

    def _forget(self, namespace: _Namespace, slots: list[Slot]) -> None:
        for slot in slots:
            if slot.entry is not None:
                self._places.pop(slot.entry.cache_id, None)
        if slots:
            namespace.index.forget(slots)

    def _prune_places(self) -> None:
        """Entries that the index dropped by age are still named here; forget those names."""
        held = {id(slot) for n in self._namespaces.values() for slot in n.index.slots()}
        self._places = {
            cache_id: place for cache_id, place in self._places.items() if id(place[1]) in held
        }
