"""Semantic cache: a re-worded question gets the stored answer, within a promised share of errors.

Knows texts, vectors and stored answers. Does not know HTTP, policies, or who made the vectors.
"""

from gateway.caches.semantic.cache import SemanticCache, SemanticHit
from gateway.caches.semantic.eligibility import eligible
from gateway.caches.semantic.partition import partition_key

__all__ = ["SemanticCache", "SemanticHit", "eligible", "partition_key"]
