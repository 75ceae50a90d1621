"""Which policy is in force: after edits, mistakes, restarts and rollbacks. Time is passed in."""

import logging
import os
from pathlib import Path

import pytest

from gateway.errors import PolicyError
from gateway.policy.holder import PolicyHolder
from gateway.policy.snapshot import Policy
from gateway.policy.versions import VERSIONS_MAX, Versions
from tests.gateway.policy.policy_texts import ENVIRON, POLICY, changed

SETTLE_SECONDS = 0.5
BROKEN = changed("small: small", "small: smal", POLICY)


def budget(dollars: str) -> str:
    return changed('amount: "12.50"', f'amount: "{dollars}"')


class World:
    """A policy file, a state folder and a clock."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "policies" / "policy.yaml"
        self.file.parent.mkdir()
        self.file.write_text(POLICY)
        self.state_dir = folder / "state"
        self.now_us = 1_000_000
        self.now = 0.0

    def start(self, **options: bool) -> PolicyHolder:
        return PolicyHolder(
            [self.file.parent],
            state_dir=self.state_dir,
            settle_seconds=SETTLE_SECONDS,
            now_us=lambda: self.now_us,
            environ=ENVIRON,
            **options,
        )

    def write(self, text: str, file: Path | None = None) -> None:
        """Write a file whose time stamp is certainly a new one."""
        path = file or self.file
        path.write_text(text)
        self.now_us += 1_000_000
        os.utime(path, ns=(self.now_us * 1000, self.now_us * 1000))

    def settle(self, holder: PolicyHolder) -> None:
        """Let the holder see the files at rest."""
        holder.poll(self.now)
        self.now += SETTLE_SECONDS
        holder.poll(self.now)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def cents(policy: Policy) -> int:
    """What tells the policies of these tests apart."""
    return policy.tenants["acme"].budgets[0].amount_pico // 10**10


def test_an_edit_comes_into_force_once_the_files_are_at_rest(world: World) -> None:
    """Half a second without change, so that no half-copied set of files is ever loaded."""
    holder = world.start()
    world.write(budget("20.00"))
    holder.poll(10.0)
    holder.poll(10.4)
    assert cents(holder.current) == 12_50
    world.write(budget("30.00"))
    holder.poll(10.49)  # changed again: the wait begins anew
    holder.poll(10.9)
    assert cents(holder.current) == 12_50
    holder.poll(10.99)
    assert cents(holder.current) == 30_00


def test_files_that_rest_are_not_read_again(world: World) -> None:
    """Five polls of unchanged files leave the very same policy object in force."""
    holder = world.start()
    before = holder.current
    for now in range(5):
        holder.poll(float(now))
    assert holder.current is before


def test_a_broken_edit_changes_nothing_and_says_why(world: World) -> None:
    """A typo keeps the old policy, tells the likely name, and the next good edit clears it."""
    holder = world.start()
    before = holder.current
    world.write(BROKEN)
    world.settle(holder)
    assert holder.current is before
    assert holder.last_error is not None
    assert "there is no model 'smal'; did you mean 'small'?" in holder.last_error[0]
    assert (holder.last_tried_us, holder.last_success_us) == (2_000_000, 1_000_000)
    world.write(budget("20.00"))
    world.settle(holder)
    assert cents(holder.current) == 20_00
    assert holder.last_error is None


def test_a_request_to_load_a_broken_file_is_told_so(world: World) -> None:
    """The operator who asks for a reload gets the reason, and the old policy goes on."""
    holder = world.start()
    world.write(BROKEN)
    with pytest.raises(PolicyError, match="there is no model 'smal'"):
        holder.reload()
    assert cents(holder.current) == 12_50


def test_a_folder_that_vanishes_changes_nothing(world: World) -> None:
    """A mount may be away for a moment."""
    holder = world.start()
    world.file.parent.rename(world.file.parent.with_name("elsewhere"))
    world.settle(holder)
    assert cents(holder.current) == 12_50
    assert holder.last_error is not None
    assert "cannot be read" in holder.last_error[0]


def test_a_file_added_to_the_folder_is_noticed(world: World) -> None:
    """A new tenant's file takes effect without a restart and without a change of the others."""
    holder = world.start()
    more = "apiVersion: tollhouse/v1\nkind: Tenants\nmetadata: {name: more}\ntenants: [{id: new}]\n"
    world.write(more, world.file.with_name("more.yaml"))
    world.settle(holder)
    assert "new" in holder.current.tenants


def test_a_swapped_symbolic_link_is_noticed(world: World, tmp_path: Path) -> None:
    """As Kubernetes does it: the files are links through ``..data``, which is replaced."""
    for number, text in enumerate((POLICY, budget("20.00"))):
        (tmp_path / f"data-{number}").mkdir()
        version = tmp_path / f"data-{number}" / "policy.yaml"
        version.write_text(text)
        os.utime(version, ns=(7, 7))  # times and sizes tell nothing
    current = tmp_path / "data"
    current.symlink_to("data-0")
    world.file.unlink()
    world.file.symlink_to(current / "policy.yaml")
    holder = world.start()
    swapped = tmp_path / "swapped"
    swapped.symlink_to("data-1")
    swapped.rename(current)
    world.settle(holder)
    assert cents(holder.current) == 20_00


def test_subscribers_know_a_policy_before_requests_can_see_it(world: World) -> None:
    """Limits and budgets are ready when the first request runs under it, on rollback too."""
    holder = world.start()
    seen: list[tuple[int, int]] = []
    holder.subscribe(lambda policy: seen.append((cents(policy), cents(holder.current))))
    world.write(budget("20.00"))
    holder.reload()
    holder.rollback(None)
    assert seen == [(20_00, 12_50), (12_50, 20_00)]


def test_a_restart_with_broken_files_begins_with_the_last_good_policy(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """A crash after a bad edit must not become an outage; the log says what was done."""
    first = world.start()
    world.write(budget("20.00"))
    first.reload()
    world.write(BROKEN)
    with caplog.at_level(logging.ERROR):
        second = world.start()
    assert second.current.version == first.current.version
    assert second.last_error is not None
    assert "beginning with the last good version" in caplog.text


def test_a_strict_start_refuses_broken_files(world: World) -> None:
    """A deployment that checks its policy fails at once instead of running the old one."""
    world.start()
    world.write(BROKEN)
    with pytest.raises(PolicyError, match="there is no model 'smal'"):
        world.start(strict=True)


def test_a_first_start_with_broken_files_fails(world: World) -> None:
    """Without any good version on record there is nothing safe to begin with."""
    world.write(BROKEN)
    with pytest.raises(PolicyError, match="there is no model 'smal'"):
        world.start()


def test_a_rollback_holds_until_the_files_change(world: World) -> None:
    """The bad file on disk does not creep back in; the next edit ends the rollback."""
    holder = world.start()
    good = holder.current.version
    world.write(budget("20.00"))
    holder.reload()
    holder.rollback(None)
    assert (holder.current.version, holder.pinned) == (good, good)
    world.settle(holder)
    assert cents(holder.current) == 12_50
    world.write(budget("30.00"))
    world.settle(holder)
    assert (cents(holder.current), holder.pinned) == (30_00, None)


def test_a_rollback_survives_a_restart_and_a_new_mount(world: World) -> None:
    """The same text with other times, inodes and paths is no change."""
    holder = world.start()
    world.write(budget("20.00"))
    holder.reload()
    holder.rollback(None)
    world.file.unlink()
    world.write(budget("20.00"))
    world.settle(holder)
    assert cents(holder.current) == 12_50
    moved = world.file.parent.rename(world.file.parent.with_name("mounted-anew"))
    world.file = moved / "policy.yaml"
    again = world.start()
    assert cents(again.current) == 12_50
    assert again.pinned == again.current.version


def test_a_rollback_ends_with_a_change_made_while_nobody_looked(world: World) -> None:
    """An edit during a restart counts like any other and is not hidden by the old rollback."""
    holder = world.start()
    world.write(budget("20.00"))
    holder.reload()
    holder.rollback(None)
    world.write(budget("30.00"))
    again = world.start()
    assert (cents(again.current), again.pinned) == (30_00, None)


def test_loading_the_files_by_hand_ends_a_rollback(world: World) -> None:
    """A reload is the operator's word that the files are right again."""
    holder = world.start()
    world.write(budget("20.00"))
    holder.reload()
    holder.rollback(None)
    holder.reload()
    assert (cents(holder.current), holder.pinned) == (20_00, None)


def test_a_rollback_does_not_hide_that_the_files_are_broken(world: World) -> None:
    """Nor after a restart: the status is that of the files, until they change."""
    holder = world.start()
    world.write(budget("20.00"))
    holder.reload()
    world.write(BROKEN)
    holder.try_reload()
    holder.rollback(None)
    assert holder.last_error is not None
    assert world.start().last_error == holder.last_error
    world.write(budget("30.00"))
    holder.reload()
    assert holder.last_error is None


def test_any_version_on_record_can_be_returned_to(world: World) -> None:
    """Not only the one before: of three versions the very first comes back."""
    holder = world.start()
    first = holder.current.version
    for dollars in ("20.00", "30.00"):
        world.write(budget(dollars))
        holder.reload()
    assert holder.versions()[-1] == first
    assert len(holder.versions()) == 3
    assert holder.rollback(first).version == first


@pytest.mark.parametrize("version", ["000000000000", "../policies", "", "history.json"])
def test_a_version_nobody_knows_is_refused(world: World, version: str) -> None:
    """A path instead of a version reads no file, and the current policy stays in force."""
    holder = world.start()
    with pytest.raises(KeyError):
        holder.rollback(version)
    assert cents(holder.current) == 12_50


def test_there_is_nothing_before_the_first_policy(world: World) -> None:
    """A rollback right after installation says so and changes nothing."""
    with pytest.raises(KeyError, match="no earlier version"):
        world.start().rollback(None)


def test_no_secret_is_kept_in_the_history(world: World) -> None:
    """Sources are kept as they were read: the reference, not what it stands for."""
    world.start()
    kept = [path for path in world.state_dir.rglob("*") if path.is_file()]
    assert any(b"${env:KEY}" in path.read_bytes() for path in kept)
    assert not any(ENVIRON["KEY"].encode() in path.read_bytes() for path in kept)
    assert all(path.stat().st_mode & 0o077 == 0 for path in kept)


def test_a_damaged_record_is_no_reason_not_to_start(world: World) -> None:
    """The files are sound, so a spoilt history costs old versions and no service."""
    world.start()
    (world.state_dir / "history.json").write_bytes(b'{"entries": [\xff')
    assert cents(world.start().current) == 12_50


def test_a_policy_comes_into_force_even_if_it_cannot_be_recorded(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """A full or vanished disk must not keep a budget from being raised."""
    holder = world.start()
    world.state_dir.rename(world.state_dir.with_name("gone"))
    world.state_dir.write_text("a file where the folder was")
    world.write(budget("20.00"))
    world.settle(holder)
    assert cents(holder.current) == 20_00
    assert "is not on record" in caplog.text


def test_the_history_forgets_its_oldest_versions(tmp_path: Path) -> None:
    """VERSIONS_MAX are kept, on disk too, so that frequent edits do not fill it."""
    versions = Versions(tmp_path)
    for number in range(VERSIONS_MAX + 3):
        versions.remember(f"v{number}", [], number)
    history = versions.history()
    assert [entry.version for entry in history.entries[:1]] == ["v3"]
    assert len(history.entries) == VERSIONS_MAX
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == VERSIONS_MAX


def test_a_version_that_came_back_is_not_forgotten(tmp_path: Path) -> None:
    """A version used again counts as new, and the next oldest goes in its place."""
    versions = Versions(tmp_path)
    for number in range(VERSIONS_MAX):
        versions.remember(f"v{number}", [], number)
    versions.remember("v0", [], VERSIONS_MAX)
    assert versions.history().entries[0].version == "v1"
    assert versions.files_of("v0") == ()


def test_a_policy_that_a_part_cannot_adopt_does_not_come_into_force(world: World) -> None:
    """One part on new rules and another on old ones would be worse than the old policy."""
    holder = world.start()
    world.write(budget("20.00"))

    def fail(policy: Policy) -> None:
        raise ValueError("cannot adopt")

    holder.subscribe(fail)
    with pytest.raises(ValueError, match="cannot adopt"):
        holder.reload()
    assert cents(holder.current) == 12_50
    assert list(holder.versions()) == [holder.current.version]
