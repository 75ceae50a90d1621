"""The state folder is closed to other users of the machine, whoever made it and with what umask."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.ledger import Ledger
from gateway.ledger.books import hold_state
from gateway.policy.load import SourceFile
from gateway.policy.switches import Switches
from gateway.policy.versions import Versions
from gateway.private_files import private_file, private_folder, tidy_state
from gateway.upkeep import gateway_id, open_keys
from tests.gateway.ledger.books import final


@pytest.fixture
def careless() -> Iterator[None]:
    """A umask that keeps nothing from anybody."""
    before = os.umask(0)
    yield
    os.umask(before)


def open_to_others(folder: Path) -> list[str]:
    """Whatever in a folder, itself included, has a mode for anybody but its owner."""
    return [
        f"{path.relative_to(folder)} {stat.S_IMODE(path.stat().st_mode):o}"
        for path in (folder, *sorted(folder.rglob("*")))
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    ]


def use(state_dir: Path) -> None:
    """Write each thing that a gateway keeps, and look while all of it is open."""
    keys = open_keys(state_dir)
    keys.create_api("acme", "default", "test", now_us=1)
    ledger = Ledger.open(state_dir)
    ledger.settle(final("R"))
    ledger.shipper.ship()
    Switches(state_dir / "switches.json").throw("exact", None)
    Versions(state_dir / "policies").remember("abc", [SourceFile(Path("p.yaml"), b"a: 1")], 1)
    gateway_id(state_dir)
    try:
        assert {"ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite-shm", "keys.sqlite",
                "pepper"} <= {path.name for path in state_dir.iterdir()}  # fmt: skip
        assert open_to_others(state_dir) == []
    finally:
        ledger.close()
        keys.close()


def test_nothing_in_a_new_state_folder_can_be_read_by_others(
    tmp_path: Path, careless: None
) -> None:
    """Keys, books and policies stay private, even with a umask that hides nothing."""
    use(tmp_path / "state")


def test_a_folder_that_was_open_to_all_is_closed_with_all_that_lies_in_it(
    tmp_path: Path, careless: None
) -> None:
    """As an operator's mkdir, a volume or an earlier release has left it."""
    state_dir = tmp_path / "state"
    use(state_dir)
    for path in (state_dir, *state_dir.rglob("*")):
        if path.name != "pepper":  # an open pepper is refused, which has a test of its own
            path.chmod(0o777 if path.is_dir() else 0o666)
    use(state_dir)


def test_files_of_others_in_the_folder_are_left_alone(tmp_path: Path, careless: None) -> None:
    """Whoever points state_dir at a folder with other things in it finds those as they were."""
    (tmp_path / "notes.txt").touch()
    (tmp_path / "photos").mkdir()
    os.close(hold_state(tmp_path))
    assert open_to_others(tmp_path) == ["notes.txt 666", "photos 777"]


def test_a_folder_that_everybody_shares_keeps_its_mode(tmp_path: Path) -> None:
    """Closing a sticky folder like /tmp would shut out every other program of the machine."""
    shared = tmp_path / "tmp"
    shared.mkdir()
    shared.chmod(0o1777)
    private_folder(shared)
    assert stat.S_IMODE(shared.stat().st_mode) == 0o1777


def test_what_a_killed_process_was_writing_is_removed(tmp_path: Path) -> None:
    """Half-written files neither pile up nor pass for a policy."""
    (tmp_path / "policies" / ".new-version").mkdir(parents=True)
    (tmp_path / "policies" / ".new-version" / "000-p.yaml").touch()
    (tmp_path / ".new-switches").touch()
    tidy_state(tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["policies"]


def test_a_file_keeps_its_content_when_it_is_closed_to_others(tmp_path: Path) -> None:
    """An older release's books lose their mode of 644 and not one byte."""
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"content")
    path.chmod(0o644)
    assert private_file(path).read_bytes() == b"content"
    assert open_to_others(path.parent / "ledger.sqlite") == []
