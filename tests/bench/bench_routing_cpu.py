"""What judging a prompt by its text costs: ``python -m tests.bench.bench_routing_cpu``.

CPU time of this thread per request, in µs, over texts that are never the same twice: the features,
the score made of them, and the whole of ``assess``'s question to the router.
"""

import platform
import time
from collections.abc import Callable
from statistics import quantiles

from gateway.policy.snapshot import QualityTarget
from gateway.routing import Router
from gateway.routing.features import extract
from tests.bench.gateway_prompts import LONG

TARGET = QualityTarget(quality=0.95, until_then="prior")
LENGTHS = (100, 500, 2_000, 8_000)
ROUNDS, PER_ROUND = 300, 10


def prompt(characters: int, number: int) -> str:
    """A text of so many characters that ends with its number."""
    tail = f" is case {number:012d}."
    return (LONG * (characters // len(LONG) + 1))[: characters - len(tail)] + tail


def cpu_us(work: Callable[[str], object], characters: int) -> list[float]:
    """CPU time per call, one figure per round, after a tenth of warm-up."""
    spent = []
    for round_number in range(ROUNDS + ROUNDS // 10):
        texts = [prompt(characters, round_number * PER_ROUND + i) for i in range(PER_ROUND)]
        began = time.thread_time_ns()
        for text in texts:
            work(text)
        spent.append((time.thread_time_ns() - began) / PER_ROUND / 1_000)
    return spent[ROUNDS // 10 :]


def main() -> None:
    """Print one line per length."""
    router = Router.shipped()

    def decide(text: str) -> object:
        return router.decide(router.score(text, uncertain_around=TARGET), TARGET)

    print(f"{platform.machine()}, Python {platform.python_version()}; CPU µs, p50 (p10-p90)")
    print(f"{'characters':>10}{'features':>22}{'score and decision':>22}")
    for characters in LENGTHS:
        columns = []
        for work in (extract, decide):
            tenths = quantiles(cpu_us(work, characters), n=10)
            columns.append(f"{tenths[4]:.1f} ({tenths[0]:.1f}-{tenths[8]:.1f})")
        print(f"{characters:>10,}" + "".join(f"{column:>22}" for column in columns))


if __name__ == "__main__":
    main()
