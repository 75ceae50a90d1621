"""What an exam proves of a local model file's answers: the door to the exam, for all who route.

Knows the catalogue's digests and the shipped results, and a policy's ``until_then: exam``.
"""

import logging
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import msgspec

from gateway.policy.snapshot import Model, Policy, QualityTarget, Route
from gateway.policy.targets import Decision
from gateway.wire.openai import ParsedRequest
from local_models.catalogue import load_catalogue
from local_models.exam.detect import detect
from local_models.exam.evidence import evidence
from local_models.exam.forms import asked_so
from local_models.exam.results import BadResult
from local_models.exam.statistics import CONFIDENCE
from local_models.exam.task import Form

_log = logging.getLogger(__name__)

_GENERATION_FILE = "model.gguf"

# The exam took the model's likeliest token: what another choice would answer, it does not tell.
_DRAWN = frozenset({"frequency_penalty", "presence_penalty", "logit_bias", "structured_outputs"})


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
    sha256: str, target: QualityTarget, messages: object, *, constrained: bool
) -> Proven | None:
    """The proof that a model file keeps the target on these messages; None is the usual answer.

    sha256: of the file; empty where it is not known, which proves nothing. A share of right answers
    of at least ``quality`` is at least that share of the large model's, which is right at most
    always. Some 30 µs where anything is proven, else none.
    """
    if not sha256 or target.quality is None or not isinstance(messages, list):
        return None
    form: Form = "constrained" if constrained else "free"
    kinds = _kinds(sha256, form, target.quality, target.confidence)
    if not kinds:
        return None
    kind = detect(_plain(messages))
    return kinds.get(kind) if kind is not None else None


def decide_by_exam(sha256: str, route: Route, request: ParsedRequest) -> Decision | None:
    """Small where an exam proves the request's kind to keep the route's target; None: undecided.

    Only of requests as the exam asks: temperature 0, and free or with the same form of a schema.
    sha256: of the small model's file; empty where it is not known, which proves nothing.
    """
    quality = route.target.quality
    if route.target.until_then != "exam" or quality is None or request.endpoint != "chat":
        return None
    if request.has_tools or request.temperature != 0 or not _DRAWN.isdisjoint(request.body):
        return None
    constrained = request.has_json_format
    messages = request.body.get("messages")
    found = proven(sha256, route.target, messages, constrained=constrained)
    if found is None or (constrained and not asked_so(found.kind, _schema(request.body))):
        return None
    return Decision(
        small=True,
        difficulty=1.0 - found.bound,
        threshold=1.0 - quality,
        reason=found.reason,
        exam=found.kind,
    )


def _schema(body: Mapping[str, Any]) -> object:
    """The JSON Schema that a request's answer must keep; None where there is none."""
    form = body.get("response_format")
    named = form.get("json_schema") if isinstance(form, dict) else None
    return named.get("schema") if isinstance(named, dict) else None


def kinds_proven(
    sha256: str, target: QualityTarget, *, constrained: bool = False
) -> tuple[str, ...]:
    """Kinds of which a model file keeps the target, for pages and commands."""
    if not sha256 or target.quality is None:
        return ()
    form: Form = "constrained" if constrained else "free"
    return tuple(_kinds(sha256, form, target.quality, target.confidence))


def named_sha256(model: Model) -> str | None:
    """Digest of the file that the policy names for a model; empty where it pins none.

    None: only its process knows which file it is, as with ``default``.
    """
    runtime = model.provider.runtime
    if model.provider.api != "local" or runtime.path or runtime.hub:
        return runtime.sha256
    return _catalogued().get(runtime.model)


def prepare(policy: Policy) -> None:
    """Read what exams prove for a policy's routes, before requests wait for it: some 100 ms.

    Of every file of the catalogue where a policy does not say which it is.
    """
    for route in policy.routes:
        if route.small is None or route.target.until_then != "exam":
            continue
        named = named_sha256(route.small)
        for sha256 in _catalogued().values() if named is None else (named,):
            for constrained in (False, True):
                kinds_proven(sha256, route.target, constrained=constrained)


def _plain(messages: Iterable[Any]) -> Iterable[Mapping[str, Any]]:
    return (message for message in messages if isinstance(message, dict))


@cache
def _kinds(sha256: str, form: Form, quality: float, confidence: float) -> dict[str, Proven]:
    """Bounded: one entry per file and target of the policies of this process."""
    if confidence >= 1.0 or quality <= 0.0:
        return {}
    try:
        proofs = evidence(sha256, form, max(confidence, CONFIDENCE), quality)
    except BadResult as error:
        _log.warning("no exam counts for the file %s: %s", sha256[:16], error)
        return {}
    return {
        kind: Proven(kind, proof.bound, proof.tasks)
        for kind, proof in proofs.items()
        if proof.bound >= quality
    }


@cache
def _catalogued() -> dict[str, str]:
    """Name -> digest of the model file, of the catalogue's models that answer."""
    return {
        name: entry.files[_GENERATION_FILE].sha256
        for name, entry in load_catalogue().items()
        if _GENERATION_FILE in entry.files
    }
