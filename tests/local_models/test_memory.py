"""The bound on the memory of a node's models: said before loading, kept between processes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from local_models.memory import DoesNotFit, MemoryBound, Need, machine_bytes
from tests.local_models.test_model_process import Peer, listening, start, stop, until

_MIB = 1 << 20
GENERATION = "smollm2-135m-instruct"


def claimed_by_a_child(claims: Path, mib: int) -> "subprocess.Popen[str]":
    """A process that lives and has claimed so much."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from local_models.memory import MemoryBound, Need\n"
        "MemoryBound(Path(sys.argv[1]), 1 << 40).claim('other', Need(int(sys.argv[2]) << 20, 0))\n"
        "print('claimed', flush=True)\n"
        "sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(claims), str(mib)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "claimed\n"
    return process


def test_a_model_that_does_not_fit_says_what_it_needs_and_what_there_is(tmp_path: Path) -> None:
    """And once the other process is killed, its claim is void."""
    bound = MemoryBound(tmp_path / "claims", 1000 * _MIB)
    other = claimed_by_a_child(tmp_path / "claims", 300)
    need = Need(500 * _MIB, 250 * _MIB)
    with pytest.raises(DoesNotFit) as refused:
        bound.claim("mine", need)
    assert str(refused.value) == (
        "mine needs 750 MiB (500 MiB for its weights, 250 MiB for the cache of its slots), and of"
        " models.memory, 1,000 MiB, 700 MiB are left (held by other): raise models.memory, or give"
        " the model fewer slots or a smaller context"
    )
    assert refused.value.need_bytes == 750 * _MIB
    other.kill()
    other.communicate()
    bound.claim("mine", need)
    bound.claim("mine", need)  # again, after a reload: it is one claim
    assert bound.left_bytes("second") == 250 * _MIB


def test_without_a_bound_it_is_a_share_of_the_machine(tmp_path: Path) -> None:
    """Models never claim all of its memory, so other programs keep some."""
    assert 0 < MemoryBound(tmp_path / "claims").bound_bytes < machine_bytes()
    assert machine_bytes() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.slow
def test_a_process_uses_no_more_than_it_said(tmp_path: Path) -> None:
    """The peak of loading, as the kernel counts it, is within the claim and over a third of it."""
    path = tmp_path / "p.sock"
    process = start(path, GENERATION)
    try:
        until(lambda: listening(path))
        with Peer(path) as peer:
            peer.until_ready()
        status = Path(f"/proc/{process.pid}/status").read_text()
        peak_bytes = int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) << 10
        claimed = re.findall(r", (\d+)\]", (tmp_path / "memory.json").read_text())
        assert int(claimed[0]) / 3 < peak_bytes <= int(claimed[0])
    finally:
        stop(process)


@pytest.mark.slow
def test_a_model_is_loaded_as_soon_as_it_fits(tmp_path: Path) -> None:
    """It waits beside serving, says why, and needs no restart."""
    path = tmp_path / "p.sock"
    other = claimed_by_a_child(tmp_path / "memory.json", 900)
    process = start(path, GENERATION, more=("--memory-bytes", str(1000 * _MIB)))
    try:
        until(lambda: listening(path))
        with Peer(path) as peer:
            peer.until_ready()
            assert peer.state.generation_state == "failed"
            assert f"{GENERATION} needs" in peer.state.generation_message
            other.kill()
            other.communicate()
            peer.state = peer.receive(type(peer.state))
            peer.until_ready()
            assert peer.state.generation_state == "ready"
    finally:
        stop(process)
