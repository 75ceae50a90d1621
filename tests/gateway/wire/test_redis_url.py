"""Redis URLs: what they name, and that a wrong one is refused in words that leak nothing."""

import pytest

from gateway.wire.redis_url import RedisAddress, parse_redis_url


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://cache", RedisAddress(host="cache")),
        ("redis://cache:7000/3", RedisAddress(host="cache", port=7000, database=3)),
        ("redis://[::1]:7000/", RedisAddress(host="::1", port=7000)),
        ("redis://:p%40ss%2F@cache", RedisAddress(host="cache", password="p@ss/")),
        ("rediss://u:p@cache", RedisAddress(host="cache", tls=True, user="u", password="p")),
        ("unix:///run/redis.sock", RedisAddress(path="/run/redis.sock")),
        (
            "unix://u:p@/run/my%20redis.sock?db=2",
            RedisAddress(path="/run/my redis.sock", user="u", password="p", database=2),
        ),
    ],
)
def test_a_url_names_place_and_entrance(url: str, address: RedisAddress) -> None:
    """Hosts, IPv6, sockets, TLS, users, databases and percent-encoded passwords are understood."""
    assert parse_redis_url(url) == address


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://cache", "begins with redis://"),
        ("cache:6379", "begins with redis://"),
        ("redis://", "host is missing"),
        ("redis://:s3cret@cache:port", "no URL"),
        ("redis://:s3cret@cache/zero", "database is a number"),
        ("redis://cache/-1", "database is a number"),
        ("redis://cache?ssl=no", "no '?'"),
        ("redis://:s3#cret@cache", "no URL"),
        ("redis://cache/0#s3cret", "%23"),
        ("unix://run/redis.sock", "absolute path"),
        ("unix:///run/redis.sock?password=s3cret", "only thing behind"),
    ],
)
def test_a_wrong_url_is_refused_in_words_without_its_secret(url: str, says: str) -> None:
    """The message says how to mend the URL, and a password in it reaches no log."""
    with pytest.raises(ValueError) as refused:
        parse_redis_url(url)
    assert says in str(refused.value)
    assert "s3" not in str(refused.value)


def test_an_address_shows_no_password() -> None:
    """Its repr, which ends up in logs and tracebacks, is host and port alone."""
    shown = repr(parse_redis_url("redis://u:s3cret@cache:7000"))
    assert shown == "RedisAddress(cache:7000)"
