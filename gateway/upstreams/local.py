"""The node's model process as an upstream: OpenAI bodies in, OpenAI bytes out.

The only door of the gateway to ``local_models``, together with its two parts: ``local_client``
(the connection) and ``local_openai`` (the translation). Knows deadlines. Knows no tenant.
"""

import time
from collections.abc import Awaitable
from typing import TypeVar

from gateway.errors import UpstreamOverloaded, UpstreamTimeout, UpstreamUnavailable
from gateway.upstreams import local_answers, local_decisions, local_openai
from gateway.upstreams.base import COMPUTE_HEADER, Headers, UpstreamRequest, UpstreamResponse
from gateway.upstreams.bulkhead import QUEUE_MAX
from gateway.upstreams.health import Outcome
from gateway.upstreams.local_choices import Choices, Numbered, ended_well
from gateway.upstreams.local_client import (
    PENDING_MAX,
    GenerationStream,
    ModelProcessClient,
    not_sent,
)
from gateway.upstreams.local_labels import score_labels
from gateway.upstreams.local_limit import AdaptiveLimit
from gateway.upstreams.local_slots import LocalSlots
from gateway.upstreams.refusals import Body, refuse
from gateway.upstreams.retry_budget import RetryBudget
from local_models.messages import Finished, ModelInfo

__all__ = ["GenerationStream", "LocalUpstream", "ModelProcessClient"]

EMBEDDINGS_MAX_TOKENS = 512
"""Longest input of /embeddings; a longer one is refused, never cut behind the client's back."""

T = TypeVar("T")

_JSON = (b"content-type", b"application/json")
_EVENTS = (b"content-type", b"text/event-stream; charset=utf-8")


class LocalUpstream:
    """One model of the process. Implements ``Upstream``."""

    def __init__(
        self,
        name: str,
        client: ModelProcessClient,
        upstream_model: str,
        *,
        concurrent_max: int = PENDING_MAX,
        tenant_share: float = 1.0,
        parallel: int = PENDING_MAX // 2,
        waiting_max: int = QUEUE_MAX,
        ends_nonsense: bool = False,
    ) -> None:
        """parallel: requests that the process computes at once; waiting_max: that wait for it.

        ends_nonsense: as ``GenerationRequest`` has it.
        """
        self._name = name
        self.slots = LocalSlots(
            name, slots_max=concurrent_max, tenant_share=tenant_share, waiting_max=waiting_max
        )
        self.retries = RetryBudget()
        self._limit = AdaptiveLimit(self.slots, start=2 * parallel, unloaded=parallel)
        self._client = client
        self._model = upstream_model
        self._ends_nonsense = ends_nonsense

    @property
    def name(self) -> str:
        """The provider's name in the policy."""
        return self._name

    @property
    def healthy(self) -> bool:
        """The process serves this model now."""
        state = self._client.state
        if state is None:
            return False
        generates = state.generation is not None and state.generation.name == self._model
        embeds = state.embedding is not None and state.embedding.name == self._model
        return (generates and self._client.generation_ready) or (
            embeds and self._client.embedding_ready
        )

    async def send(self, request: UpstreamRequest) -> UpstreamResponse:
        """As ``Upstream.send``; also UpstreamStatus 400 for what the local model cannot honour."""
        body = local_openai.read_body(request.body)
        match request.path:
            case "/chat/completions" | "/completions":
                return await self._generate(request, body)
            case "/decisions":
                return await self._decide(request, body)
            case "/embeddings":
                return await self._embed(request, body)
        raise refuse("path", f"{request.path} is not served here")

    def report(self, outcome: Outcome) -> None:
        """Nothing to learn: the connection says at once when the process is gone."""

    async def close(self) -> None:
        """Nothing of its own: the client is shared, and closed by who made it."""

    async def _generate(self, request: UpstreamRequest, body: Body) -> UpstreamResponse:
        model = self._generating()
        call = local_openai.read_call(
            body,
            chat=request.path == "/chat/completions",
            request_id=request.request_id,
            model=request.model or self._model,
            context_tokens=model.context_tokens,
            deadline=request.deadline,
            ends_nonsense=self._ends_nonsense,
            scope=request.scope,
        )
        stream = Choices(self._client.generate, call.requests)
        try:
            first_byte_deadline = min(request.first_byte_deadline, request.deadline)
            first = await self._timed(request, stream.receive(first_byte_deadline))
            ended_well(first[1], request.deadline)
            if request.stream:
                return _StreamedAnswer(call, request, stream, first)
            return await _whole_answer(call, request, stream, first)
        except BaseException:
            # A caller that is cancelled must not leave its generation behind.
            stream.close()
            raise

    def _generating(self) -> ModelInfo:
        """The model, where it generates now."""
        state = self._client.state
        model = state.generation if state is not None else None
        if model is None or model.name != self._model:
            raise not_sent(
                UpstreamUnavailable(f"the model process does not serve {self._model} now.")
            )
        return model

    async def _decide(self, request: UpstreamRequest, body: Body) -> UpstreamResponse:
        """One question after the other: what they have in common is read once."""
        self._generating()
        decision, asked = local_decisions.read_call(body)
        scores = []
        for number, question in enumerate(asked):
            scoring = score_labels(
                self._client,
                question.prompts,
                question.labels,
                request_id=f"{request.request_id}.{number}",
                deadline=request.deadline
                if number
                else min(request.first_byte_deadline, request.deadline),
                scope=request.scope,
            )
            scores.append(await (scoring if number else self._timed(request, scoring)))
        document = local_decisions.document(request.model or self._model, decision, scores)
        return _Document(document, sum(each.compute_us for each in scores))

    async def _timed(self, request: UpstreamRequest, answer: Awaitable[T]) -> T:
        """``answer``, from whose wait the limit learns."""
        asked, under_way = time.monotonic(), self.slots.in_use
        try:
            first = await answer
        except (UpstreamTimeout, UpstreamOverloaded):
            self._limit.failed(asked, time.monotonic())
            raise
        self._limit.answered(len(request.body), under_way, asked, time.monotonic())
        return first

    async def _embed(self, request: UpstreamRequest, body: Body) -> UpstreamResponse:
        from gateway.upstreams.local_vectors import embeddings_document, vectors_of

        state = self._client.state
        model = state.embedding if state is not None else None
        if model is None or model.name != self._model:
            raise not_sent(
                UpstreamUnavailable(f"the model process does not serve {self._model} now.")
            )
        call = local_openai.read_embeddings(
            body, model=request.model or self._model, width=model.dimensions
        )
        limit = min(EMBEDDINGS_MAX_TOKENS, model.max_tokens)
        deadline = min(request.first_byte_deadline, request.deadline)
        answer = await self._timed(
            request, self._client.vectors(call.texts, max_tokens=limit, deadline=deadline)
        )
        if any(answer.truncated):
            place = f"input[{answer.truncated.index(True)}]"
            raise refuse(place, f"is longer than {limit} tokens", "context_length_exceeded")
        document = embeddings_document(call, vectors_of(answer), sum(answer.tokens))
        return _Document(document, answer.compute_us)


class _Document:
    """A complete JSON answer."""

    status = 200

    def __init__(self, body: bytes, compute_us: int) -> None:
        self.headers: Headers = (_JSON, (COMPUTE_HEADER, b"%d" % compute_us))
        self._body = body

    def header(self, name: bytes) -> bytes | None:
        """One header."""
        return dict(self.headers).get(name)

    async def receive(self) -> bytes:
        body, self._body = self._body, b""
        return body

    def close(self) -> None:
        self._body = b""


class _StreamedAnswer:
    """Events as the model generates them. Once it has ended, a header tells the processor time."""

    status = 200

    def __init__(
        self, call: local_openai.Call, request: UpstreamRequest, choices: Choices, first: Numbered
    ) -> None:
        self.headers: Headers = (_EVENTS,)
        self._events = local_answers.Stream(call)
        self._request = request
        self._choices = choices
        self._first: Numbered | None = first
        self._ended = False

    def header(self, name: bytes) -> bytes | None:
        """One header."""
        return dict(self.headers).get(name)

    async def receive(self) -> bytes:
        events = b""
        if self._first is not None and not self._ended:
            first, self._first = self._first, None
            events = self._events.opening() + self._translate(first)
        while not events and not self._ended:
            deadline = min(time.monotonic() + self._request.idle_seconds, self._request.deadline)
            events = self._translate(await self._choices.receive(deadline))
        return events

    def _translate(self, numbered: Numbered) -> bytes:
        number, message = numbered
        ended_well(message, self._request.deadline)
        events = self._events.take(number, message)
        if self._events.ended:
            self._ended = True
            compute_us = self._events.totals.compute_us
            self.headers = (_EVENTS, (COMPUTE_HEADER, b"%d" % compute_us))
        return events

    def close(self) -> None:
        self._ended = True
        self._choices.close()


async def _whole_answer(
    call: local_openai.Call, request: UpstreamRequest, stream: Choices, first: Numbered
) -> UpstreamResponse:
    choices = [local_answers.Choice() for _ in call.requests]
    totals = local_answers.Totals()
    running = len(choices)
    number, message = first
    while True:
        ended_well(message, request.deadline)
        choices[number].take(message)
        if isinstance(message, Finished):
            totals.add(message)
            running -= 1
            if not running:
                break
        number, message = await stream.receive(request.deadline)
    return _Document(local_answers.document(call, choices, totals), totals.compute_us)
