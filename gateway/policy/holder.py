"""The policy in force, and how another takes its place: whole, checked, or not at all.

A broken file changes nothing: the last good policy stays, the reason is kept, and a restart with a
broken file begins with the last good version from disk. Knows files and times; no request.
"""

import contextlib
import hashlib
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from gateway.errors import PolicyError
from gateway.policy.load import FILE_BYTES_MAX, SourceFile, compile_files, policy_files, read_files
from gateway.policy.snapshot import Policy
from gateway.policy.versions import Versions

_log = logging.getLogger("tollhouse.policy")


class Adopted(msgspec.Struct, frozen=True):
    """The policy that was put in force last: its serial number and its sources."""

    serial: int
    files: tuple[SourceFile, ...]


class PolicyHolder:
    """Holds ``current``; readers take the reference once per request."""

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        state_dir: Path,
        settle_seconds: float,
        now_us: Callable[[], int],
        environ: Mapping[str, str] = os.environ,
        strict: bool = False,
        file_bytes_max: int = FILE_BYTES_MAX,
    ) -> None:
        """Load the files, or the last good version. Raises PolicyError where there is neither.

        ``strict``: raise for broken files even where there is a last good version.
        """
        self._paths = tuple(paths)
        self._environ = environ
        self._settle_seconds = settle_seconds
        self._now_us = now_us
        self._versions = Versions(state_dir)
        self._subscribers: list[Callable[[Policy], None]] = []
        self._lock = threading.Lock()
        self._strict = strict
        self._file_bytes_max = file_bytes_max
        self._seen = self._fingerprint()
        self._changed_at: float | None = None
        self.last_error: tuple[str, ...] | None = None
        self.last_tried_us = self.last_success_us = now_us()
        self.on_adopted: Callable[[], object] = int  # for whoever tells other processes
        self.current, files = self._first()
        self.adopted = Adopted(1, tuple(files))
        self._log_warnings(self.current)

    def subscribe(self, callback: Callable[[Policy], None]) -> None:
        """Call ``callback`` with each policy that comes into force from now on."""
        self._subscribers.append(callback)

    def poll(self, now: float) -> None:
        """Look for changed files; load them once they have been at rest. now: monotonic seconds."""
        seen = self._fingerprint()
        if seen != self._seen:
            self._seen, self._changed_at = seen, now
        elif self._changed_at is not None and now - self._changed_at >= self._settle_seconds:
            self._changed_at = None
            history = self._versions.history()
            # Files that were only touched, or mounted anew, do not end a rollback.
            if history.pinned is None or history.pinned_over != self._contents():
                self.try_reload()

    def try_reload(self) -> None:
        """Load the files and put them in force, or log why not."""
        try:
            self.reload()
        except PolicyError as error:
            _log.error("the policy files are not acceptable; %s stays in force:\n%s",
                       self.current.version, error)  # fmt: skip

    def reload(self) -> Policy:
        """Load the files and put them in force. Raises PolicyError and changes nothing."""
        with self._lock:
            self.last_tried_us = self._now_us()
            try:
                files = self._read()
                policy = self._compile(files)
            except PolicyError as error:
                self.last_error = error.problems
                raise
            self._adopt(policy, files)
            return policy

    def rollback(self, version: str | None) -> Policy:
        """Put an earlier version in force, the last but one by default, and keep it there until
        the files change. Raises KeyError for an unknown one, PolicyError if it no longer compiles.
        """
        with self._lock:
            if version is None:
                version = self._previous()
            files = self._versions.files_of(version)
            policy = self._compile(files)
            self._adopt(policy, files, pinned_over=self._contents())
            return policy

    @property
    def pinned(self) -> str | None:
        """The version that a rollback keeps in force; None: the files are."""
        return self._versions.history().pinned

    def versions(self) -> Sequence[str]:
        """Versions on record, newest first, each once."""
        entries = self._versions.history().entries
        return list(dict.fromkeys(entry.version for entry in reversed(entries)))

    def _first(self) -> tuple[Policy, Sequence[SourceFile]]:
        history = self._versions.history()
        if history.pinned is not None and history.pinned_over == self._contents():
            with contextlib.suppress(KeyError, PolicyError):  # gone, or of an older gateway
                files = self._versions.files_of(history.pinned)
                policy = self._compile(files)
                self.last_error = self._problems_of_files()
                return policy, files
        try:
            files = self._read()
            policy = self._compile(files)
        except PolicyError as error:
            if self._strict:
                raise
            self.last_error = error.problems
            return self._last_good(error)
        self._versions.remember(policy.version, files, self._now_us())
        return policy, files

    def _problems_of_files(self) -> tuple[str, ...] | None:
        """What is wrong with the files that a rollback overrides; None: nothing."""
        try:
            self._compile(self._read())
        except PolicyError as error:
            return error.problems
        return None

    def _last_good(self, error: PolicyError) -> tuple[Policy, Sequence[SourceFile]]:
        for version in self.versions():
            try:
                files = self._versions.files_of(version)
                policy = self._compile(files)
            except (PolicyError, KeyError):
                continue
            _log.error("the policy files are not acceptable; beginning with the last good version"
                       " %s:\n%s", version, error)  # fmt: skip
            return policy, files
        raise error

    def _previous(self) -> str:
        for version in self.versions():
            if version != self.current.version:
                return version
        raise KeyError("there is no earlier version")

    def _read(self) -> tuple[SourceFile, ...]:
        return read_files(self._paths, self._file_bytes_max)

    def _compile(self, files: Sequence[SourceFile]) -> Policy:
        return compile_files(files, environ=self._environ, now_us=self._now_us())

    def _adopt(
        self, policy: Policy, files: Sequence[SourceFile], *, pinned_over: str | None = None
    ) -> None:
        for callback in self._subscribers:
            callback(policy)
        # After them, so that a request never sees a policy whose prices and budgets are not known.
        self.current = policy
        self.adopted = Adopted(self.adopted.serial + 1, tuple(files))
        self.last_success_us = self._now_us()
        if pinned_over is None:
            self.last_error = None  # of the files; a rollback says nothing about them
        _log.info("policy %s is in force", policy.version)
        self._log_warnings(policy)
        try:
            self._versions.remember(
                policy.version, files, self.last_success_us, pinned_over=pinned_over
            )
        except OSError as error:  # a full disk keeps no policy from coming into force
            _log.error("policy %s is not on record, a restart may not find it: %s",
                       policy.version, error)  # fmt: skip
        self.on_adopted()

    def _log_warnings(self, policy: Policy) -> None:
        for warning in policy.warnings:
            _log.warning("%s", warning)

    def _contents(self) -> str:
        """Changes whenever the text of a file does, and with nothing else."""
        digest = hashlib.sha256()
        try:
            for file in self._read():
                for part in (file.path.name.encode(), file.content):
                    digest.update(len(part).to_bytes(8, "big") + part)
        except PolicyError as error:
            return f"unreadable: {error}"
        return digest.hexdigest()

    def _fingerprint(self) -> str:
        """Changes whenever a file does, by whatever means, a swapped symbolic link included."""
        parts: list[str] = []
        for path in self._paths:
            try:
                for file in policy_files(path):
                    status = file.stat()
                    parts.append(f"{file}|{os.path.realpath(file)}|{status.st_mtime_ns}|"
                                 f"{status.st_size}|{status.st_ino}")  # fmt: skip
            except OSError as error:
                parts.append(f"{path}|{error.errno}")
        return "\n".join(parts)
