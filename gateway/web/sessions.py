"""Signed sessions, form tokens and one-time login links.

A session cookie names an admin key and is signed, not stored; the key is looked up again on each
request, so that revoking it ends its sessions. Knows no HTTP. Time is passed in.
"""

import base64
import binascii
import hashlib
import hmac
import secrets

import msgspec

from gateway.web.services import LINK_SECONDS, LINKS_MAX, SESSION_SECONDS, SESSIONS_ENDED_MAX

_SIGNATURE_BYTES = 32
_COOKIE_LENGTH_MAX = 512


class Session(msgspec.Struct, frozen=True, array_like=True):
    """Who signed in, and until when."""

    session_id: str
    key_id: str
    expires_us: int


class Sessions:
    """Issues, reads and ends sessions; makes and checks form tokens; keeps login links.

    Links and ended sessions live in memory: a restart forgets open links, and the cookie secret
    decides whether sessions outlive it.
    """

    def __init__(self, secret: bytes) -> None:
        if len(secret) < 32:
            raise ValueError("the cookie secret must have at least 32 bytes")
        self._secret = secret
        self._ended: dict[str, int] = {}
        self._links: dict[bytes, tuple[str, int]] = {}

    def issue(self, key_id: str, now_us: int) -> str:
        """A cookie for a new session."""
        session = Session(secrets.token_urlsafe(12), key_id, now_us + SESSION_SECONDS * 1_000_000)
        payload = msgspec.msgpack.encode(session)
        return base64.urlsafe_b64encode(payload + self._sign(b"session", payload)).decode()

    def read(self, cookie: str, now_us: int) -> Session | None:
        """The session of an authentic, unexpired, not ended cookie, else None."""
        if not cookie.isascii() or len(cookie) > _COOKIE_LENGTH_MAX:
            return None
        try:
            signed = base64.b64decode(cookie, altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            return None
        payload, signature = signed[:-_SIGNATURE_BYTES], signed[-_SIGNATURE_BYTES:]
        if not hmac.compare_digest(signature, self._sign(b"session", payload)):
            return None
        session = msgspec.msgpack.decode(payload, type=Session)
        if now_us >= session.expires_us or session.session_id in self._ended:
            return None
        return session

    def end(self, session: Session, now_us: int) -> None:
        """Sign out: the cookie is worthless from now on, whoever holds a copy."""
        if len(self._ended) >= SESSIONS_ENDED_MAX:
            self._ended = {key: until for key, until in self._ended.items() if until > now_us}
        if len(self._ended) >= SESSIONS_ENDED_MAX:
            self._ended.pop(next(iter(self._ended)))
        self._ended[session.session_id] = session.expires_us

    def form_token(self, cookie: str) -> str:
        """The token that a form posted with this cookie must carry."""
        return self._sign(b"form", cookie.encode("utf-8", "surrogatepass")).hex()

    def form_token_matches(self, cookie: str, token: str) -> bool:
        """Whether a posted token belongs to the cookie that came with it."""
        return bool(cookie) and hmac.compare_digest(
            self.form_token(cookie).encode(), token.encode("utf-8", "surrogatepass")
        )

    def open_link(self, key_id: str, now_us: int) -> str:
        """A token that signs in as this key, once, within fifteen minutes."""
        self._links = {key: link for key, link in self._links.items() if link[1] > now_us}
        if len(self._links) >= LINKS_MAX:
            self._links.pop(next(iter(self._links)))
        token = secrets.token_urlsafe(32)
        self._links[_digest(token)] = (key_id, now_us + LINK_SECONDS * 1_000_000)
        return token

    def use_link(self, token: str, now_us: int) -> str | None:
        """The key that a link signs in as; None where it is unknown, used or too old."""
        key_id, until_us = self._links.pop(_digest(token), ("", 0))
        return key_id if now_us < until_us else None

    def _sign(self, purpose: bytes, payload: bytes) -> bytes:
        return hmac.digest(self._secret, purpose + b"\0" + payload, hashlib.sha256)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
