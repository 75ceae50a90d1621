"""Whether a model fits into the free memory and disk, told before anything large is done.

Knows sizes; does not know formats or graphs.
"""

import shutil
from pathlib import Path

from local_models.catalogue import ModelEntry, default_models_dir
from local_models.family import Shape
from local_models.gguf import GgufFile
from local_models.memory import need_of
from local_models.messages import ModelUnavailable

GRAPH_SHARE = 1.5
"""Of a file's size, for the graph that is kept beside it: 1.42 measured of ONNX Runtime's operators
(0.5B). Ours link to the file and take 0.002, but whether they can run is not known here."""

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def require_room(
    gguf: GgufFile, shape: Shape, *, slots: int, context_tokens: int, free_bytes: int | None = None
) -> None:
    """Raise ModelUnavailable, saying what is needed, where the model cannot fit.

    free_bytes: for tests; None asks the system. What is needed: ``memory.need_of``.
    """
    weights_bytes = sum(tensor.stored.nbytes for tensor in gguf.tensors.values())
    need = need_of(weights_bytes, shape, slots=slots, context_tokens=context_tokens)
    free_bytes = available_bytes() if free_bytes is None else free_bytes
    if free_bytes is not None and need.total_bytes > free_bytes:
        raise ModelUnavailable(
            f"the model does not fit: it needs {_gib(need.total_bytes)} of memory"
            f" ({_gib(weights_bytes)} for weights, {_gib(need.cache_bytes)} for {slots} slots of"
            f" {context_tokens} tokens), and {_gib(free_bytes)} are free; fewer slots or a shorter"
            " context need less"
        )


def shortage(
    entry: ModelEntry,
    models_dir: Path | None = None,
    *,
    memory_bytes: int | None = None,
    disk_bytes: int | None = None,
) -> str:
    """What this machine lacks to fetch and run a model of the catalogue; empty: nothing.

    One sentence, said before a download. memory_bytes, disk_bytes: what is free; None asks the
    system. A file or a graph that is here already takes no more disk.
    """
    folder = (models_dir or default_models_dir()) / entry.name
    memory_bytes = available_bytes() if memory_bytes is None else memory_bytes
    if memory_bytes is not None and entry.memory_bytes > memory_bytes:
        return (
            f"{entry.name} needs {_gib(entry.memory_bytes)} of memory, and {_gib(memory_bytes)}"
            " are free"
        )
    if disk_bytes is None:
        existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        disk_bytes = shutil.disk_usage(existing).free
    missing = 0 if is_here(entry, models_dir) else entry.size_bytes
    graph = 0 if any(folder.glob("graphs/*/*.onnx")) else int(entry.size_bytes * GRAPH_SHARE)
    if missing + graph > disk_bytes:
        return (
            f"{entry.name} needs {_gib(missing + graph)} on the disk that holds {folder.parent},"
            f" and {_gib(disk_bytes)} are free"
        )
    return ""


def is_here(entry: ModelEntry, models_dir: Path | None = None) -> bool:
    """Whether a model's files are on this machine, by size: a load computes the sha256."""
    folder = (models_dir or default_models_dir()) / entry.name
    files = ((folder / file, digest.size_bytes) for file, digest in entry.files.items())
    return all(file.is_file() and file.stat().st_size == size for file, size in files)


def available_bytes() -> int | None:
    """Memory that this process may still take; None where the system does not say."""
    limits = []
    try:
        lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
        limits.append(int(lines["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError, ValueError):
        pass
    try:
        most = int((_CGROUP / "memory.max").read_text())
        taken = int((_CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        # Pages of files are counted as taken and given back when somebody needs them.
        limits.append(most - taken + int(stat.get("file", 0)))
    except (OSError, ValueError):
        pass  # No limit ("max"), or no control group.
    return min(limits, default=None)


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.2f} GiB"
