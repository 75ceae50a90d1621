"""Labels scored by the local model: probabilities, tokens and processor time.

Does not know who asks, nor what, and keeps nothing.
"""

from collections.abc import Sequence

import msgspec

from gateway.upstreams.local_choices import Choices, ended_well
from gateway.upstreams.local_client import ModelProcessClient
from local_models.calibration import calibrated
from local_models.messages import Finished, GenerationRequest, SamplingParams


class Scored(msgspec.Struct, frozen=True):
    """probabilities: in the labels' order, their sum 1. tokens: of all prompts together.

    cached_tokens: of those, what was read before.
    """

    probabilities: tuple[float, ...]
    tokens: int
    cached_tokens: int
    compute_us: int


async def score_labels(
    client: ModelProcessClient,
    prompts: Sequence[str],
    labels: Sequence[str],
    *,
    request_id: str,
    deadline: float,
    scope: str = "",
) -> Scored:
    """How likely each label is as the answer to the first prompt.

    prompts: a user's messages; those after the first ask the same of inputs without content, and
    calibrate. deadline: seconds of the monotonic clock. scope: as ``UpstreamRequest`` has it.
    Raises UpstreamError.
    """
    requests = [
        GenerationRequest(
            request_id=f"{request_id}.{number}",
            messages=({"role": "user", "content": prompt},),
            params=SamplingParams(max_tokens=1),
            labels=tuple(labels),
            deadline_seconds=deadline,
            scope=scope,
        )
        for number, prompt in enumerate(prompts)
    ]
    choices = Choices(client.generate, requests)
    ends: dict[int, Finished] = {}
    try:
        while len(ends) < len(requests):
            number, message = await choices.receive(deadline)
            ended_well(message, deadline)
            if isinstance(message, Finished):
                ends[number] = message
    finally:
        choices.close()
    free = [ends[number].scores for number in range(1, len(requests))]
    return Scored(
        probabilities=tuple(calibrated(ends[0].scores, free)),
        tokens=sum(end.prompt_tokens for end in ends.values()),
        cached_tokens=sum(end.cached_tokens for end in ends.values()),
        compute_us=sum(end.compute_us for end in ends.values()),
    )
