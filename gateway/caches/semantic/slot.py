"""A place in the semantic cache: a question's facets and its answer. Knows no vector."""

import msgspec

from gateway.caches.entry import StoredAnswer
from gateway.caches.semantic.facets import Facets


class Slot(msgspec.Struct, kw_only=True):
    """One stored question and its answer. ``entry`` becomes None when it is forgotten."""

    facets: Facets
    entry: StoredAnswer | None
