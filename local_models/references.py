"""A model by configuration: a catalogue name, a file of this machine, or a file of the hub.

Turns a reference into a folder that ``Engine.load`` takes: ``model.gguf``, and ``origin.yaml``
that says what it is. Does not know policies, nor what is inside a model file.
"""

import hashlib
import re
from pathlib import Path, PurePosixPath

import msgspec

from local_models.catalogue import default_models_dir, ensure, load_catalogue, locked
from local_models.download import Digest, Progress, fetch, matches, published_digest
from local_models.fit import shortage
from local_models.messages import DEFAULT, ModelUnavailable
from local_models.origins import Origin, read_origin, write_origin
from local_models.sources import Sources, hub_address

MODEL_FILE = "model.gguf"
DEFAULT_MODELS = ("qwen2.5-coder-0.5b-instruct", "smollm2-135m-instruct")
"""What ``default`` stands for: the first that can be had, and has room."""

_HUB = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)@(?P<revision>[^/@]+)/(?P<file>.+)", re.ASCII)
_REVISION = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Reference(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Exactly one of ``model``, ``path`` and ``hub``.

    model: a name of the catalogue, or ``default``. path: a GGUF file of this machine. hub:
    ``REPO@REV/FILE``, with a revision of 40 hexadecimal digits. sha256: of the file; the catalogue
    brings its own.
    """

    model: str = ""
    path: str = ""
    hub: str = ""
    sha256: str = ""

    def __str__(self) -> str:
        """The reference as it is written, for messages."""
        return self.model or self.path or self.hub


class Resolved(msgspec.Struct, frozen=True, kw_only=True):
    """A verified model on this machine. name: short, fit for logs; folder: for ``Engine.load``.

    sha256: of its file as it was verified; empty where nothing pins it. missed: why the model
    stands in for a better one; empty where it is the one that was meant.
    """

    name: str
    folder: Path
    origin: Origin
    sha256: str = ""
    missed: str = ""


def parse(written: str, sha256: str = "") -> Reference:
    """Read a reference of one text: a path begins with /, the hub's have an @, others are names."""
    if written.startswith("/"):
        return Reference(path=written, sha256=sha256)
    if "@" in written:
        return Reference(hub=written, sha256=sha256)
    return Reference(model=written, sha256=sha256)


def problem(reference: Reference) -> str:
    """What is wrong with a reference as it is written, in one sentence; empty where nothing is.

    Looks at the text alone: a policy can be checked where the models are not.
    """
    named = [name for name in ("model", "path", "hub") if getattr(reference, name)]
    if len(named) != 1:
        found = " and ".join(named) or "none of them"
        return f"name a model by exactly one of model, path and hub, not by {found}"
    if not str(reference).isprintable():
        return f"{str(reference)!a}: a model's name has printable characters only"
    if reference.sha256 and not _SHA256.fullmatch(reference.sha256):
        return f"{reference}: a sha256 has 64 hexadecimal digits in lower case"
    if reference.model and reference.sha256:
        return f"{reference.model}: the catalogue pins its sha256; leave it out here"
    return _hub_problem(reference.hub) if reference.hub else ""


def _hub_problem(written: str) -> str:
    found = _HUB.fullmatch(written)
    if found is None or ".." in PurePosixPath(found["file"]).parts or found["file"][0] == "/":
        return f"{written!r}: a file of the hub is written REPO@REV/FILE, as owner/name@REV/x.gguf"
    if not _REVISION.fullmatch(found["revision"]):
        return (
            f"{written!r}: a revision has 40 hexadecimal digits; {found['revision']!r} may be"
            " another file tomorrow"
        )
    return ""


def resolve(
    reference: Reference,
    *,
    models_dir: Path | None = None,
    sources: Sources | None = None,
    progress: Progress | None = None,
    memory_bytes: int | None = None,
) -> Resolved:
    """Bring the referenced model to this machine, verify it, and say where it is.

    sources: where files may come from; by default what the environment says. Costs the sha256 of
    a file that is here already (0.6 s a gigabyte). memory_bytes: what the default model may take;
    None asks the system. Raises ModelUnavailable with one sentence.
    """
    if wrong := problem(reference):
        raise ModelUnavailable(wrong)
    models_dir = models_dir or default_models_dir()
    sources = sources or Sources.from_environment()
    if reference.path:
        return _resolve_path(reference, models_dir)
    if reference.hub:
        return _resolve_hub(reference, models_dir, sources, progress)
    if reference.model == DEFAULT:
        return _resolve_default(models_dir, sources, progress, memory_bytes)
    return _resolve_model(reference.model, models_dir, sources, progress)


def _resolve_model(
    name: str, models_dir: Path, sources: Sources, progress: Progress | None, missed: str = ""
) -> Resolved:
    folder = ensure(name, models_dir=models_dir, sources=sources, progress=progress)
    entry = load_catalogue()[name]
    file = entry.files.get(MODEL_FILE)
    return Resolved(
        name=name,
        folder=folder,
        origin=read_origin(folder) or entry.origin,
        sha256=file.sha256 if file is not None else "",
        missed=missed,
    )


def default_candidate(
    models_dir: Path | None = None, memory_bytes: int | None = None
) -> tuple[str, str]:
    """The first default model that this machine has room for, and what the better ones lack.

    The last one is not asked about: it says itself what it needs. Fetches nothing.
    """
    missed: list[str] = []
    for name in DEFAULT_MODELS[:-1]:
        lack = shortage(load_catalogue()[name], models_dir, memory_bytes=memory_bytes)
        if not lack:
            return name, "; ".join(missed)
        missed.append(lack)
    return DEFAULT_MODELS[-1], "; ".join(missed)


def _resolve_default(
    models_dir: Path, sources: Sources, progress: Progress | None, memory_bytes: int | None
) -> Resolved:
    """The first default model that has room and can be had: here already or not is all the same."""
    first, lack = default_candidate(models_dir, memory_bytes)
    missed = [lack] if lack else []
    for name in DEFAULT_MODELS[DEFAULT_MODELS.index(first) :]:
        try:
            return _resolve_model(name, models_dir, sources, progress, "; ".join(missed))
        except ModelUnavailable as error:
            missed.append(str(error))
    raise ModelUnavailable(
        f"no local model can be had, so the gateway answers without one: {'; '.join(missed)}"
    )


def _resolve_path(reference: Reference, models_dir: Path) -> Resolved:
    """A folder of the models folder with a link to the file: graphs are kept beside the link."""
    file = Path(reference.path).expanduser().absolute()
    try:
        found = file.is_file()
    except OSError as error:  # A name that is too long, for one.
        raise ModelUnavailable(f"{file} cannot be read: {error.strerror}") from error
    if not found:
        raise ModelUnavailable(f"{file}: there is no such file")
    if reference.sha256 and not matches(file, Digest(file.stat().st_size, reference.sha256)):
        raise ModelUnavailable(f"{file} is not the pinned file: its sha256 differs")
    place = hashlib.sha256(str(file).encode("utf-8", "surrogateescape")).hexdigest()[:8]
    folder = models_dir / "files" / f"{file.stem}-{place}"
    pinned = {MODEL_FILE: reference.sha256} if reference.sha256 else {}
    origin = Origin(model=file.stem, source=str(file), sha256=pinned)
    with locked(models_dir, f"files-{folder.name}"):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            link = folder / MODEL_FILE
            if not (link.is_symlink() and link.readlink() == file):
                link.unlink(missing_ok=True)
                link.symlink_to(file)
            write_origin(folder, origin)
        except OSError as error:
            raise ModelUnavailable(f"{folder} cannot be written: {error}") from error
    return Resolved(name=file.stem, folder=folder, origin=origin, sha256=reference.sha256)


def _resolve_hub(
    reference: Reference, models_dir: Path, sources: Sources, progress: Progress | None
) -> Resolved:
    found = _HUB.fullmatch(reference.hub)
    assert found is not None, "problem() has looked at it"
    repo, revision, path = found["repo"], found["revision"], found["file"]
    name = PurePosixPath(path).stem
    place = path.removesuffix(".gguf").replace("/", "--")
    folder = models_dir / "hub" / repo.replace("/", "--") / revision / place
    target = folder / MODEL_FILE
    with locked(models_dir, f"hub-{repo.replace('/', '--')}-{revision[:12]}-{place}"):
        known = read_origin(folder)
        recorded = known.sha256.get(MODEL_FILE, "") if known is not None else ""
        sha256 = reference.sha256 or recorded
        if known is not None and sha256 and target.is_file():
            digest = Digest(target.stat().st_size, sha256)
            if matches(target, digest):
                return Resolved(name=name, folder=folder, origin=known, sha256=sha256)
        if not sources.allows("hub"):
            raise ModelUnavailable(
                f"{reference.hub} is not on this machine, and models.sources leaves out the hub"
            )
        url = hub_address(repo, revision, path)
        digest = published_digest(url, reference.sha256, name=path)
        fetch(url, target, digest, name=name, source="hub", progress=progress)
        origin = Origin(
            model=name,
            publisher=repo.split("/")[0],
            repository=repo,
            revision=revision,
            remark=f"published as {path}; its licence stands in the repository",
            source="hub",
            sha256={MODEL_FILE: digest.sha256},
        )
        try:
            write_origin(folder, origin)
        except OSError as error:
            raise ModelUnavailable(f"{folder} cannot be written: {error}") from error
    return Resolved(name=name, folder=folder, origin=origin, sha256=digest.sha256)
