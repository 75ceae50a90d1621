"""``tollhouse backup`` and ``restore``: a running gateway's state, whole, and nothing replaced."""

import io
import os
import shutil
import stat
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner, Result

from gateway.cli.backup import backup, restore
from gateway.ledger import Ledger, reports
from gateway.ledger.books import hold_state
from gateway.policy.load import SourceFile
from gateway.policy.switches import Switches
from gateway.policy.versions import Versions
from gateway.private_files import make_scratch
from gateway.stores.keys import KeyStore, load_pepper
from tests.gateway.ledger.books import PRICE, final, intent
from tests.gateway.running import ProviderThread, RunningGateway, running_gateway


def run(command: Callable[..., object], archive: Path, state_dir: Path) -> Result:
    return CliRunner().invoke(command, [str(archive), "--state-dir", str(state_dir)])  # type: ignore[arg-type]


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    """A state folder in use: an event in the ledger, one in the log alone, an attempt under way."""
    folder = tmp_path / "state"
    ledger = Ledger.open(folder, interval_seconds=3600)
    ledger.store.register_prices([PRICE])
    ledger.settle(final("booked"))
    ledger.shipper.ship()
    ledger.settle(final("in-the-log"))
    ledger.intend(intent("under-way"))
    keys = KeyStore(folder / "keys.sqlite", load_pepper(folder / "pepper"))
    for number in range(15):
        keys.create_api("acme", "default", f"key {number}", now_us=1)
    Switches(folder / "switches.json").throw("exact", None)
    Versions(folder / "policies").remember("abc123", [SourceFile(Path("p.yaml"), b"a: 1")], 1)
    yield folder
    keys.close()
    ledger.close()


def test_a_restored_folder_has_all_that_the_running_one_had(state: Path, tmp_path: Path) -> None:
    """Books and keys are written while they are copied; what was only in the log is booked by the
    next start, and what was under way is settled as after a crash.
    """
    archive, restored = tmp_path / "b.tar.gz", tmp_path / "restored"
    done = run(backup, archive, state)
    assert done.exit_code == 0, done.output
    assert "1 events, 15 keys, 1 policy versions" in done.output
    assert stat.S_IMODE(archive.stat().st_mode) == 0o600
    done = run(restore, archive, restored)
    assert done.exit_code == 0, done.output
    ledger = Ledger.open(restored)
    try:
        for request in ("booked", "in-the-log"):
            assert [row.state for row in reports.request(ledger.store, request)] == ["final"]
        assert len(reports.request(ledger.store, "under-way")) == 1
        assert ledger.store.verify() == []
    finally:
        ledger.close()
    keys = KeyStore(restored / "keys.sqlite", load_pepper(restored / "pepper"))
    assert len(keys.list()) == 15
    keys.close()
    assert Switches(restored / "switches.json").thrown("exact", 1)
    assert Versions(restored / "policies").files_of("abc123")[0].content == b"a: 1"


def test_nothing_that_exists_is_replaced(state: Path, tmp_path: Path) -> None:
    """Neither an archive, nor a folder with anything in it, nor the one of a running gateway."""
    archive = tmp_path / "b.tar.gz"
    run(backup, archive, state)
    before = archive.read_bytes()
    again = run(backup, archive, state)
    assert (again.exit_code, archive.read_bytes()) == (1, before)
    assert "never overwritten" in again.output
    running = run(restore, archive, state)
    assert running.exit_code == 1
    assert "A gateway runs on" in running.output
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").touch()
    refused = run(restore, archive, full)
    assert refused.exit_code == 1
    assert "is not empty" in refused.output
    assert [path.name for path in full.iterdir()] == ["notes.txt"]
    empty = tmp_path / "empty"
    empty.mkdir()
    lock = hold_state(empty)
    started = run(restore, archive, empty)
    os.close(lock)
    assert started.exit_code == 1
    assert "A gateway runs on" in started.output


def rewritten(source: Path, target: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """An archive with its members changed; None leaves one out."""
    with tarfile.open(source) as old, tarfile.open(target, "w:gz") as new:
        for info in old:
            file = old.extractfile(info)
            content = change(info.name, file.read() if file is not None else b"")
            if content is not None:
                info.size = len(content)
                new.addfile(info, io.BytesIO(content))
    return target


def with_member(source: Path, target: Path, member: tarfile.TarInfo) -> Path:
    """An archive with one more member."""
    rewritten(source, target, lambda _, content: content)
    plain = target.with_suffix(".tar")
    with tarfile.open(target) as old, tarfile.open(plain, "w") as new:
        for info in old:
            new.addfile(info, old.extractfile(info))
        new.addfile(member, io.BytesIO(b""))
    with tarfile.open(plain) as old, tarfile.open(target, "w:gz") as new:
        for info in old:
            new.addfile(info, old.extractfile(info) if info.isreg() else None)
    return target


def test_a_bad_archive_is_refused_in_one_sentence_and_leaves_the_folder_empty(
    state: Path, tmp_path: Path
) -> None:
    """Cut, changed or hostile, it writes no file, and the right archive still fits afterwards."""
    good = tmp_path / "good.tar.gz"
    run(backup, good, state)
    whole = good.read_bytes()
    link = tarfile.TarInfo("wal/link")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"

    def flipped(name: str, content: bytes) -> bytes:
        return content[:-1] + bytes([content[-1] ^ 1]) if name == "keys.sqlite" else content

    def without(name: str, content: bytes) -> bytes | None:
        return None if name == "pepper" else content

    def bare(content: bytes) -> Path:
        path = tmp_path / "bare.tar.gz"
        path.write_bytes(content)
        return path

    bad: dict[str, Callable[[], Path]] = {
        "absent": lambda: tmp_path / "nothing.tar.gz",
        "empty": lambda: bare(b""),
        "text": lambda: bare(b"hello"),
        "cut": lambda: bare(whole[: len(whole) // 2]),
        "changed": lambda: rewritten(good, tmp_path / "changed.tar.gz", flipped),
        "a file missing": lambda: rewritten(good, tmp_path / "missing.tar.gz", without),
        "a path outside": lambda: with_member(
            good, tmp_path / "outside.tar.gz", tarfile.TarInfo("../../outside")
        ),
        "a link": lambda: with_member(good, tmp_path / "link.tar.gz", link),
    }
    for name, make in bad.items():
        target = tmp_path / "target"
        done = run(restore, make(), target)
        assert done.exit_code == 1, name
        assert len(done.output.splitlines()) == 1, (name, done.output)
        assert "Traceback" not in done.output
        assert done.exception is None or isinstance(done.exception, SystemExit), name
        left = [path.name for path in target.iterdir()] if target.exists() else []
        assert set(left) <= {"ledger.lock"}, name
        assert run(restore, good, target).exit_code == 0, "a second try, with the right archive"
        shutil.rmtree(target)


def test_what_a_killed_backup_left_is_removed_by_the_next(state: Path, tmp_path: Path) -> None:
    """It holds a copy of the pepper."""
    left, lock = make_scratch(".tollhouse-backup-", tmp_path)
    (left / "pepper").touch()
    os.close(lock)  # as its death would
    assert run(backup, tmp_path / "b.tar.gz", state).exit_code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"b.tar.gz", "state"}


def test_a_folder_without_a_ledger_is_not_backed_up(tmp_path: Path) -> None:
    """A mistyped path must not give an empty archive that passes for a backup."""
    done = run(backup, tmp_path / "b.tar.gz", tmp_path)
    assert done.exit_code == 1
    assert "holds no ledger" in done.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_gateway_started_on_a_restored_folder_knows_keys_and_requests(
    tmp_path: Path, provider: ProviderThread
) -> None:
    """Backed up while it answers; the key made last opens the restored one."""
    archive = tmp_path / "b.tar.gz"
    with running_gateway(tmp_path / "first", provider.base_url) as gateway:
        key = gateway.key("acme")
        answer = asked(gateway, key)
        done = run(backup, archive, gateway.state_dir)
        assert done.exit_code == 0, done.output
        asked(gateway, key)
    second = RunningGateway(tmp_path / "second", provider.base_url)
    shutil.rmtree(second.state_dir)
    assert run(restore, archive, second.state_dir).exit_code == 0
    second.start()
    try:
        assert asked(second, key).status_code == 200
        assert len(second.events(answer.headers["x-request-id"])) == 1
    finally:
        second.stop()


def asked(gateway: RunningGateway, key: str) -> httpx.Response:
    return httpx.post(
        gateway.base_url + "/chat/completions", trust_env=False, timeout=10,
        headers={"authorization": f"Bearer {key}"},
        json={"model": "uncached", "messages": [{"role": "user", "content": str(time.time())}]},
    )  # fmt: skip
