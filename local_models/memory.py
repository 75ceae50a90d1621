"""How much memory a model needs, said before it is loaded; and the bound that all models share.

The processes of one node keep their claims in one file. Knows sizes, files and process ids; does
not know what is said over sockets.
"""

import fcntl
import json
import os
from pathlib import Path
from typing import IO, TYPE_CHECKING

import msgspec

from local_models.messages import ModelUnavailable

if TYPE_CHECKING:
    from local_models.family import Shape

PROCESS_BYTES = 92 << 20
"""Python, NumPy, ONNX Runtime, our operators: 70 MB measured; 12 more once grammars are in use.

With 80, SmolLM2 used 335 MiB of 325 claimed: four slots of 512 tokens, all full, and a grammar.
"""

BYTES_PER_TOKEN = 1_300
"""Of the vocabulary, at the peak of loading: 1,100 (Qwen2.5) to 1,500 (SmolLM2) measured."""

MACHINE_SHARE = 0.75
"""Of the machine's memory, or of its control group's, where no bound is set."""

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_MIB = 1 << 20
Claim = tuple[int, str, int]
"""Process id, model, bytes."""


class Need(msgspec.Struct, frozen=True):
    """Bytes of one model at the most: weights with everything but the cache, and a full cache."""

    weights_bytes: int
    cache_bytes: int

    @property
    def total_bytes(self) -> int:
        """What is claimed."""
        return self.weights_bytes + self.cache_bytes


class DoesNotFit(ModelUnavailable):
    """A model needs more than is left. model, need_bytes: which, and how much in all."""

    model: str = ""
    need_bytes: int = 0


def need_of(file_bytes: int, shape: "Shape", *, slots: int, context_tokens: int) -> Need:
    """Estimate a decoder. Peaks of loading measured against it, in MiB, without cache:

    SmolLM2-135M 235 for 235, Qwen2.5-Coder-0.5B 700 for 737, 1.5B 1,315 for 1,334.
    """
    keys_and_values = 2 * shape.layers * shape.kv_heads * shape.head_dim * 4
    rows = slots * shape.vocabulary * 4  # of logits
    return Need(
        weights_bytes=PROCESS_BYTES + file_bytes + shape.vocabulary * BYTES_PER_TOKEN + rows,
        cache_bytes=slots * context_tokens * keys_and_values,
    )


def machine_bytes() -> int:
    """Memory of this machine, or what its control group allows where that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        allowed = _CGROUP_LIMIT.read_text().strip()
    except OSError:
        return total
    return min(total, int(allowed)) if allowed.isdigit() else total


class MemoryBound:
    """One bound for all processes that name the same file. Claims of dead processes are void."""

    def __init__(self, claims: Path, bound_bytes: int = 0) -> None:
        """bound_bytes: 0 is MACHINE_SHARE of the machine."""
        self._claims = claims
        self.bound_bytes = bound_bytes or int(machine_bytes() * MACHINE_SHARE)

    def claim(self, name: str, need: Need) -> None:
        """Note that this process will use so much. Raises DoesNotFit, with what there is."""
        with self._claims.open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            others = _others(file, name)
            if need.total_bytes > self.bound_bytes - _sum(others):
                raise _refusal(name, need, self.bound_bytes, others)
            file.truncate(0)
            file.write(json.dumps([*others, (os.getpid(), name, need.total_bytes)]))

    def left_bytes(self, name: str) -> int:
        """What is not claimed for other models than this process' ``name``."""
        with self._claims.open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            return self.bound_bytes - _sum(_others(file, name))


def _others(file: IO[str], name: str) -> list[Claim]:
    """The claims of processes that live, but for our own of that name."""
    file.seek(0)
    claims: list[Claim] = [(pid, of, taken) for pid, of, taken in json.loads(file.read() or "[]")]
    return [
        claim
        for claim in claims
        if claim[:2] != (os.getpid(), name) and Path(f"/proc/{claim[0]}").exists()
    ]


def _sum(claims: list[Claim]) -> int:
    return sum(taken for _, _, taken in claims)


def _refusal(name: str, need: Need, bound_bytes: int, others: list[Claim]) -> DoesNotFit:
    holders = ", ".join(sorted(of for _, of, _ in others)) or "nobody"
    error = DoesNotFit(
        f"{name} needs {_mib(need.total_bytes)} ({_mib(need.weights_bytes)} for its weights,"
        f" {_mib(need.cache_bytes)} for the cache of its slots), and of models.memory,"
        f" {_mib(bound_bytes)}, {_mib(bound_bytes - _sum(others))} are left (held by {holders}):"
        " raise models.memory, or give the model fewer slots or a smaller context"
    )
    error.model, error.need_bytes = name, need.total_bytes
    return error


def _mib(size_bytes: int) -> str:
    return f"{-(-size_bytes // _MIB):,} MiB"
