"""What an exam proves of a local model's answers, for whoever routes: the door to the exam.

Knows the catalogue's digests and the shipped results. Does not know requests' routes, nor what a
policy does with a proof.
"""

import logging
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import msgspec

from gateway.policy.snapshot import LocalRuntime, Model, Policy, QualityTarget
from local_models.catalogue import load_catalogue
from local_models.exam.detect import detect
from local_models.exam.evidence import evidence
from local_models.exam.results import BadResult
from local_models.exam.statistics import CONFIDENCE
from local_models.exam.task import Form

_log = logging.getLogger(__name__)

_GENERATION_FILE = "model.gguf"


class Proven(msgspec.Struct, frozen=True):
    """A request's kind, and the least share of right answers that the exam proves for it."""

    kind: str
    bound: float
    tasks: int

    @property
    def reason(self) -> str:
        """The sentence for admins. Never "measured on your traffic": it is not."""
        return f"by exam: {self.kind}, at least {self.bound:.1%} right of {self.tasks} tasks"


def proven(
    model: Model, target: QualityTarget, messages: object, *, constrained: bool
) -> Proven | None:
    """The proof that ``model`` keeps the target on these messages; None is the usual answer.

    A share of right answers of at least ``quality`` is at least that share of the large model's,
    which is right at most always. Some 30 µs where anything is proven, else none.
    """
    if target.quality is None or model.provider.api != "local" or not isinstance(messages, list):
        return None
    form: Form = "constrained" if constrained else "free"
    kinds = _kinds(model.provider.runtime, form, target.quality, target.confidence)
    if not kinds:
        return None
    kind = detect(_plain(messages))
    return kinds.get(kind) if kind is not None else None


def kinds_proven(model: Model, target: QualityTarget) -> tuple[str, ...]:
    """Kinds that free output keeps the target on, for pages and commands."""
    if target.quality is None or model.provider.api != "local":
        return ()
    return tuple(_kinds(model.provider.runtime, "free", target.quality, target.confidence))


def prepare(policy: Policy) -> None:
    """Read what exams prove for a policy's routes, before requests wait for it: some 100 ms."""
    for route in policy.routes:
        if route.small is not None and route.target.until_then == "exam":
            for constrained in (False, True):
                proven(route.small, route.target, [], constrained=constrained)


def _plain(messages: Iterable[Any]) -> Iterable[Mapping[str, Any]]:
    return (message for message in messages if isinstance(message, dict))


@cache
def _kinds(
    runtime: LocalRuntime, form: Form, quality: float, confidence: float
) -> dict[str, Proven]:
    """Bounded: one entry per provider and target of the policies of this process."""
    if confidence >= 1.0 or quality <= 0.0:
        return {}
    digest = _digest(runtime)
    try:
        proofs = evidence(digest, form, max(confidence, CONFIDENCE), quality) if digest else {}
    except BadResult as error:
        _log.warning("no exam counts for %s: %s", runtime.reference, error)
        return {}
    return {
        kind: Proven(kind, proof.bound, proof.tasks)
        for kind, proof in proofs.items()
        if proof.bound >= quality
    }


@cache
def _digest(runtime: LocalRuntime) -> str:
    """Of the file that runs; empty where only the model process will know."""
    if not runtime.model:
        return runtime.sha256
    entry = load_catalogue().get(runtime.model)
    file = entry.files.get(_GENERATION_FILE) if entry is not None else None
    return file.sha256 if file is not None else ""
