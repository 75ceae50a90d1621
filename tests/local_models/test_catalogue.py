"""Models come to the machine verified, resumably, and from whichever source answers."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from local_models.catalogue import ModelEntry, ensure, load_catalogue, verify
from local_models.download import Digest, Received, fetch
from local_models.messages import ModelUnavailable
from local_models.sources import FileSource, HubSource, Source
from tests.local_models.file_servers import SHA256, WEIGHTS, FileServer, closed_address, serving

DIGEST = Digest(len(WEIGHTS), SHA256)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving(FileServer()) as running:
        yield running


def _catalogue(*sources: Source) -> dict[str, ModelEntry]:
    entry = ModelEntry("tiny", "generation", "Apache-2.0", 64, {"model.bin": DIGEST}, sources)
    return {"tiny": entry}


def test_the_built_in_catalogue_pins_every_byte_it_names() -> None:
    """Each file has a SHA-256 and each model a source, so a swapped download is noticed."""
    catalogue = load_catalogue()
    assert {"smollm2-135m-instruct", "all-minilm-l6-v2"} <= catalogue.keys()
    for entry in catalogue.values():
        assert entry.sources
        assert entry.size_bytes > 0
        assert all(len(bytes.fromhex(digest.sha256)) == 32 for digest in entry.files.values())


def test_a_half_download_goes_on_where_it_stopped(tmp_path: Path, server: FileServer) -> None:
    """The cut-off answer's bytes stay; the second request asks for the rest only."""
    server.break_after = 3_000_000
    seen: list[Received] = []
    target = tmp_path / "model.bin"

    fetch(server.url, target, DIGEST, name="m", progress=seen.append)

    assert target.read_bytes() == WEIGHTS
    assert server.ranges[0] is None
    assert server.ranges[1] is not None
    assert server.ranges[1] != "bytes=0-"
    received = [report.received_bytes for report in seen]
    assert received == sorted(received)
    assert received[-1] == len(WEIGHTS)


def test_a_part_left_by_an_earlier_process_is_used(tmp_path: Path, server: FileServer) -> None:
    """A download of which 1 MB is here asks for the rest alone."""
    (tmp_path / "model.bin.part").write_bytes(WEIGHTS[:1_000_000])
    fetch(server.url, tmp_path / "model.bin", DIGEST, name="m")
    assert (tmp_path / "model.bin").read_bytes() == WEIGHTS
    assert server.ranges == ["bytes=1000000-"]


def test_a_part_that_is_damaged_is_fetched_again_from_nothing(
    tmp_path: Path, server: FileServer
) -> None:
    """The digest shows that the first 700 bytes are wrong, and a second request mends it."""
    (tmp_path / "model.bin.part").write_bytes(b"damaged" * 100)
    fetch(server.url, tmp_path / "model.bin", DIGEST, name="m")
    assert (tmp_path / "model.bin").read_bytes() == WEIGHTS
    assert server.ranges == ["bytes=700-", None]


@pytest.mark.parametrize("served", [WEIGHTS[:-1] + b"!", WEIGHTS + b"more", WEIGHTS[:-5]])
def test_bytes_that_are_not_the_pinned_ones_are_refused(
    tmp_path: Path, server: FileServer, served: bytes
) -> None:
    """Nothing of them stays on the disk, so no engine can load them later."""
    server.served = served
    with pytest.raises(ModelUnavailable, match="not the pinned file"):
        fetch(server.url, tmp_path / "model.bin", DIGEST, name="m")
    assert not list(tmp_path.iterdir())


def test_without_a_network_the_message_says_so(tmp_path: Path) -> None:
    """A user without a connection reads its likely cause and no name of an exception."""
    with pytest.raises(ModelUnavailable, match="is there a network"):
        fetch(f"{closed_address()}/x", tmp_path / "x", DIGEST, name="m")


def test_a_password_in_an_address_stays_out_of_the_message(tmp_path: Path) -> None:
    """Messages end in logs and reports; password and token may not."""
    address = closed_address().replace("//", "//user:secret@")
    with pytest.raises(ModelUnavailable) as raised:
        fetch(f"{address}/x?t=token", tmp_path / "x", DIGEST, name="m")
    assert "secret" not in str(raised.value)
    assert "token" not in str(raised.value)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_named(tmp_path: Path) -> None:
    """The part file is a link to /dev/full, which refuses every write as a full disk does."""
    source = tmp_path / "source.bin"
    source.write_bytes(WEIGHTS)
    (tmp_path / "model.bin.part").symlink_to("/dev/full")
    with pytest.raises(ModelUnavailable, match="no room left"):
        fetch(str(source), tmp_path / "model.bin", DIGEST, name="m")


@pytest.mark.parametrize("form", ["path", "uri"])
def test_a_plain_file_is_a_source(tmp_path: Path, form: str) -> None:
    """A path or a file URI with a blank in it serves a machine that has no network."""
    source = tmp_path / "some where.bin"
    source.write_bytes(WEIGHTS)
    location = source.as_uri() if form == "uri" else str(source)
    catalogue = _catalogue(FileSource({"model.bin": location}))
    folder = ensure("tiny", models_dir=tmp_path / "models", catalogue=catalogue)
    assert (folder / "model.bin").read_bytes() == WEIGHTS


def test_sources_are_tried_in_order_and_all_failures_are_told(
    tmp_path: Path, server: FileServer
) -> None:
    """One source that is gone costs nothing; where all are, the reason of each is given."""
    absent = FileSource({"model.bin": str(tmp_path / "absent")})
    present = FileSource({"model.bin": server.url})
    folder = ensure("tiny", models_dir=tmp_path, catalogue=_catalogue(absent, present))
    assert (folder / "model.bin").read_bytes() == WEIGHTS
    with pytest.raises(ModelUnavailable, match=r"absent.*; .*absent"):
        ensure("tiny", models_dir=tmp_path / "other", catalogue=_catalogue(absent, absent))


def test_a_hub_source_asks_for_the_pinned_revision(
    tmp_path: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mirror of the hub named by HF_ENDPOINT brings the file under the model's own name."""
    monkeypatch.setenv("HF_ENDPOINT", server.url.removesuffix("/model.bin"))
    source = HubSource("someone/tiny", "a" * 40, {"model.bin": "weights.bin"})
    folder = ensure("tiny", models_dir=tmp_path, catalogue=_catalogue(source))
    assert (folder / "model.bin").read_bytes() == WEIGHTS


def test_a_damaged_file_in_the_cache_is_refused_and_fetched_again(
    tmp_path: Path, server: FileServer
) -> None:
    """One flipped byte is found by the digest, and the next use mends the file."""
    catalogue = _catalogue(FileSource({"model.bin": server.url}))
    target = ensure("tiny", models_dir=tmp_path, catalogue=catalogue) / "model.bin"
    target.write_bytes(b"?" + WEIGHTS[1:])
    assert verify("tiny", models_dir=tmp_path, catalogue=catalogue) == ("model.bin",)
    ensure("tiny", models_dir=tmp_path, catalogue=catalogue)
    assert target.read_bytes() == WEIGHTS
    assert verify("tiny", models_dir=tmp_path, catalogue=catalogue) == ()


def test_many_who_want_one_model_fetch_it_once(tmp_path: Path, server: FileServer) -> None:
    """Six threads at once make one download and find one sound file."""
    catalogue = _catalogue(FileSource({"model.bin": server.url}))
    wanting = [
        threading.Thread(
            target=ensure, args=("tiny",), kwargs={"models_dir": tmp_path, "catalogue": catalogue}
        )
        for _ in range(6)
    ]
    for thread in wanting:
        thread.start()
    for thread in wanting:
        thread.join()
    assert len(server.ranges) == 1
    assert verify("tiny", models_dir=tmp_path, catalogue=catalogue) == ()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("tiny: {kind: picture}", "picture"),
        ("tiny: [", "while parsing"),
        (
            "../tiny: {kind: embedding, license: x, context_tokens: 1, files: {}, sources: []}",
            "name",
        ),
        ("tiny: {colour: red}", "tiny|colour|kind"),
    ],
)
def test_an_unusable_catalogue_is_told_with_its_path(
    tmp_path: Path, text: str, complaint: str
) -> None:
    """A user's own catalogue is named together with the word in it that is wrong."""
    path = tmp_path / "catalogue.yaml"
    path.write_text(text)
    with pytest.raises(ModelUnavailable, match=rf"catalogue\.yaml: (?s:.*)({complaint})"):
        load_catalogue(path)


def test_an_unknown_model_is_told_with_the_known_ones(tmp_path: Path) -> None:
    """A typing error costs one look at the list and no search in the documentation."""
    with pytest.raises(ModelUnavailable, match="known are all-minilm-l6-v2"):
        ensure("no-such-model", models_dir=tmp_path)
