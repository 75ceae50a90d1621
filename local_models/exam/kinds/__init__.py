"""The kinds of the exam, each with its wordings and its generator."""

from local_models.exam.kinds import (
    copying,
    extraction,
    formats,
    knowledge,
    labels,
    numbers,
    writing,
)
from local_models.exam.kinds.kind import Filling, Kind

KINDS: dict[str, Kind] = {
    kind.name: kind
    for module in (extraction, copying, labels, formats, numbers, knowledge, writing)
    for kind in module.KINDS
}

__all__ = ["KINDS", "Filling", "Kind"]
