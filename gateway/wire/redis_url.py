"""Where a Redis is and how to enter it, from one URL. Opens nothing.

redis://[[user]:password@]host[:6379][/database]     plain TCP
rediss://…                                           the same over TLS
unix://[[user]:password@]/path/to/socket[?db=1]      a socket on this machine
"""

from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import msgspec

_PORT = 6379


class RedisAddress(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed URL. Its ``repr`` leaves the password out."""

    host: str = ""
    port: int = _PORT
    path: str = ""  # of a Unix socket; empty: TCP
    tls: bool = False
    user: str = ""
    password: str = ""
    database: int = 0

    def __repr__(self) -> str:
        return f"RedisAddress({self.name})"

    @property
    def name(self) -> str:
        """Host and port, or the path: what a log line may say."""
        return self.path or f"{self.host}:{self.port}"


def parse_redis_url(url: str) -> RedisAddress:
    """Read a URL. Raises ValueError with a sentence that names no secret."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError("this is no URL; write redis://host:6379/0") from None
    if parts.fragment:
        raise ValueError("a Redis URL has no '#'; in a password write it as %23")
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    if parts.scheme == "unix":
        if parts.hostname or not parts.path.startswith("/"):
            raise ValueError("a Unix socket is an absolute path: unix:///run/redis/redis.sock")
        return RedisAddress(
            path=unquote(parts.path), user=user, password=password, database=_query_database(parts)
        )
    if parts.scheme not in ("redis", "rediss"):
        raise ValueError("a Redis URL begins with redis://, rediss:// (TLS) or unix://")
    if not parts.hostname:
        raise ValueError("the host is missing; write redis://host:6379/0")
    if parts.query:
        raise ValueError("a Redis URL over TCP has no '?'; the database is its path: /0")
    return RedisAddress(
        host=parts.hostname,
        port=_PORT if port is None else port,
        tls=parts.scheme == "rediss",
        user=user,
        password=password,
        database=_database(parts.path.removeprefix("/") or "0"),
    )


def _query_database(parts: SplitResult) -> int:
    known = dict(parse_qsl(parts.query, keep_blank_values=True))
    number = known.pop("db", "0")
    if known:
        raise ValueError("the only thing behind '?' is the database: unix:///path?db=1")
    return _database(number)


def _database(text: str) -> int:
    if not text.isdecimal() or len(text) > 6:
        raise ValueError("the database is a number: redis://host:6379/0")
    return int(text)
