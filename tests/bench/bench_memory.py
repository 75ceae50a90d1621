"""Memory of the model process when every slot holds a whole context.

    python -m tests.bench.bench_memory [--slots 4] [--context 2048] [--threads 2] NAME...

Starts the process as the gateway does, with one model and no embedder, and asks for as many
answers at once as there are slots. Prompt and answer fill the context; a regex keeps the answer
from ending, and the grammars' tables are in memory, too. Printed is what the kernel counts, once
loaded, at the end and at the highest, beside what the process had claimed.
"""

import argparse
import re
import tempfile
import time
from pathlib import Path

from local_models.messages import Constraint, GenerationRequest, SamplingParams
from local_models.protocol import Counted, CountTokens, Failed, FinishedFrame, Generate
from tests.local_models.test_model_process import Peer, listening, start, stop

ANSWER_TOKENS = 64
SILENCE_SECONDS = 900.0
"""The longest that reading all prompts may take: nothing is sent meanwhile."""

_MIB = 1 << 20


def status_mib(process: int, field: str) -> float:
    """A field of a process's status that the kernel gives in KiB."""
    text = Path(f"/proc/{process}/status").read_text()
    return int(re.findall(rf"{field}:\s+(\d+) kB", text)[0]) / 1024


def prompt_of(peer: Peer, tokens: int) -> str:
    """Different numbers, as many as make up to so many tokens."""
    count, text = tokens, ""
    while True:
        text = " ".join(str(number % 10) for number in range(count))
        peer.send(CountTokens(1, None, text))
        excess = peer.receive(Counted).tokens - tokens
        if excess <= 0:
            return text
        count -= max(1, excess // 2)


def measure(model: str, slots: int, context: int, threads: int) -> str:
    """One row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "process.sock"
        chosen = {"--slots": slots, "--context-tokens": context, "--threads": threads}
        more = tuple(str(part) for pair in chosen.items() for part in pair)
        process = start(path, model, more=more)
        try:
            while not listening(path):
                if process.poll() is not None:
                    raise SystemExit("the model process has ended")
                time.sleep(0.1)
            with Peer(path) as peer:
                peer.socket.settimeout(SILENCE_SECONDS)
                peer.until_ready()
                loaded = status_mib(process.pid, "VmRSS")
                claim = int(re.findall(r", (\d+)\]", (path.parent / "memory.json").read_text())[0])
                prompt = prompt_of(peer, context - ANSWER_TOKENS)
                request = GenerationRequest(
                    request_id="full",
                    prompt=prompt,
                    params=SamplingParams(max_tokens=ANSWER_TOKENS, temperature=0),
                    constraint=Constraint("regex", f"[0-9]{{{8 * ANSWER_TOKENS}}}"),
                )
                peer.send(*(Generate(slot, request, ANSWER_TOKENS) for slot in range(slots)))
                held = [held_tokens(peer) for _ in range(slots)]
                full = status_mib(process.pid, "VmRSS")
                peak = status_mib(process.pid, "VmHWM")
        finally:
            stop(process)
    return (
        f"| {model} | {slots} x {min(held):,} of {context:,} | {loaded:,.0f} | {full:,.0f} |"
        f" {peak:,.0f} | {claim / _MIB:,.0f} |"
    )


def held_tokens(peer: Peer) -> int:
    """Tokens in the slot of the next answer that ends."""
    while True:
        frame = peer.frame()
        if isinstance(frame, FinishedFrame):
            return frame.finished.prompt_tokens + frame.finished.completion_tokens
        if frame is None or isinstance(frame, Failed):
            raise SystemExit(f"no answer: {frame}")


def main() -> None:
    """Measure each model."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="+", help="names of the catalogue")
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    print("| MiB | slots x tokens held | loaded | full | highest | claimed |")
    print("|---|---|---|---|---|---|")
    for model in chosen.models:
        print(measure(model, chosen.slots, chosen.context, chosen.threads), flush=True)


if __name__ == "__main__":
    main()
