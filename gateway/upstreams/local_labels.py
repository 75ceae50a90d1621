"""Labels scored by the local model: probabilities, tokens and processor time.

Knows calibration's inputs; does not know who asks, and keeps nothing.
"""

from collections.abc import Sequence

import msgspec

from gateway.errors import UpstreamUnavailable
from gateway.upstreams.local_choices import Choices
from gateway.upstreams.local_client import ModelProcessClient, refusal
from gateway.upstreams.refusals import Body
from local_models.labels import calibrated, without_content
from local_models.messages import Finished, GenerationRequest, SamplingParams


class Scored(msgspec.Struct, frozen=True):
    """probabilities: in the labels' order, their sum 1. tokens: of all prompts that were read."""

    probabilities: tuple[float, ...]
    tokens: int
    compute_us: int


async def score_labels(
    client: ModelProcessClient,
    messages: Sequence[Body],
    labels: Sequence[str],
    *,
    content: str,
    request_id: str,
    deadline: float,
) -> Scored:
    """How likely each label is as the answer to the messages.

    content: the part of them that is judged; calibration asks without it, too. Empty: no
    calibration. deadline: seconds of the monotonic clock. Raises UpstreamError.
    """
    asked = [list(messages)]
    if content:
        asked += without_content(messages, content)
    requests = [
        GenerationRequest(
            request_id=f"{request_id}.{number}",
            messages=tuple(each),
            params=SamplingParams(max_tokens=1),
            labels=tuple(labels),
            deadline_seconds=deadline,
        )
        for number, each in enumerate(asked)
    ]
    choices = Choices(client.generate, requests)
    ends: dict[int, Finished] = {}
    try:
        while len(ends) < len(requests):
            number, message = await choices.receive(deadline)
            if isinstance(message, Finished):
                if message.refused:
                    raise refusal(message.message, "invalid_value")
                if not message.scores:
                    raise UpstreamUnavailable(
                        f"the local model stopped: {message.message or message.reason}."
                    )
                ends[number] = message
    finally:
        choices.close()
    free = [ends[number].scores for number in range(1, len(requests))]
    return Scored(
        probabilities=tuple(calibrated(ends[0].scores, free)),
        tokens=sum(end.prompt_tokens for end in ends.values()),
        compute_us=sum(end.compute_us for end in ends.values()),
    )
