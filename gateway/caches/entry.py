"""What a cache keeps of one answer. Knows usage and bytes; not HTTP, not money."""

from typing import Any

import msgspec

from gateway.wire.usage import Usage
from gateway.wire.verbatim import decode_slowly, looks_rounded, outside_of_texts, read


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
    plain: bool | None = None  # no number in it that a double would change; None: not asked yet

    def document(self) -> Any:
        """The answer, decoded as it was written."""
        if self.plain is None:  # once: it takes as long as decoding
            plain = not looks_rounded(outside_of_texts(self.answer))
            msgspec.structs.force_setattr(self, "plain", plain)
        return read(self.answer) if self.plain else decode_slowly(self.answer)

    def alive(self, now_us: int) -> bool:
        """Whether the entry may still be served."""
        return now_us < self.expires_us
