"""llama.cpp beside us: the parent's end of ``llama_child.py``."""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_CHILD = Path(__file__).with_name("llama_child.py")


class LlamaPeer:
    """One model in a process of its own. python: an interpreter that has llama-cpp-python."""

    def __init__(self, python: str, model: Path, *, threads: int, slots: int, context: int) -> None:
        self._process = subprocess.Popen(
            [python, str(_CHILD)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        wanted = {"path": str(model), "threads": threads, "slots": slots, "context": context}
        self._vocabulary, self.system = self.ask("open", **wanted)

    def ask(self, do: str, **wanted: Any) -> Any:
        """Have the child do one thing; its answer."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps({"do": do} | wanted).encode() + b"\n")
        stdin.flush()
        line = stdout.readline()
        if not line:
            raise SystemExit("llama.cpp's process has ended; its errors are above")
        return json.loads(line)

    def logits(self, tokens: list[int]) -> npt.NDArray[np.float32]:
        """Logits after each token: float32 [tokens, vocabulary]."""
        shape = self.ask("logits", tokens=tokens)
        stdout = self._process.stdout
        assert stdout is not None
        raw = stdout.read(4 * shape[0] * shape[1])
        return np.frombuffer(raw, np.float32).reshape(shape)

    def resident_mb(self) -> float:
        """Memory of its process now."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return next(int(line.split()[1]) / 1024 for line in status.splitlines() if "VmRSS" in line)

    def close(self) -> None:
        """End the child."""
        self._process.communicate()
