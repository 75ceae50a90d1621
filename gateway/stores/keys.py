"""API keys and admin keys: shown once, stored as a keyed digest.

A key is ``th_`` or ``tha_`` and 256 random bits. At that size no slow hash is needed; the digest
is HMAC-SHA-256 under a pepper that lives in its own file, so a copied database opens no door.
Knows SQLite and digests. Does not know HTTP.
"""

import contextlib
import hashlib
import hmac
import os
import secrets
import sqlite3
import stat
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import structs

from gateway.errors import StateUnwritable
from gateway.private_files import private_file

Kind = Literal["api", "admin"]
Role = Literal["viewer", "finance", "operator", "admin"]

ROLES: tuple[Role, ...] = ("viewer", "finance", "operator", "admin")
_PREFIX: dict[Kind, str] = {"api": "th_", "admin": "tha_"}
_SECRET_LENGTH = 43  # 256 bits in URL-safe base 64
_PEPPER_BYTES = 32
_RECENT_MAX = 10_000

_SCHEMA = """
CREATE TABLE IF NOT EXISTS access_key (
  id TEXT PRIMARY KEY,
  digest TEXT NOT NULL UNIQUE,
  kind TEXT NOT NULL CHECK (kind IN ('api', 'admin')),
  tenant_id TEXT,
  project_id TEXT NOT NULL,
  role TEXT,
  name TEXT NOT NULL,
  created_us INTEGER NOT NULL,
  expires_us INTEGER,
  revoked_us INTEGER,
  CHECK (kind = 'api' AND tenant_id IS NOT NULL AND role IS NULL
      OR kind = 'admin' AND role IS NOT NULL)
) STRICT;
CREATE TABLE IF NOT EXISTS departed_tenant (
  tenant_id TEXT PRIMARY KEY,
  since_us INTEGER NOT NULL
) STRICT;
"""


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is known about a key. The key itself is not."""

    id: str
    kind: Kind
    tenant_id: str | None  # of an admin key: None sees every tenant
    project_id: str = "default"
    role: Role | None = None
    name: str = ""
    created_us: int
    expires_us: int | None = None
    revoked_us: int | None = None
    tags: dict[str, str] = {}

    def usable(self, now_us: int) -> bool:
        """Neither revoked nor expired."""
        return self.revoked_us is None and (self.expires_us is None or now_us < self.expires_us)


class KeyStore:
    """Keys made at run time, in SQLite, with every live digest in memory.

    Looking one up is a dictionary access by its HMAC: no comparison depends on the secret. Of keys
    that were used since the last change the HMAC is remembered: whoever has one knows it already.
    """

    def __init__(self, path: Path, pepper: bytes) -> None:
        self._pepper = pepper
        self._lock = threading.Lock()
        try:
            self._database = sqlite3.connect(
                private_file(path), check_same_thread=False, isolation_level=None
            )
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.executescript(_SCHEMA)
        except sqlite3.Error as error:
            raise type(error)(f"{path} cannot be used: {error}") from None
        self._by_digest: dict[str, KeyRecord] = {}
        self._denied: frozenset[str] = frozenset()
        self._static: dict[str, KeyRecord] = {}
        self._recent: dict[str, KeyRecord] = {}  # by the keys themselves; anew with every change
        self._unsaved: dict[str, int] = {}  # keys revoked here and not on disk: id, when
        self._tenant_secrets: dict[str, bytes] = {}  # of tenants that the policy has named
        self.changes = 0  # of this store's own doing
        self._version = -1  # of the file, as far as others have changed it
        self.on_change: Callable[[], object] = int  # for whoever tells other processes
        self.reload()

    def create_api(
        self,
        tenant_id: str,
        project_id: str,
        name: str,
        expires_us: int | None = None,
        *,
        now_us: int,
    ) -> tuple[KeyRecord, str]:
        """A new key for ``/v1``; the second value is the only time its text is seen."""
        return self._create("api", tenant_id, project_id, None, name, expires_us, now_us)

    def create_admin(
        self,
        role: Role,
        tenant_id: str | None,
        name: str,
        expires_us: int | None = None,
        *,
        now_us: int,
    ) -> tuple[KeyRecord, str]:
        """A new key for the admin port; with a tenant it sees that tenant only."""
        if role not in ROLES:
            raise ValueError(f"no role {role!r}; the roles are {', '.join(ROLES)}")
        return self._create("admin", tenant_id, "default", role, name, expires_us, now_us)

    def add_admin(self, token: str, name: str, *, now_us: int) -> KeyRecord:
        """Take a key that was made elsewhere as an admin key. Raises ValueError if it is none."""
        check_shape(token, "admin")
        record, _ = self._create("admin", None, "default", "admin", name, None, now_us, token)
        return record

    def list(self, kind: Kind | None = None) -> list[KeyRecord]:
        """Every key made at run time, revoked ones too, oldest first."""
        with self._lock:
            rows = self._database.execute(_SELECT + " ORDER BY created_us, id").fetchall()
        records = [self._standing(_record(row)) for row in rows]
        return [record for record in records if kind is None or record.kind == kind]

    def revoke(self, key_id: str, *, now_us: int) -> bool:
        """Revoke at once; False if there is no such live key.

        Where the disk takes no writes the key is refused all the same, by this process and those
        it tells, and ``unsaved`` says that it is not kept yet.
        """
        return self._revoke(lambda record: record.id == key_id, now_us) == 1

    def revoke_tenant(self, tenant_id: str, *, now_us: int) -> int:
        """Revoke every live key of a tenant at once, those of its admins too; how many."""
        return self._revoke(lambda record: record.tenant_id == tenant_id, now_us)

    def tenants(self) -> set[str]:
        """The tenants that have a key which is not revoked."""
        return {record.tenant_id for record in self._by_digest.values() if record.tenant_id}

    def departed(self) -> dict[str, int]:
        """Since when each tenant that had left the policy has been gone, in microseconds."""
        with self._lock:
            return dict(self._database.execute("SELECT tenant_id, since_us FROM departed_tenant"))

    def note_departure(self, tenant_id: str, since_us: int | None) -> None:
        """Note that a tenant has left the policy; None: it is there again, or forgotten."""
        with self._lock:
            self._database.execute("DELETE FROM departed_tenant WHERE tenant_id = ?", (tenant_id,))
            if since_us is not None:
                self._database.execute(
                    "INSERT INTO departed_tenant VALUES (?, ?)", (tenant_id, since_us)
                )

    def _revoke(self, doomed: Callable[[KeyRecord], bool], now_us: int) -> int:
        with contextlib.suppress(sqlite3.Error):
            self.refresh()  # a command may have made one in the file a moment ago
        with self._lock:
            ids = [record.id for record in self._by_digest.values() if doomed(record)]
            self._unsaved |= dict.fromkeys(ids, now_us)
            self._deny(self._unsaved)
        if ids:
            with contextlib.suppress(sqlite3.Error):
                self.save()
            self._changed()
        return len(ids)

    def save(self) -> None:
        """Keep what could not be kept so far. Raises sqlite3.Error where that fails again."""
        with self._lock:
            for key_id, revoked_us in tuple(self._unsaved.items()):
                self._database.execute(
                    "UPDATE access_key SET revoked_us = ? WHERE id = ? AND revoked_us IS NULL",
                    (revoked_us, key_id),
                )
                del self._unsaved[key_id]

    @property
    def unsaved(self) -> frozenset[str]:
        """The keys whose revocation would not survive a restart."""
        with self._lock:
            return frozenset(self._unsaved)

    def deny(self, key_ids: Iterable[str]) -> None:
        """Refuse these keys from now on, whatever the file says."""
        with self._lock:
            self._deny(key_ids)

    def _deny(self, key_ids: Iterable[str]) -> None:
        self._denied = frozenset(key_ids)
        self._by_digest = {
            digest: record
            for digest, record in self._by_digest.items()
            if record.id not in self._denied
        }
        self._recent = {}

    def reload(self) -> None:
        """Read the keys again: another process has changed them."""
        with self._lock:
            rows = self._database.execute(_SELECT + " WHERE revoked_us IS NULL").fetchall()
            self._by_digest = {row[-1]: _record(row) for row in rows if row[0] not in self._denied}
            self._recent = {}

    def refresh(self) -> None:
        """Read the keys again where another process has changed them; cheap where none has."""
        with self._lock:
            (version,) = self._database.execute("PRAGMA data_version").fetchone()
        if version != self._version:
            self._version = version  # first: what changes while we read is read again
            self.reload()

    def authenticate(self, token: str, kind: Kind, now_us: int) -> KeyRecord | None:
        """The record of a live key of this kind, or None. Never raises, whatever the text."""
        record = self._recent.get(token)
        if record is None:
            if not _has_shape(token, kind):
                return None
            recent, digest = self._recent, self.digest(token)
            record = self._by_digest.get(digest) or self._static.get(digest)
            if record is None:
                return None
            if len(recent) < _RECENT_MAX:
                recent[token] = record  # into the dictionary that was there before we looked
        return record if record.kind == kind and record.usable(now_us) else None

    def digest(self, token: str) -> str:
        """Hex HMAC-SHA-256 of a key under the pepper: what YAML and the database hold."""
        return hmac.digest(self._pepper, token.encode("utf-8", "surrogatepass"), "sha256").hex()

    def replace_static(self, records: dict[str, KeyRecord]) -> None:
        """The read-only keys of the policy now in force, by digest."""
        self._static = records
        self._recent = {}

    def tenant_secret(self, tenant_id: str) -> bytes:
        """A secret of this tenant alone, for keyed hashes of its cache entries; 32 bytes."""
        secret = self._tenant_secrets.get(tenant_id)
        if secret is None:
            secret = hmac.digest(self._pepper, b"tenant\0" + tenant_id.encode(), hashlib.sha256)
            self._tenant_secrets[tenant_id] = secret
        return secret

    def derive(self, purpose: str) -> bytes:
        """A secret for one named purpose, such as signing cookies; 32 bytes."""
        return hmac.digest(self._pepper, b"purpose\0" + purpose.encode(), hashlib.sha256)

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def _create(
        self,
        kind: Kind,
        tenant_id: str | None,
        project_id: str,
        role: Role | None,
        name: str,
        expires_us: int | None,
        now_us: int,
        token: str = "",
    ) -> tuple[KeyRecord, str]:
        token = token or new_token(kind)
        record = KeyRecord(
            id="key_" + secrets.token_hex(6),
            kind=kind,
            tenant_id=tenant_id,
            project_id=project_id,
            role=role,
            name=name,
            created_us=now_us,
            expires_us=expires_us,
        )
        digest = self.digest(token)
        with self._lock, _kept():
            self._database.execute(
                "INSERT INTO access_key (id, digest, kind, tenant_id, project_id, role, name,"
                " created_us, expires_us) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (record.id, digest, kind, tenant_id, project_id, role, name, now_us, expires_us),
            )
            self._by_digest = {**self._by_digest, digest: record}
        self._changed()
        return record, token

    def _standing(self, record: KeyRecord) -> KeyRecord:
        revoked_us = self._unsaved.get(record.id)
        return record if revoked_us is None else structs.replace(record, revoked_us=revoked_us)

    def _changed(self) -> None:
        self.changes += 1
        self.on_change()


@contextlib.contextmanager
def _kept() -> Iterator[None]:
    """Translate a failed write into the error that a client is told."""
    try:
        yield
    except sqlite3.Error as error:
        raise StateUnwritable(
            f"The key is not made: the state folder cannot be written ({error}). Free space on its"
            " disk and try again; keys can be revoked meanwhile."
        ) from None


_SELECT = (
    "SELECT id, kind, tenant_id, project_id, role, name, created_us, expires_us, revoked_us,"
    " digest FROM access_key"
)


def _record(row: tuple[object, ...]) -> KeyRecord:
    names = KeyRecord.__struct_fields__[: len(row) - 1]
    return msgspec.convert(dict(zip(names, row[:-1], strict=True)), KeyRecord)


def new_token(kind: Kind) -> str:
    """The text of a new key."""
    return _PREFIX[kind] + secrets.token_urlsafe(32)


def check_shape(token: str, kind: Kind) -> None:
    """Raise ValueError where a text cannot be a key of this kind; it does not show the text."""
    if not _has_shape(token, kind):
        raise ValueError(
            f"a key of this kind is {_PREFIX[kind]} and {_SECRET_LENGTH} letters, digits, _ and -"
        )


def _has_shape(token: str, kind: Kind) -> bool:
    prefix = _PREFIX[kind]
    return len(token) == len(prefix) + _SECRET_LENGTH and token.startswith(prefix)


def load_pepper(path: Path) -> bytes:
    """Read the pepper, making it on first use; 32 bytes.

    Raises PermissionError if others may read or write it, RuntimeError if it is not whole.
    """
    if not path.exists():
        _make_pepper(path)
    mode = path.stat().st_mode
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise PermissionError(
            f"{path} is open to others; every key depends on it: chmod 600 {path}"
        )
    pepper = path.read_bytes()
    if len(pepper) != _PEPPER_BYTES:
        raise RuntimeError(
            f"{path} has {len(pepper)} bytes and must have {_PEPPER_BYTES}: restore it from a"
            " backup; without it no key made so far is known"
        )
    return pepper


def _make_pepper(path: Path) -> None:
    """Whole or not at all, and never over another's: linked into place once it is on disk."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name) as file:  # mode 0600
        file.write(secrets.token_bytes(_PEPPER_BYTES))
        file.flush()
        os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(file.name, path)
