"""One private index per namespace; a hit needs likeness, equal facets and the verifier's word."""

import msgspec
import numpy as np
import numpy.typing as npt

from gateway.caches.entry import StoredAnswer


class SemanticHit(msgspec.Struct, frozen=True, kw_only=True):
    """An entry that may be served, and why."""

    entry: StoredAnswer
    similarity: float  # cosine
    probability: float  # calibrated: that the stored answer serves this question too
    reason: str  # shown verbatim


class SemanticCache:
    """Entries by partition; at most ``entries_per_namespace_max`` in each."""

    def __init__(
        self, *, entries_per_namespace_max: int, namespaces_max: int, dimensions: int = 384
    ) -> None:
        self._entries_max = entries_per_namespace_max
        self._namespaces_max = namespaces_max
        self._dimensions = dimensions

    def lookup(
        self,
        partition: bytes,
        text: str,
        vector: npt.NDArray[np.float32],
        *,
        now_us: int,
        max_wrong: float,
    ) -> SemanticHit | None:
        """The best entry that may be served; None when there is none."""
        return None

    def store(
        self, partition: bytes, text: str, vector: npt.NDArray[np.float32], entry: StoredAnswer
    ) -> None:
        """Add one answer under the question ``text``."""

    def delete(self, cache_id: str) -> bool:
        """Forget one entry; whether it was there."""
        return False

    def clear(self) -> None:
        """Forget everything."""
