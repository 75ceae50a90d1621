"""What an exam proves of a model file: per kind, how often a request found to be of it is answered
rightly, at least.

A request is answered rightly if the detector is right about its kind and the model about the
request. Both shares are bounded from below, each with half of the error allowed and corrected for
the number of kinds (Bonferroni), so their product holds for all kinds at once at the stated
confidence. It holds for requests as the exam and the detector's test ask them, and for no others.
Knows results. Does not know a policy, or what is done with a proof.
"""

from functools import cache
from importlib import resources

import msgspec

from local_models.exam.detect import DETECTABLE
from local_models.exam.kinds import KINDS
from local_models.exam.results import BadResult, shipped
from local_models.exam.statistics import CONFIDENCE, corrected, lower_bound
from local_models.exam.task import GENERATOR_VERSION, Form

DETECTOR_FILE = "detector.json"


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """bound: lower bound of the share of right answers among requests found to be of the kind."""

    kind: str
    bound: float
    tasks: int
    right: int


class Detected(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How precise the detector was on wordings and requests that its rules were not written for.

    kinds: [requests found to be of a kind, those that were]. foreign: requests of no kind asked.
    """

    generator: int
    day: str
    foreign: int
    kinds: dict[str, tuple[int, int]]


@cache
def evidence(
    sha256: str, form: Form = "free", confidence: float = CONFIDENCE, floor: float = 0.0
) -> dict[str, Proof]:
    """Proofs by kind for a model file; empty where no exam of it came with this package.

    floor: kinds whose share of right answers is below are left out, and cost nothing.
    Raises BadResult for a shipped file that is damaged or of another generator.
    """
    result = shipped(sha256)
    if result is None:
        return {}
    alpha = corrected(1.0 - confidence, 2 * len(KINDS))
    detector = measured()
    proofs: dict[str, Proof] = {}
    for kind in KINDS:
        counted = result.kinds.get(kind, {}).get(form)
        found, right = detector.kinds.get(kind, (0, 0))
        if counted is None or counted.share < floor or kind not in DETECTABLE or not found:
            continue
        bound = counted.bound(alpha) * lower_bound(right, found, alpha)
        proofs[kind] = Proof(kind=kind, bound=bound, tasks=counted.tasks, right=counted.lenient)
    return proofs


@cache
def measured() -> Detected:
    """The detector's shipped test. Raises BadResult."""
    entry = resources.files("local_models.exam").joinpath("results", DETECTOR_FILE)
    try:
        found = msgspec.json.decode(entry.read_bytes(), type=Detected)
    except (OSError, msgspec.DecodeError) as error:
        raise BadResult(f"the detector's test cannot be read: {error}") from error
    if found.generator != GENERATOR_VERSION:
        raise BadResult(
            f"the detector's test is of exam {found.generator}; this is {GENERATOR_VERSION}"
        )
    return found
