"""What a cache keeps of one answer. Knows usage and bytes; not HTTP, not money."""

import msgspec

from gateway.wire.usage import Usage


class StoredAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """One complete answer, fit to be replayed as a document or as a stream.

    Times are UTC microseconds. The entry is dead from ``expires_us`` on.
    """

    answer: bytes  # the normalised non-stream document, JSON
    endpoint: str
    served_model: str
    provider: str
    usage: Usage
    stored_us: int
    expires_us: int
    cache_id: str  # minted by the caller; names the entry in feedback and deletion
    route_identity: bytes
    tenant_id: str  # whose answer it is: for purging; keys and partitions isolate
    writer_key_id: str

    def alive(self, now_us: int) -> bool:
        """Whether the entry may still be served."""
        return now_us < self.expires_us
