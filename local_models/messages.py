"""What goes into the engine and what comes out of it: requests, deltas, the end, the errors.

Plain frozen structs, so that a model process may put them on a wire. Knows no tenant, no socket
and no model.
"""

from typing import Any, Literal

import msgspec

DEFAULT = "default"
"""The model name that stands for the first of ``references.DEFAULT_MODELS`` that can be had."""

Device = Literal["auto", "cpu", "cuda"]
FinishReason = Literal["stop", "length", "cancelled", "error", "nonsense"]
ConstraintKind = Literal["json", "regex", "choice", "calls"]


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How the next token is chosen, and when to stop.

    temperature 0 takes the most likely token. logprobs is the number of alternatives reported
    beside each token: 0 reports the chosen token alone, None reports nothing. The penalties are
    taken from the logits of what was generated before: ``presence_penalty`` once, and
    ``frequency_penalty`` as often as it was. logit_bias: (token of this model, added logit).
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()


class Constraint(msgspec.Struct, frozen=True):
    """The form that an answer must have.

    source: a JSON Schema's text, a regular expression for the whole answer, a JSON list of the
    texts of which the answer is one, or ``tool_calls.Calling`` as JSON.
    """

    kind: ConstraintKind
    source: str


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One conversation or one raw prompt; exactly one of the two is given.

    messages: as OpenAI's chat completions have them: ``role`` (system, developer, user, assistant,
    tool) and ``content``, text or None; an assistant's ``tool_calls``; a tool's answer. tools: the
    definitions a model may call, ``{"type": "function", "function": {...}}`` each.
    deadline_seconds is on the clock of ``time.monotonic``; a request that passes it finishes as
    an error. Requests with one ``group`` and one prompt are several answers to it: the prompt is
    read once where their time allows it. ends_nonsense: an answer that has become none
    (``nonsense.py``) ends early, with that reason and what it is as the message.
    labels: nothing is generated; the end tells how likely each is as the answer (``labels.py``).
    scope: requests of one scope share the beginnings of their prompts (``prefixes.py``); empty:
    with nobody.
    """

    request_id: str
    params: SamplingParams
    messages: tuple[dict[str, Any], ...] | None = None
    tools: tuple[dict[str, Any], ...] | None = None
    prompt: str | None = None
    deadline_seconds: float | None = None
    constraint: Constraint | None = None
    group: str = ""
    ends_nonsense: bool = False
    labels: tuple[str, ...] = ()
    scope: str = ""


class TokenLogprob(msgspec.Struct, frozen=True):
    """One generated token under the model's own distribution (temperature 1), natural logarithm.

    bytes_ are the token's exact bytes, which may be part of a character; top is the most likely
    tokens, best first.
    """

    token: str
    bytes_: bytes
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


class Delta(msgspec.Struct, frozen=True):
    """New text of one request. The deltas of a request, joined, are its answer.

    tokens counts what was generated since the last delta, with tokens whose text is still held
    back (half a character, the possible start of a stop string).
    """

    text: str
    tokens: int
    logprobs: tuple[TokenLogprob, ...] = ()


class Finished(msgspec.Struct, frozen=True):
    """The last message of every request. compute_us is its share of the engine thread's time.

    message: why, of an error or of nonsense. refused: the error is the request's own, and a
    second try would be the same. scores: the labels' log-probabilities, in their order.
    cached_tokens: of the prompt's, those that need not be read again.
    """

    reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    compute_us: int
    message: str = ""
    refused: bool = False
    scores: tuple[float, ...] = ()
    cached_tokens: int = 0


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a loaded model is. context_tokens bounds prompt and answer together.

    name: as it was asked for. serves: the model that this stands for, as ``default`` does; sha256:
    of its file, empty where nothing pins it. device: ``cpu`` or ``cuda``; device_reason: one
    sentence, why it is not ``cuda``.
    """

    name: str
    context_tokens: int
    vocabulary: int
    fused: bool
    accuracy_level: int
    serves: str = ""
    sha256: str = ""
    device: str = "cpu"
    device_reason: str = ""


class LocalModelError(Exception):
    """Base of everything this package raises on purpose. The message is one sentence."""


class ModelUnavailable(LocalModelError):
    """A model's files are missing, cannot be fetched, or are not what the catalogue promises."""


class InvalidModel(LocalModelError):
    """A model file is truncated, corrupt or of a kind that this package cannot run."""


class EngineBusy(LocalModelError):
    """The engine's waiting line is full, or the engine is closed."""


class InvalidPrompt(LocalModelError):
    """The request has no usable prompt, or its parameters are out of range."""


class PromptTooLong(InvalidPrompt):
    """The prompt leaves no room for an answer in the context window."""
