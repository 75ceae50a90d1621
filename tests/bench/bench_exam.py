"""The exam's tasks, free output, answered by llama.cpp on the same file: an independent engine.

    python -m tests.bench.bench_exam MODEL.gguf --tasks 60 --out answers.jsonl

Needs llama-cpp-python, which is no dependency of this repository. Prints right answers per kind,
lenient and strict; ``--out`` keeps each answer, goes on where an earlier run ended, and lets one
look at what was judged. Compare with ``tollhouse models exam``, which asks our engine the same.
"""

import argparse
import json
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from local_models.exam.generate import SEED, tasks
from local_models.exam.kinds import KINDS


def main() -> None:
    """Ask, judge, print."""
    options = _options()
    answered = _read(options.out)
    llama = import_module("llama_cpp").Llama(
        model_path=str(options.model),
        n_ctx=2048,
        n_threads=options.threads,
        n_threads_batch=options.threads,
        verbose=False,
    )
    until_seconds = time.monotonic() + options.seconds
    with options.out.open("a") as out:
        for number in range(options.tasks):
            for kind in options.kinds:
                if (kind, number) in answered:
                    continue
                if time.monotonic() > until_seconds:
                    break
                task = tasks(kind, number + 1, options.seed)[number]
                reply: Any = llama.create_chat_completion(
                    messages=[{"role": "user", "content": task.prompt}],
                    temperature=0.0,
                    max_tokens=task.max_tokens,
                    repeat_penalty=1.0,
                )
                text = reply["choices"][0]["message"]["content"] or ""
                answered[kind, number] = text
                print(json.dumps({"kind": kind, "number": number, "answer": text}), file=out)
    _table(answered, options.seed)


def _table(answered: dict[tuple[str, int], str], seed: int) -> None:
    shares = []
    for kind in KINDS:
        numbers = sorted(number for name, number in answered if name == kind)
        if not numbers:
            continue
        made = tasks(kind, numbers[-1] + 1, seed)
        verdicts = [made[number].judge(answered[kind, number]) for number in numbers]
        lenient = sum(verdict.lenient for verdict in verdicts)
        strict = sum(verdict.strict for verdict in verdicts)
        shares.append(lenient / len(verdicts))
        print(f"{kind:16} {len(verdicts):4}  lenient {lenient:4}  strict {strict:4}")
    print(f"mean over {len(shares)} kinds, lenient: {sum(shares) / max(1, len(shares)):.3f}")


def _read(path: Path) -> dict[tuple[str, int], str]:
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {(row["kind"], row["number"]): row["answer"] for row in rows}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tasks", type=int, default=60)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=100_000.0)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
