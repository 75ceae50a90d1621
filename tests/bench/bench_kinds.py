"""How precise and how fast the kind detector is: other wordings, near misses, foreign prompts.

    python -m tests.bench.bench_kinds [--foreign prompts.jsonl.gz ...] [--keep]

Asks 1,000 tasks per kind in wordings that the rules were not written for, requests that only look
like a kind, tasks of the kinds that are never detected, and any files of prompts that are given
(one JSON object a line, with ``prompt``); prints what each kind's precision is. Of foreign files
every hit is printed: a person says in ``TRUE_HITS`` which of them are of their kind after all.
``--keep`` writes the counts from which the evidence per kind is computed.
"""

import argparse
import gzip
import json
import time
from collections import Counter
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import msgspec

from local_models.exam import evidence
from local_models.exam.detect import DETECTABLE, detect_text
from local_models.exam.generate import stream, tasks
from local_models.exam.kinds import KINDS
from local_models.exam.results import alpha_each
from local_models.exam.statistics import lower_bound
from local_models.exam.task import GENERATOR_VERSION
from tests.local_models.exam.other_wordings import FOREIGN, OTHER_WORDINGS

TRUE_HITS = frozenset({"What is the capital of Australia?"})
PER_KIND = 1_000


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--foreign", type=Path, nargs="*", default=[])
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args()
    found: Counter[str] = Counter()
    right: Counter[str] = Counter()
    recall: dict[str, float] = {}
    for kind in KINDS:
        if kind in DETECTABLE:
            prompts = [
                task.prompt
                for task in islice(stream(KINDS[kind], 31, OTHER_WORDINGS[kind]), PER_KIND)
            ]
        else:
            prompts = [task.prompt for task in tasks(kind, PER_KIND, 31)]
        kinds = [detect_text(prompt) for prompt in prompts]
        found.update(each for each in kinds if each is not None)
        right[kind] += kinds.count(kind)
        recall[kind] = kinds.count(kind) / len(kinds)
    foreign, times = 0, []
    for prompt in (*FOREIGN, *_prompts(options.foreign)):
        foreign += 1
        began = time.thread_time()
        taken = detect_text(prompt)
        times.append(time.thread_time() - began)
        if taken is not None:
            print(f"foreign, taken for {taken}: {prompt!r}")
            found[taken] += 1
            right[taken] += prompt in TRUE_HITS
    for kind in sorted(DETECTABLE):
        bound = lower_bound(right[kind], found[kind], alpha_each())
        print(
            f"{kind:16} found {found[kind]:5}  right {right[kind]:5}  bound {bound:.4f}"
            f"  of its own {recall[kind]:.3f}"
        )
    times.sort()
    print(
        f"{foreign} foreign; median {1e6 * times[len(times) // 2]:.0f} µs,"
        f" p99 {1e6 * times[int(0.99 * len(times))]:.0f} µs, longest {1e6 * times[-1]:.0f} µs"
    )
    if options.keep:
        kept = evidence.Detected(
            generator=GENERATOR_VERSION,
            day=datetime.now(UTC).date().isoformat(),
            foreign=foreign,
            kinds={kind: (found[kind], right[kind]) for kind in sorted(DETECTABLE)},
        )
        folder = Path(evidence.__file__).parent / "results"
        folder.mkdir(exist_ok=True)
        document = msgspec.json.format(msgspec.json.encode(kept), indent=1)
        (folder / evidence.DETECTOR_FILE).write_bytes(document + b"\n")


def _prompts(files: list[Path]) -> list[str]:
    rows = (
        json.loads(line)
        for file in files
        for line in gzip.decompress(file.read_bytes()).splitlines()
    )
    return [row["prompt"] for row in rows if isinstance(row.get("prompt"), str)]


if __name__ == "__main__":
    main()
