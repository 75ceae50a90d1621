"""Keep a model's ONNX graph beside its GGUF file, built once for each choice of options.

Knows files and folders; what the graph computes stands in decoder_graph.py.
"""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

import msgspec

from local_models import fused_products
from local_models.decoder_graph import DecoderGraph, Options
from local_models.gguf import GgufFile
from local_models.messages import ModelUnavailable
from local_models.origins import Origin, read_origin, write_origin

CONVERTER_VERSION = 4
"""Raise it when the same GGUF file must give another graph: every cached graph is then rebuilt."""

GRAPHS_MAX = 6
"""Graphs kept beside a model, the newest.

One of ONNX Runtime's own operators takes about as much room as the model, a fused one nearly none.
"""


def can_be_fused(gguf: GgufFile) -> bool:
    """Whether our operators take every matrix of the decoder's blocks."""
    blocks = (tensor for name, tensor in gguf.tensors.items() if name.startswith("blk."))
    return all(fused_products.can_be_fused(t) for t in blocks if len(t.shape) == 2)


def ensure_graph(gguf_path: Path, options: Options) -> Path:
    """Path of the model's ONNX graph, built when there is none for this file and these options.

    Graphs lie in ``graphs/`` beside the file, each in a folder named by what it was made from;
    a folder appears complete or not at all. Raises InvalidModel, or ModelUnavailable when it
    cannot be written.
    """
    made_from = hashlib.sha256(f"{CONVERTER_VERSION} {options}".encode())
    with gguf_path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    made_from.update(digest.digest())
    folder = gguf_path.parent / "graphs" / made_from.hexdigest()[:16]
    if not folder.is_dir():
        try:
            _build(gguf_path, digest.hexdigest(), options, folder)
        except OSError as error:
            raise ModelUnavailable(f"the graph cannot be kept in {folder}: {error}") from error
    return folder / "model.onnx"


def _build(gguf_path: Path, sha256: str, options: Options, folder: Path) -> None:
    folder.parent.mkdir(exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))
    try:
        DecoderGraph(GgufFile(gguf_path), options, scratch, gguf_path).write()
        write_origin(scratch, _changed_copy(gguf_path, sha256))
        os.rename(scratch, folder)
    except OSError:
        if not folder.is_dir():  # Another process may have been faster; its graph is ours.
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    # Also what a killed process left half-built; a graph in use stays mapped until it is closed.
    built = sorted(folder.parent.iterdir(), key=_changed_ns, reverse=True)
    for old in built[GRAPHS_MAX:]:
        shutil.rmtree(old, ignore_errors=True)


def _changed_copy(gguf_path: Path, sha256: str) -> Origin:
    """The graph's record: whose weights they were, and that these are not the publisher's bytes."""
    original = read_origin(gguf_path.parent) or Origin(model=gguf_path.parent.name)
    return msgspec.structs.replace(
        original,
        changed=True,
        remark=f"changed by tollhouse: repacked as an ONNX graph from the {gguf_path.name} whose"
        f" sha256 stands here; {original.remark or 'no more is known'}",
        sha256={gguf_path.name: sha256},
    )


def _changed_ns(path: Path) -> int:
    """When a folder was last changed; 0 where somebody has just removed it."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
