"""API and admin keys: who gets in, who does not, and what a thief of the file would hold."""

import os
import random
import re
import sqlite3
import string
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.stores.keys import KeyRecord, KeyStore, load_pepper

NOW_US = 1_795_168_800_000_000
PEPPER = bytes(range(32))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[KeyStore]:
    opened = KeyStore(tmp_path / "keys.sqlite", PEPPER)
    yield opened
    opened.close()


def written(folder: Path) -> bytes:
    """Every byte of the database and its companions."""
    return b"".join(path.read_bytes() for path in folder.iterdir())


def test_a_new_key_works_at_once_and_names_tenant_and_project(store: KeyStore) -> None:
    """The 43 characters after th_ are 256 bits, and every request is booked to their owner."""
    record, token = store.create_api("acme", "chat", "ci", now_us=NOW_US)
    assert re.fullmatch(r"th_[A-Za-z0-9_-]{43}", token)
    found = store.authenticate(token, "api", NOW_US)
    assert found == record
    assert (record.tenant_id, record.project_id, record.name) == ("acme", "chat", "ci")


def test_a_key_is_shown_once_and_only_its_digest_is_kept(store: KeyStore, tmp_path: Path) -> None:
    """A thief of the state folder's database finds neither the key nor the pepper in it."""
    record, token = store.create_api("acme", "chat", "ci", now_us=NOW_US)
    assert token not in repr(record)
    assert token not in repr(store.list())
    kept = written(tmp_path)
    assert token.encode() not in kept
    assert token.removeprefix("th_").encode() not in kept
    assert PEPPER not in kept
    assert store.digest(token).encode() in kept


def test_a_copied_database_opens_no_door_without_its_pepper(
    store: KeyStore, tmp_path: Path
) -> None:
    """With another pepper the real key has another digest and is unknown."""
    _, token = store.create_api("acme", "chat", "ci", now_us=NOW_US)
    store.close()
    thief = KeyStore(tmp_path / "keys.sqlite", bytes(32))
    assert thief.authenticate(token, "api", NOW_US) is None
    assert thief.digest(token) != store.digest(token)
    thief.close()


def test_keys_and_their_revocations_outlive_the_process(store: KeyStore, tmp_path: Path) -> None:
    """Reopened, the store still knows the good key, its expiry and the one that was revoked."""
    kept, kept_token = store.create_api("acme", "chat", "kept", NOW_US + 10, now_us=NOW_US)
    gone, gone_token = store.create_admin("finance", "acme", "gone", now_us=NOW_US + 1)
    assert store.revoke(gone.id, now_us=NOW_US + 2)
    store.close()
    again = KeyStore(tmp_path / "keys.sqlite", PEPPER)
    assert again.authenticate(kept_token, "api", NOW_US) == kept
    assert again.authenticate(kept_token, "api", NOW_US + 10) is None
    assert again.authenticate(gone_token, "admin", NOW_US) is None
    assert [(key.name, key.revoked_us) for key in again.list()] == [
        ("kept", None),
        ("gone", NOW_US + 2),
    ]
    again.close()


def test_a_revoked_key_is_refused_from_the_next_moment_on(store: KeyStore) -> None:
    """Other keys go on working; revoking twice or an unknown id says that nothing was done."""
    record, token = store.create_api("acme", "chat", "ci", now_us=NOW_US)
    _, other = store.create_api("acme", "chat", "other", now_us=NOW_US)
    assert store.revoke(record.id, now_us=NOW_US)
    assert store.authenticate(token, "api", NOW_US) is None
    assert store.authenticate(other, "api", NOW_US) is not None
    assert not store.revoke(record.id, now_us=NOW_US), "it is revoked once"
    assert not store.revoke("key_unknown", now_us=NOW_US)


def test_what_another_process_has_changed_is_known_from_the_next_refresh_on(
    store: KeyStore, tmp_path: Path
) -> None:
    """Also of a key that has just been used."""
    store.refresh()
    other = KeyStore(tmp_path / "keys.sqlite", PEPPER)
    record, token = other.create_api("acme", "chat", "ci", now_us=NOW_US)
    store.refresh()
    assert store.authenticate(token, "api", NOW_US) == record
    other.revoke(record.id, now_us=NOW_US)
    store.refresh()
    assert store.authenticate(token, "api", NOW_US) is None
    other.close()


def test_a_key_ends_at_the_microsecond_of_its_expiry(store: KeyStore) -> None:
    """At NOW + 4 it opens, at NOW + 5 it does not: the end itself is excluded."""
    _, token = store.create_api("acme", "chat", "ci", expires_us=NOW_US + 5, now_us=NOW_US)
    assert store.authenticate(token, "api", NOW_US + 4) is not None
    assert store.authenticate(token, "api", NOW_US + 5) is None


def test_the_two_kinds_never_open_each_other_s_door(store: KeyStore) -> None:
    """An admin key cannot spend, an API key cannot administer, not even with its prefix swapped."""
    _, api = store.create_api("acme", "chat", "ci", now_us=NOW_US)
    _, admin = store.create_admin("admin", None, "root", now_us=NOW_US)
    assert admin.startswith("tha_")
    assert store.authenticate(api, "admin", NOW_US) is None
    assert store.authenticate(admin, "api", NOW_US) is None
    assert store.authenticate(admin, "admin", NOW_US) is not None
    secret = admin.removeprefix("tha_")
    assert store.authenticate("th_" + secret, "api", NOW_US) is None
    assert [key.kind for key in store.list("api")] == ["api"]
    assert [key.kind for key in store.list("admin")] == ["admin"]


def test_a_record_of_the_wrong_kind_is_refused_even_under_the_right_digest(
    store: KeyStore,
) -> None:
    """A policy file must not smuggle in an API key that opens the admin port."""
    token = "tha_" + "A" * 43
    record = KeyRecord(id="k", kind="api", tenant_id="acme", created_us=0)
    store.replace_static({store.digest(token): record})
    assert store.authenticate(token, "admin", NOW_US) is None


def test_keys_of_the_policy_count_until_the_policy_drops_them(store: KeyStore) -> None:
    """Their expiry holds; the admin interface neither lists nor revokes them."""
    token = "th_" + "B" * 43
    record = KeyRecord(
        id="yaml", kind="api", tenant_id="acme", created_us=0, expires_us=NOW_US + 1,
        tags={"team": "x"},
    )  # fmt: skip
    store.replace_static({store.digest(token): record})
    assert store.authenticate(token, "api", NOW_US) == record
    assert store.authenticate(token, "api", NOW_US + 1) is None
    assert store.list() == [], "made elsewhere, so not ours to list or revoke"
    assert not store.revoke("yaml", now_us=NOW_US)
    store.replace_static({})
    assert store.authenticate(token, "api", NOW_US) is None


def test_an_unknown_role_is_refused(store: KeyStore) -> None:
    """A mistyped role gives no key at all, and the error lists the four that exist."""
    with pytest.raises(ValueError, match="the roles are viewer, finance, operator, admin"):
        store.create_admin("root", None, "x", now_us=NOW_US)  # type: ignore[arg-type] # on purpose


def test_the_database_itself_refuses_a_key_without_its_tenant_or_role(
    store: KeyStore, tmp_path: Path
) -> None:
    """Even a row written by hand cannot be a key that belongs to no tenant or has no rights."""
    database = sqlite3.connect(tmp_path / "keys.sqlite")
    insert = (
        "INSERT INTO access_key (id, digest, kind, tenant_id, project_id, role, name, created_us)"
        " VALUES ('k', 'd', ?, ?, 'p', ?, 'n', 0)"
    )
    for row in (("api", None, None), ("api", "t", "admin"), ("admin", None, None), ("x", "t", "r")):
        with pytest.raises(sqlite3.IntegrityError):
            database.execute(insert, row)
    database.close()


HOSTILE = [
    "", " ", "th_", "tha_", "th_" + "A" * 42, "th_" + "A" * 44, "TH_" + "A" * 43, "th_" + "\0" * 43,
    "th_' OR '1'='1", "' OR 1=1 --", "th_\"; DROP TABLE access_key; --".ljust(46, "x"),
    "th_" + "'" * 43, "th_" + "%" * 43, "th_" + "_" * 43, "th_" + "\ud800" * 43,
    "th_" + "\udfff" * 43, "th_" + "é" * 43, "th_" + "\U0001f511" * 43, "th_" + "٣" * 43,
    "th_" + "A" * 10_000_000, "\n".join(["th_" + "A" * 20] * 2), "Bearer th_" + "A" * 36,
]  # fmt: skip


def hostile_tokens(real: str) -> Iterator[str]:
    """50,000 tokens near and far from a real one."""
    yield from HOSTILE
    rng = random.Random(42_208)
    alphabet = string.printable + "\0\ud800\udfffé٣'\"%_;-\\"
    secret = string.ascii_letters + string.digits + "-_"
    for number in range(50_000 - len(HOSTILE)):
        match number % 4:
            case 0:
                yield "th_" + "".join(rng.choices(secret, k=43))
            case 1:
                yield "".join(rng.choices(alphabet, k=rng.randrange(60)))
            case 2:  # the real one, one character off
                at = rng.randrange(len(real))
                other = rng.choice(alphabet)
                yield real[:at] + (other if other != real[at] else "!") + real[at + 1 :]
            case _:  # the real one, cut or padded
                yield rng.choice((real[: rng.randrange(46)], real + rng.choice(alphabet), real * 2))


def test_fifty_thousand_hostile_tokens_neither_match_nor_raise(
    store: KeyStore, tmp_path: Path
) -> None:
    """Injections, odd Unicode, 10 MB and near misses of a real key all fail quietly."""
    _, real = store.create_api("acme", "chat", "ci", now_us=NOW_US)
    store.create_admin("admin", None, "root", now_us=NOW_US)
    before = store.list()
    for token in hostile_tokens(real):
        assert store.authenticate(token, "api", NOW_US) is None, repr(token[:100])
        assert store.authenticate(token, "admin", NOW_US) is None, repr(token[:100])
    assert store.list() == before
    assert store.authenticate(real, "api", NOW_US) is not None


def test_hostile_names_and_ids_are_data_to_the_database(store: KeyStore) -> None:
    """SQL in a tenant's or key's name is stored as text and drops no table."""
    for text in ("'; DROP TABLE access_key; --", '"', "\0", "%", "é\U0001f511"):
        record, token = store.create_api(text or "t", text, text, now_us=NOW_US)
        assert store.authenticate(token, "api", NOW_US) == record
        assert not store.revoke(text, now_us=NOW_US)
    assert len(store.list()) == 5


def test_keys_made_and_revoked_by_many_threads_are_neither_lost_nor_left(store: KeyStore) -> None:
    """Of a hundred keys from four threads, each kept one opens and each revoked one does not."""
    kept: list[str] = []
    gone: list[str] = []

    def work() -> None:
        for number in range(25):
            record, token = store.create_api("acme", "p", "n", now_us=NOW_US)
            if number % 2:
                store.revoke(record.id, now_us=NOW_US)
                gone.append(token)
            else:
                kept.append(token)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(store.authenticate(token, "api", NOW_US) for token in kept)
    assert not any(store.authenticate(token, "api", NOW_US) for token in gone)
    assert len({key.id for key in store.list()}) == 100


def test_secrets_derived_for_tenants_and_purposes_all_differ(store: KeyStore) -> None:
    """A tenant named like a purpose must not get its secret; each has 32 bytes of its own."""
    names = ["", "a", "b", "tenant", "purpose", "a\0b", "é"]
    derived = [store.tenant_secret(name) for name in names] + [store.derive(n) for n in names]
    assert len(set(derived)) == len(derived)
    assert all(len(secret) == 32 for secret in derived)


def test_the_database_is_for_its_owner_alone(store: KeyStore, tmp_path: Path) -> None:
    """Other users of the machine can read neither the file nor its companions."""
    store.create_api("acme", "chat", "ci", now_us=NOW_US)
    for path in tmp_path.iterdir():
        assert path.stat().st_mode & 0o077 == 0, path.name


def test_the_pepper_is_made_once_whole_and_for_its_owner_alone(tmp_path: Path) -> None:
    """Mode 0600 holds with umask 0 as well, and no temporary file is left behind."""
    path = tmp_path / "pepper"
    mask = os.umask(0)
    try:
        pepper = load_pepper(path)
    finally:
        os.umask(mask)
    assert len(pepper) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_pepper(path) == pepper
    assert load_pepper(tmp_path / "other") != pepper
    assert {file.name for file in tmp_path.iterdir()} == {"pepper", "other"}


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o602, 0o620, 0o777])
def test_a_pepper_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    """One bit for group or others is enough, and the message says chmod 600."""
    path = tmp_path / "pepper"
    load_pepper(path)
    path.chmod(mode)
    with pytest.raises(PermissionError, match="chmod 600"):
        load_pepper(path)


@pytest.mark.parametrize("content", [b"", b"x" * 31, b"x" * 33])
def test_a_pepper_that_is_not_whole_is_refused(tmp_path: Path, content: bytes) -> None:
    """An empty one would make every digest a public function of its key."""
    path = tmp_path / "pepper"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(RuntimeError, match="must have 32"):
        load_pepper(path)


def test_two_that_start_at_once_agree_on_one_pepper(tmp_path: Path) -> None:
    """With two peppers, some of eight workers would refuse keys that the others made."""
    path = tmp_path / "pepper"
    start = threading.Barrier(8)
    found: list[bytes] = []

    def load() -> None:
        start.wait()
        found.append(load_pepper(path))

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
