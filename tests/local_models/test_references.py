"""Any model by configuration: a name, a file of this machine or one of the hub, verified."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from local_models.catalogue import ensure, load_catalogue
from local_models.download import Received
from local_models.family import read_shape
from local_models.fit import GRAPH_SHARE, shortage
from local_models.gguf import GgufFile
from local_models.memory import need_of
from local_models.messages import DEFAULT, ModelUnavailable
from local_models.origins import read_origin
from local_models.references import Reference, default_candidate, problem, resolve
from local_models.sources import Sources
from tests.local_models.file_servers import SHA256, WEIGHTS, FileServer, closed_address, serving

REVISION = "0123456789abcdef" * 2 + "01234567"
HUB = f"someone/tiny-gguf@{REVISION}/some folder/tiny-q4.gguf"
OFFLINE = Sources(allowed=())
AMPLE_BYTES = 1 << 40


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """A hub with one file, whose sha256 it states as Hugging Face does."""
    server = FileServer(None)
    server.files[f"/someone/tiny-gguf/resolve/{REVISION}/some%20folder/tiny-q4.gguf"] = WEIGHTS
    server.headers = {"x-linked-etag": f'"{SHA256}"', "x-linked-size": str(len(WEIGHTS))}
    monkeypatch.setenv("HF_ENDPOINT", server.root)
    with serving(server):
        yield server


@pytest.mark.parametrize(
    ("reference", "complaint"),
    [
        (Reference(), "name a model by exactly one of model, path and hub, not by none of them"),
        (Reference(model="x", path="/y"), "not by model and path"),
        (Reference(path="/y", sha256="ABC"), "/y: a sha256 has 64 hexadecimal digits"),
        (Reference(model="x", sha256="0" * 64), "x: the catalogue pins its sha256"),
        (Reference(hub="someone/tiny"), "a file of the hub is written REPO@REV/FILE"),
        (Reference(hub=f"someone/tiny@{REVISION}/../x"), "is written REPO@REV/FILE"),
        (Reference(hub=f"someone/tiny@{REVISION}//etc/x"), "is written REPO@REV/FILE"),
        (Reference(hub="someone/tiny@main/x.gguf"), "'main' may be another file tomorrow"),
        (Reference(hub=f"someone/tiny@{REVISION}/x\0.gguf"), "x\\x00.gguf': a model's name has"),
        (Reference(hub=f"someone/tiny@{REVISION}/\ud800.gguf"), "ud800.gguf': a model's name has"),
        (Reference(path="/srv/x\n.gguf"), "x\\n.gguf': a model's name has printable characters"),
    ],
)
def test_a_reference_that_names_no_one_file_is_told_in_a_sentence(
    tmp_path: Path, reference: Reference, complaint: str
) -> None:
    """Before anything is looked for; ``problem`` says the same without a models folder."""
    assert complaint in problem(reference)
    with pytest.raises(ModelUnavailable) as raised:
        resolve(reference, models_dir=tmp_path, sources=OFFLINE)
    assert str(raised.value) == problem(reference)
    assert not list(tmp_path.iterdir())


def test_a_file_of_this_machine_is_linked_not_copied(tmp_path: Path) -> None:
    """The folder that an engine gets is ours, because graphs are kept beside the file."""
    file = tmp_path / "theirs" / "tiny.gguf"
    file.parent.mkdir()
    file.write_bytes(WEIGHTS)
    models_dir = tmp_path / "models"

    resolved = resolve(Reference(path=str(file), sha256=SHA256), models_dir=models_dir)

    assert resolved.name == "tiny"
    assert (resolved.folder / "model.gguf").readlink() == file
    assert read_origin(resolved.folder) == resolved.origin
    assert (resolved.origin.source, resolved.origin.license) == (str(file), "not stated")
    assert list(file.parent.iterdir()) == [file]
    assert resolve(Reference(path=str(file)), models_dir=models_dir).folder == resolved.folder


def test_two_files_of_one_name_are_two_models(tmp_path: Path) -> None:
    """Equal content in two folders is kept apart, so that neither model replaces the other."""
    files = [tmp_path / folder / "tiny.gguf" for folder in "ab"]
    for file in files:
        file.parent.mkdir()
        file.write_bytes(WEIGHTS)
    folders = {resolve(Reference(path=str(file)), models_dir=tmp_path).folder for file in files}
    assert len(folders) == 2


def test_a_name_that_no_disk_can_hold_is_told_in_a_sentence(tmp_path: Path) -> None:
    """Whatever the operating system says of it."""
    with pytest.raises(ModelUnavailable, match=r"x\.gguf cannot be read: File name too long"):
        resolve(Reference(path=f"/{'x' * 300}.gguf"), models_dir=tmp_path, sources=OFFLINE)


def test_a_file_that_is_absent_or_not_the_pinned_one_is_refused(tmp_path: Path) -> None:
    """An operator reads which of the two it is, with the file's name."""
    file = tmp_path / "tiny.gguf"
    with pytest.raises(ModelUnavailable, match=r"tiny\.gguf: there is no such file"):
        resolve(Reference(path=str(file)), models_dir=tmp_path)
    file.write_bytes(WEIGHTS)
    with pytest.raises(ModelUnavailable, match=r"tiny\.gguf is not the pinned file"):
        resolve(Reference(path=str(file), sha256="0" * 64), models_dir=tmp_path)


def test_a_hub_file_is_verified_by_the_hubs_own_digest_and_recorded(
    tmp_path: Path, hub: FileServer
) -> None:
    """The second time nobody is asked, not even where the sources are off."""
    seen: list[Received] = []
    resolved = resolve(Reference(hub=HUB), models_dir=tmp_path, progress=seen.append)
    assert (resolved.folder / "model.gguf").read_bytes() == WEIGHTS
    assert resolved.name == "tiny-q4"
    assert (resolved.origin.publisher, resolved.origin.revision) == ("someone", REVISION)
    assert resolved.origin.sha256 == {"model.gguf": SHA256}
    assert {received.source for received in seen} == {"hub"}
    assert len(hub.paths) == 1
    again = resolve(Reference(hub=HUB), models_dir=tmp_path, sources=OFFLINE)
    assert again == resolved
    assert len(hub.paths) == 1


def test_a_hub_file_that_was_changed_here_is_fetched_again(tmp_path: Path, hub: FileServer) -> None:
    """One changed byte in the cache never reaches an engine."""
    resolved = resolve(Reference(hub=HUB), models_dir=tmp_path)
    (resolved.folder / "model.gguf").write_bytes(b"?" + WEIGHTS[1:])
    resolve(Reference(hub=HUB), models_dir=tmp_path)
    assert (resolved.folder / "model.gguf").read_bytes() == WEIGHTS


def test_a_hub_that_states_no_digest_needs_one_beside_the_reference(
    tmp_path: Path, hub: FileServer
) -> None:
    """An ETag of 40 digits is git's, of no use for a large file."""
    hub.headers = {"etag": '"0123456789abcdef0123456789abcdef01234567"'}
    with pytest.raises(ModelUnavailable, match="states no sha256 of the file: write it beside"):
        resolve(Reference(hub=HUB), models_dir=tmp_path)
    pinned = Reference(hub=HUB, sha256=SHA256)
    assert resolve(pinned, models_dir=tmp_path).origin.sha256 == {"model.gguf": SHA256}


def test_a_hub_file_with_another_digest_than_the_pinned_one_is_refused(
    tmp_path: Path, hub: FileServer
) -> None:
    """A publisher who replaces a file, or a hub that lies about it, changes no answers here."""
    other = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(ModelUnavailable, match=f"has the sha256 {SHA256}, not {other}"):
        resolve(Reference(hub=HUB, sha256=other), models_dir=tmp_path)
    hub.headers = {"x-linked-etag": f'"{other}"', "x-linked-size": str(len(WEIGHTS))}
    with pytest.raises(ModelUnavailable, match="is not the pinned file"):
        resolve(Reference(hub=HUB), models_dir=tmp_path)


def test_a_hub_that_is_away_or_switched_off_is_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two different causes give two different sentences, for each has its own remedy."""
    monkeypatch.setenv("HF_ENDPOINT", closed_address())
    with pytest.raises(ModelUnavailable, match="is there a network"):
        resolve(Reference(hub=HUB), models_dir=tmp_path)
    with pytest.raises(ModelUnavailable, match=r"models\.sources leaves out the hub"):
        resolve(Reference(hub=HUB), models_dir=tmp_path, sources=Sources(allowed=("parts",)))


def test_a_file_that_the_hub_does_not_have_is_named(tmp_path: Path, hub: FileServer) -> None:
    """A typing error in a file's name shows with the status 404."""
    reference = Reference(hub=f"someone/tiny-gguf@{REVISION}/absent.gguf")
    with pytest.raises(ModelUnavailable, match=r"absent\.gguf: .* answers with status 404"):
        resolve(reference, models_dir=tmp_path)


def test_without_any_default_model_one_sentence_says_what_follows(tmp_path: Path) -> None:
    """The gateway answers without a local model, and each default's reason is given."""
    with pytest.raises(ModelUnavailable) as raised:
        resolve(
            Reference(model=DEFAULT),
            models_dir=tmp_path,
            sources=OFFLINE,
            memory_bytes=AMPLE_BYTES,
        )
    message = str(raised.value)
    assert message.startswith("no local model can be had, so the gateway answers without one: ")
    assert "qwen2.5-coder-0.5b-instruct cannot be fetched: hub is left out" in message
    assert "smollm2-135m-instruct cannot be fetched: parts is left out" in message


def test_the_default_falls_back_to_the_smallest_and_says_why(
    tmp_path: Path, generation_model_dir: Path
) -> None:
    """What is on this machine already needs no source."""
    folder = tmp_path / "smollm2-135m-instruct"
    folder.mkdir()
    (folder / "model.gguf").symlink_to(generation_model_dir / "model.gguf")
    resolved = resolve(
        Reference(model=DEFAULT), models_dir=tmp_path, sources=OFFLINE, memory_bytes=AMPLE_BYTES
    )
    assert resolved.name == "smollm2-135m-instruct"
    assert resolved.missed.startswith("qwen2.5-coder-0.5b-instruct cannot be fetched: hub is left")
    assert resolved.origin.publisher == "QuantFactory"


def test_the_default_is_the_better_one_only_where_memory_allows_it(
    tmp_path: Path, generation_model_dir: Path
) -> None:
    """The reason has both figures; nothing is asked of any source, and the smallest answers."""
    needed = load_catalogue()["qwen2.5-coder-0.5b-instruct"].memory_bytes
    folder = tmp_path / "smollm2-135m-instruct"
    folder.mkdir()
    (folder / "model.gguf").symlink_to(generation_model_dir / "model.gguf")
    resolved = resolve(
        Reference(model=DEFAULT), models_dir=tmp_path, sources=OFFLINE, memory_bytes=needed - 1
    )
    assert resolved.name == "smollm2-135m-instruct"
    assert resolved.missed == (
        "qwen2.5-coder-0.5b-instruct needs 0.92 GiB of memory, and 0.92 GiB are free"
    )
    assert default_candidate(tmp_path, needed) == ("qwen2.5-coder-0.5b-instruct", "")


def test_a_disk_that_lacks_room_for_file_and_graph_is_told_before_a_download(
    tmp_path: Path,
) -> None:
    """What is here already takes no more of it."""
    entry = load_catalogue()["qwen2.5-coder-0.5b-instruct"]
    whole = entry.size_bytes + int(entry.size_bytes * GRAPH_SHARE)
    free = {"memory_bytes": entry.memory_bytes}
    assert shortage(entry, tmp_path, disk_bytes=whole, **free) == ""
    assert shortage(entry, tmp_path, disk_bytes=whole - 1, **free) == (
        f"qwen2.5-coder-0.5b-instruct needs 1.14 GiB on the disk that holds {tmp_path},"
        " and 1.14 GiB are free"
    )
    file = tmp_path / entry.name / "model.gguf"
    file.parent.mkdir()
    with file.open("wb") as sparse:
        sparse.truncate(entry.size_bytes)
    assert shortage(entry, tmp_path, disk_bytes=whole - entry.size_bytes, **free) == ""


@pytest.mark.parametrize(
    "name",
    [
        "smollm2-135m-instruct",
        pytest.param("qwen2.5-coder-0.5b-instruct", marks=pytest.mark.long),
        pytest.param("qwen2.5-coder-1.5b-instruct", marks=pytest.mark.long),
    ],
)
def test_the_memory_that_the_catalogue_states_is_what_the_file_claims(name: str) -> None:
    """A stale figure would choose a model that then does not fit."""
    gguf = GgufFile(ensure(name) / "model.gguf")
    weights_bytes = sum(tensor.stored.nbytes for tensor in gguf.tensors.values())
    need = need_of(weights_bytes, read_shape(gguf), slots=4, context_tokens=2048)
    assert load_catalogue()[name].memory_bytes == need.total_bytes


def test_an_unknown_model_is_told_with_the_known_ones(tmp_path: Path) -> None:
    """A policy with a wrong name is answered with the names to choose from."""
    with pytest.raises(ModelUnavailable, match="there is no model 'gpt-9'; known are"):
        resolve(Reference(model="gpt-9"), models_dir=tmp_path, sources=OFFLINE)
