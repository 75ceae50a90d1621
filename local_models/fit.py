"""Whether a model fits into the memory that is free, told before anything large is allocated.

Knows sizes; does not know formats or graphs.
"""

from pathlib import Path

from local_models.family import Shape
from local_models.gguf import GgufFile
from local_models.memory import need_of
from local_models.messages import ModelUnavailable

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
