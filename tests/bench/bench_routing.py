"""Routing, measured: ``PYTHONPATH=. python tests/bench/bench_routing.py DATA=/path``.

APGR, CPT(50) and CPT(80) on unseen exam rows beside random and length, with bootstrap intervals and
calibration error; the reference implementation's figures where DATA holds one; and the latency.
"""

import gzip
import importlib.util
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from gateway.policy.snapshot import QualityTarget
from gateway.routing import Router
from gateway.routing.heads import Floats
from gateway.routing.metrics import apgr, bootstrap, cpt, expected_calibration_error
from gateway.routing.train import SOURCES, read, train

SMALL, LARGE = "mixtral-8x7b-instruct-v0.1", "gpt-4-1106-preview"
TARGET = QualityTarget(quality=0.95, until_then="prior")


def main() -> None:
    """Print one table per data set, then the latency."""
    folder = Path(dict(argument.split("=", 1) for argument in sys.argv[1:])["DATA"])
    reference = _reference(folder / "score.py")
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}")
    only_gold = tuple(source for source in SOURCES if source.file == "mmlu_gold")
    rows = read(folder, only_gold, with_anchors=False)
    routers = {
        "shipped prior, reference pair": Router.shipped(small_offset=0.0),
        "shipped prior, default small": Router.shipped(),
        "trained on mmlu_gold only": Router(
            train(rows, trained_on=("mmlu_gold",), penalty=1_000.0), small_offset=0.0
        ),
    }
    for name in ("mmlu_dev", "gsm8k_dev"):
        _report(folder, name, routers, reference)
    _latency(routers["shipped prior, default small"])


def _report(folder: Path, name: str, routers: dict[str, Router], reference: Any) -> None:
    with gzip.open(folder / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    small = np.array([row["labels"][SMALL] for row in rows], dtype=float)
    large = np.array([row["labels"][LARGE] for row in rows], dtype=float)
    print(f"\n{name}: {len(rows)} rows, small {small.mean():.3f}, large {large.mean():.3f}")
    rng = np.random.default_rng(0)
    lengths = np.array([len(row["prompt"]) for row in rows], dtype=float)
    _line("random", rng.random(len(rows)), small, large, reference)
    _line("length", lengths, small, large, reference)
    for label, router in routers.items():
        scores = [router.score(row["prompt"], uncertain_around=TARGET) for row in rows]
        gaps = np.array([score.gap for score in scores])
        _line(label, gaps, small, large, reference)
        p_small = np.array([score.p_small for score in scores])
        p_large = np.array([score.p_large for score in scores])
        sent = sum(router.decide(score, TARGET).small for score in scores)
        print(
            f"    calibration error: small {expected_calibration_error(p_small, small):.3f}, "
            f"large {expected_calibration_error(p_large, large):.3f}; "
            f"sent small at quality 0.95: {sent} of {len(rows)}"
        )


def _line(label: str, ranking: Floats, small: Floats, large: Floats, reference: Any) -> None:
    low, high = bootstrap(apgr, ranking, small, large, rng=np.random.default_rng(1))
    text = (
        f"  {label:32s} APGR {apgr(ranking, small, large):.3f} [{low:.3f}, {high:.3f}]  "
        f"CPT50 {cpt(ranking, small, large, 0.5):.1f}  CPT80 {cpt(ranking, small, large, 0.8):.1f}"
    )
    if reference is not None:
        text += (
            f"   reference: {reference.apgr(ranking, small, large):.3f} "
            f"{reference.cpt(ranking, small, large, 0.5):.1f} "
            f"{reference.cpt(ranking, small, large, 0.8):.1f}"
        )
    print(text)


def _latency(router: Router) -> None:
    text = ("The committee met twice in 1998 and voted on section 4. " * 10)[:500]
    spent = []
    for _ in range(3_000):
        began = time.perf_counter()
        router.score(text, uncertain_around=TARGET)
        spent.append((time.perf_counter() - began) * 1e6)
    low, high = np.quantile(spent, [0.5, 0.99])
    began = time.perf_counter()
    Router.shipped()
    load_ms = (time.perf_counter() - began) * 1e3
    print(f"\nscore of 500 characters: p50 {low:.0f} us, p99 {high:.0f} us; load {load_ms:.1f} ms")


def _reference(path: Path) -> Any:
    """An independent implementation, if there is one and it can be imported."""
    spec = importlib.util.spec_from_file_location("routing_reference", path)
    if spec is None or spec.loader is None or not path.exists():
        return None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ImportError:
        # Its quantile harness wants pandas, its exact curve only numpy: read the latter alone.
        source = path.read_text("utf-8").replace(", pandas as pd", "")
        exec(compile(source, str(path), "exec"), module.__dict__)
    return module


if __name__ == "__main__":
    main()
