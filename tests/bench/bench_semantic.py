"""The caches, measured: ``PYTHONPATH=. python tests/bench/bench_semantic.py DATA=/path``.

Agreement with the tables of request pairs (exact keys, eligibility), false hits and recall per kind
of question pair, and the latency of keys and look-ups. The embedding model is the catalogue's.
"""

import gzip
import json
import platform
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from gateway.caches.entry import StoredAnswer
from gateway.caches.exact import exact_key
from gateway.caches.semantic import SemanticCache, eligible, facets, partition_key, verifier
from gateway.caches.semantic.cache import COSINE_FLOOR
from gateway.wire.canonical import canonical_body
from gateway.wire.openai import parse_request
from gateway.wire.usage import Usage
from local_models.catalogue import ensure
from local_models.embedder import Embedder

PAIRS_PER_KIND_MAX = 1_500


def main() -> None:
    """Print one block per question."""
    folder = Path(dict(argument.split("=", 1) for argument in sys.argv[1:])["DATA"])
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}")
    _exact(_rows(folder / "requests_exact_dev.jsonl.gz"))
    _eligibility(_rows(folder / "requests_semantic_dev.jsonl.gz"))
    embedder = Embedder.load(ensure("all-minilm-l6-v2"))
    _pairs(_rows(folder / "pairs_dev.jsonl.gz"), embedder)
    _latency()


def _rows(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _exact(rows: list[dict[str, Any]]) -> None:
    agree = 0
    for row in rows:
        keys = [_exact_key(row[side]) for side in ("a", "b")]
        right = (keys[0] == keys[1]) is row["same_exact_key"]
        agree += right
        if not right:
            print("  exact key:", row["reason"])
    print(f"exact keys: {agree} of {len(rows)} agree")


def _exact_key(request: dict[str, Any]) -> bytes:
    headers = request["headers"]
    scope = f"user:{headers['x-user']}" if headers.get("x-cache-scope") == "user" else "tenant"
    return exact_key(
        tenant_secret=request["tenant"].encode(),
        scope=scope,
        route_identity=b"route",
        canonical=canonical_body(parse_request("chat", orjson.dumps(request["body"]))),
    )


def _eligibility(rows: list[dict[str, Any]]) -> None:
    agree = 0
    for row in rows:
        one, other = (parse_request("chat", orjson.dumps(row[side])) for side in ("a", "b"))
        may = eligible(one) is None and eligible(other) is None and _same_partition(one, other)
        agree += may is row["semantic_may_match"]
        if may is not row["semantic_may_match"]:
            print("  eligibility:", row["reason"], "|", eligible(one), "|", eligible(other))
    print(f"eligibility: {agree} of {len(rows)} agree")


def _same_partition(one: Any, other: Any) -> bool:
    keys = [
        partition_key(tenant_secret=b"s", scope="tenant", route_identity=b"route", parsed=parsed)
        for parsed in (one, other)
    ]
    return keys[0] == keys[1]


def _pairs(rows: list[dict[str, Any]], embedder: Embedder) -> None:
    """Kinds of one source share a table; positives show recall, negatives the false-hit rate."""
    kinds: dict[tuple[str, str, int], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        kind = kinds[row["src"], row["kind"], row["label"]]
        if len(kind) < PAIRS_PER_KIND_MAX:
            kind.append(row)
    judge = verifier.shipped()
    wrong = hits = 0
    print(f"{'pairs':46s} {'rows':>5s} {'cosine>0.8':>10s} {'served':>8s}")
    for (source, name, label), chosen in sorted(kinds.items()):
        texts = sorted({row[side] for row in chosen for side in ("a", "b")})
        parts = [embedder.embed(texts[i : i + 32])[0] for i in range(0, len(texts), 32)]
        vectors = dict(zip(texts, np.vstack(parts), strict=True))
        near = served = 0
        for row in chosen:
            cosine = float(vectors[row["a"]] @ vectors[row["b"]])
            near += cosine > 0.8
            served += _served(judge, row["a"], row["b"], cosine)
        share, served_share = near / len(chosen), served / len(chosen)
        kind_name = f"{source} {name} ({'same' if label else 'different'})"
        print(f"{kind_name:46s} {len(chosen):5d} {share:10.3f} {served_share:8.3f}")
        if source == "advA":
            hits += served
            wrong += served * (1 - label)
    print(f"generated kinds: {wrong} wrong of {hits} hits")


def _served(judge: verifier.Verifier, left: str, right: str, cosine: float) -> bool:
    """As the cache decides, for texts that are not too long to be asked about."""
    if cosine < COSINE_FLOOR:
        return False
    one, other = facets.extract(left), facets.extract(right)
    if facets.conflict(one, other) is not None:
        return False
    return judge.probability(one, other, cosine) >= judge.threshold_for(0.01)


def _latency() -> None:
    rng = np.random.default_rng(0)
    body = {"model": "auto", "messages": [{"role": "user", "content": "word " * 190}], "seed": 1}
    parsed = parse_request("chat", orjson.dumps(body))
    _timed("canonical body of 1 KB", lambda: canonical_body(parsed))
    for entries in (1_000, 10_000):
        cache = SemanticCache(entries_per_namespace_max=20_000, namespaces_max=1)
        vectors = rng.standard_normal((entries, 384)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        for number, vector in enumerate(vectors):
            cache.store(b"p", f"What is {number} plus 1?", vector, _entry(str(number)))

        def hit(cache: SemanticCache = cache, vector: Any = vectors[500]) -> object:
            return cache.lookup(b"p", "What is 500 plus 1?", vector, now_us=0, max_wrong=0.01)

        assert hit() is not None
        _timed(f"semantic hit among {entries:,}", hit)


def _timed(name: str, call: Any, rounds: int = 1_000) -> None:
    spent = []
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        spent.append((time.perf_counter() - began) * 1e6)
    low, high = np.quantile(spent, [0.5, 0.99])
    print(f"{name}: p50 {low:.0f} us, p99 {high:.0f} us")


def _entry(cache_id: str) -> StoredAnswer:
    return StoredAnswer(
        answer=b"{}",
        endpoint="chat",
        served_model="small",
        provider="local",
        usage=Usage(),
        stored_us=0,
        expires_us=10**18,
        cache_id=cache_id,
        route_identity=b"route",
        tenant_id="acme",
        writer_key_id="key",
    )


if __name__ == "__main__":
    main()
