"""A disk that is full, damaged or read-only: keys are revoked, and a start says what is wrong."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from gateway.ledger import Ledger
from gateway.policy.switches import Switches
from gateway.stores.keys import KeyStore, load_pepper
from tests.gateway.running import ProviderThread, RunningGateway, running_gateway, wait_for
from tests.redis_server import RedisServer

SIZE_BYTES = 4 << 20


@contextlib.contextmanager
def small_disk(place: Path) -> Iterator[Path]:
    """A disk of 4 MiB of its own. Skips the test where none can be mounted."""
    place.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE_BYTES}", "tmpfs", str(place)],
        capture_output=True, check=False,
    )  # fmt: skip
    if mounted.returncode != 0:
        pytest.skip("this user cannot mount a disk")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path) -> Path:
    """Take all space that is left."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    return filler


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_on_a_full_disk_keys_are_revoked_and_switches_thrown_at_once(
    tmp_path: Path, provider: ProviderThread, redis_server: RedisServer, workers: int
) -> None:
    """In every worker; the answer says that it is not kept yet, and when there is space it is. A
    key cannot be made meanwhile, and the refusal says why.
    """
    settings = ""
    if workers > 1:
        settings = f"workers: {workers}\nredis: {{url: '{redis_server.url}'}}\n"
    with (
        small_disk(tmp_path / "state") as disk,
        running_gateway(tmp_path, provider.base_url, settings=settings) as gateway,
        gateway.admin() as admin,
    ):
        made = admin.post("/admin/keys", json={"kind": "api", "tenant": "acme", "name": "n"}).json()
        headers = {"authorization": f"Bearer {made['token']}"}

        def status() -> int:
            """Of a request on a connection of its own, so of any worker."""
            url = gateway.base_url + "/models"
            return httpx.get(url, headers=headers, trust_env=False, timeout=10).status_code

        assert status() == 200
        filler = fill(disk)
        refused = admin.post("/admin/keys", json={"kind": "api", "tenant": "acme", "name": "n"})
        assert refused.status_code == 507
        assert "Free space on its disk" in refused.json()["error"]["message"]
        revoked = admin.delete(f"/admin/keys/{made['key']['id']}")
        assert revoked.status_code == 202
        assert "a restart before that brings the key back" in revoked.json()["message"]
        assert {status() for _ in range(12)} == {401}
        [record] = [k for k in admin.get("/admin/keys").json() if k["id"] == made["key"]["id"]]
        assert record["revoked_us"]
        thrown = admin.post("/admin/switches", json={"name": "exact", "thrown": True}).json()
        assert (thrown["thrown"], thrown["saved"]) == (True, False)
        assert admin.get("/livez").status_code == 200
        filler.unlink()

        def kept() -> bool:
            keys = KeyStore(disk / "keys.sqlite", load_pepper(disk / "pepper"))
            revoked_us = {record.id: record.revoked_us for record in keys.list()}
            keys.close()
            return bool(revoked_us[made["key"]["id"]]) and (disk / "switches.json").exists()

        wait_for(kept, 10.0, gateway.describe)
        assert {status() for _ in range(6)} == {401}


def started(gateway: RunningGateway) -> tuple[int, list[str]]:
    """(exit status, what was said) of a start that has to fail, at once and only once."""
    ended = subprocess.run(
        [sys.executable, "-m", "gateway", "serve", "--config", str(gateway.config)],
        env=gateway.environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert "Traceback" not in ended.stderr, ended.stderr
    said = [line for line in ended.stderr.splitlines() if "cannot be used" in line]
    assert len(said) == 1, ended.stderr
    return ended.returncode, said


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ledger.sqlite", "keys.sqlite"])
def test_a_start_on_a_damaged_database_ends_with_one_sentence(tmp_path: Path, name: str) -> None:
    """It names the file and the command that restores it."""
    gateway = RunningGateway(tmp_path, "http://127.0.0.1:9/v1")
    Ledger.open(gateway.state_dir).close()
    (gateway.state_dir / name).write_bytes(b"this is no database, whatever its name is" * 100)
    status, [said] = started(gateway)
    assert status == 1
    assert name in said
    assert "tollhouse restore" in said


@pytest.mark.slow
def test_a_start_on_a_ledger_damaged_in_its_middle_ends_with_one_sentence(tmp_path: Path) -> None:
    """Its head is whole, so it opens; its first page of content is not."""
    gateway = RunningGateway(tmp_path, "http://127.0.0.1:9/v1")
    Ledger.open(gateway.state_dir).close()
    path = gateway.state_dir / "ledger.sqlite"
    content = bytearray(path.read_bytes())
    content[100:] = b"\xff" * (len(content) - 100)
    path.write_bytes(content)
    status, [said] = started(gateway)
    assert status == 1
    assert "tollhouse restore" in said


@pytest.mark.slow
def test_a_start_on_a_full_disk_ends_with_one_sentence(tmp_path: Path) -> None:
    """It tells the operator to free space, in place of SQLite's own words."""
    with small_disk(tmp_path / "state") as disk:
        gateway = RunningGateway(tmp_path, "http://127.0.0.1:9/v1")
        fill(disk)
        status, [said] = started(gateway)
        assert status == 1
        assert "Free space on its disk" in said


@pytest.mark.slow
def test_a_start_on_a_read_only_disk_ends_with_one_sentence(tmp_path: Path) -> None:
    """The kernel's reason is in it, and no stack trace."""
    with small_disk(tmp_path / "state") as disk:
        gateway = RunningGateway(tmp_path, "http://127.0.0.1:9/v1")
        remount = ["mount", "-o", "remount,ro", str(disk)]
        subprocess.run(remount, check=True)
        ended = subprocess.run(
            [sys.executable, "-m", "gateway", "serve", "--config", str(gateway.config)],
            env=gateway.environment, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    assert ended.returncode == 1
    assert "Read-only file system" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_a_switch_that_is_not_kept_is_kept_later(tmp_path: Path) -> None:
    """It works at once, admits that it is not saved, and outlasts a restart once it is."""
    folder = tmp_path / "gone"
    folder.mkdir()
    switches = Switches(folder / "switches.json")
    folder.rmdir()
    switches.throw("exact", None)
    assert switches.thrown("exact", 1)
    saved = [switches.saved]
    folder.mkdir()
    switches.save()
    assert [*saved, switches.saved] == [False, True]
    assert Switches(folder / "switches.json").thrown("exact", 1)
