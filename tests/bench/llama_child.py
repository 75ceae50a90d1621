"""llama.cpp as a child process: what it is told on stdin, it does and answers on stdout.

Runs under a Python that has llama-cpp-python, so it imports nothing of this repository but NumPy.
One JSON object a line; an answer is one line too, and for ``logits`` the float32 rows behind it.
"""

import importlib
import json
import sys
import time
from typing import Any

import numpy as np
import numpy.typing as npt

Row = tuple[int, int, int, bool]
"""Token, position, sequence, and whether its logits are wanted."""


class Llama:
    """One model with a cache of ``slots`` sequences. Float16 cache and defaults otherwise."""

    def __init__(self, path: str, threads: int, slots: int, context: int) -> None:
        self._api: Any = importlib.import_module("llama_cpp")
        api = self._api
        self._quiet = api.llama_log_callback(lambda *_: None)
        api.llama_log_set(self._quiet, None)
        api.llama_backend_init()
        self._model = api.llama_model_load_from_file(
            path.encode(), api.llama_model_default_params()
        )
        chosen = api.llama_context_default_params()
        chosen.n_ctx = context * slots
        chosen.n_batch = chosen.n_ubatch = 512
        chosen.n_threads = chosen.n_threads_batch = threads
        chosen.n_seq_max = slots
        self._context = api.llama_init_from_model(self._model, chosen)
        self._memory = api.llama_get_memory(self._context)
        self._begins: dict[int, list[int]] = {}
        self.vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model))

    def system(self) -> str:
        """What it was built with and found: version and instruction sets."""
        found: bytes = self._api.llama_print_system_info()
        return f"llama-cpp-python {self._api.__version__}: {found.decode().strip()}"

    def run(self, rows: list[Row]) -> None:
        """One step."""
        api = self._api
        batch = api.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.logits[i] = wanted
        failed = api.llama_decode(self._context, batch)
        api.llama_synchronize(self._context)
        api.llama_batch_free(batch)
        if failed:
            raise SystemExit(f"llama_decode: {failed}")

    def forget(self, sequence: int, begin: int) -> None:
        """Drop a sequence's positions from ``begin`` on."""
        self._api.llama_memory_seq_rm(self._memory, sequence, begin, -1)

    def row(self, index: int) -> npt.NDArray[np.float32]:
        """Logits of the step's row, float32 [vocabulary], valid until the next step."""
        found = self._api.llama_get_logits_ith(self._context, index)
        logits: npt.NDArray[np.float32] = np.ctypeslib.as_array(found, (self.vocabulary,))
        return logits

    def prefill_seconds(self, tokens: list[int]) -> float:
        """Time of one prompt in sequence 0."""
        self.forget(0, 0)
        last = len(tokens) - 1
        rows = [(token, i, 0, i == last) for i, token in enumerate(tokens)]
        begin = time.perf_counter()
        self.run(rows)
        self._begins[0] = tokens
        return time.perf_counter() - begin

    def decode_seconds(self, prompt: list[int], batch: int, steps: int) -> list[float]:
        """Times of greedy steps of ``batch`` sequences behind one prompt."""
        for sequence in range(batch):
            if self._begins.get(sequence, [])[: len(prompt)] != prompt:
                self.forget(sequence, 0)
                self.run([(token, i, sequence, False) for i, token in enumerate(prompt)])
                self._begins[sequence] = prompt
            self.forget(sequence, len(prompt))
        tokens, times = [prompt[-1]] * batch, []
        for step in range(steps):
            begin = time.perf_counter()
            self.run([(tokens[s], len(prompt) + step, s, True) for s in range(batch)])
            tokens = [int(self.row(s).argmax()) for s in range(batch)]
            times.append(time.perf_counter() - begin)
        return times

    def logits(self, tokens: list[int]) -> npt.NDArray[np.float32]:
        """Logits after each token of a sequence: float32 [tokens, vocabulary]."""
        self.forget(0, 0)
        self.run([(token, i, 0, True) for i, token in enumerate(tokens)])
        return np.stack([self.row(i) for i in range(len(tokens))])


def main() -> None:
    """Serve until stdin ends."""
    llama: Llama | None = None
    for line in sys.stdin:
        wanted = json.loads(line)
        do = wanted.pop("do")
        rows = None
        if do == "open":
            llama = Llama(**wanted)
            answer: Any = [llama.vocabulary, llama.system()]
        else:
            answer = getattr(llama, do)(**wanted)
            if do == "logits":
                rows, answer = answer, answer.shape
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        if rows is not None:
            sys.stdout.buffer.write(rows.tobytes())
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
