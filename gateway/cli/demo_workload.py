"""The demo's workload: a day in the life of three tenants, through the ``openai`` client.

Each step says what it shows. Knows the client and nothing of the gateway's inside.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import openai

from gateway.cli import demo_tasks
from local_models.exam.task import Task

TENANTS = ("acme", "globex", "initech")
_DEFAULTS: dict[str, Any] = {"model": "auto", "max_tokens": 60, "temperature": 0}
_TIMEOUT_SECONDS = 60.0


class Step(msgspec.Struct, kw_only=True):
    """One request, as the client saw it."""

    number: int
    tenant: str
    shows: str
    asked: str
    request_id: str = ""
    status: int = 0
    model: str = ""
    cache: str = ""
    tokens: str = ""
    milliseconds: float = 0.0
    answer: str = ""
    task: Task | None = None


class Client:
    """One tenant's openai client, noting what each call came to."""

    def __init__(self, base_url: str, key: str) -> None:
        self.openai = openai.OpenAI(
            base_url=base_url, api_key=key, max_retries=0, timeout=_TIMEOUT_SECONDS
        )

    def chat(self, step: Step, **options: Any) -> None:
        """One answer, whole."""
        options = _DEFAULTS | {"messages": [{"role": "user", "content": step.asked}]} | options
        raw = self.openai.chat.completions.with_raw_response.create(**options)
        _note_headers(step, raw.headers)
        completion = raw.parse()
        step.answer = completion.choices[0].message.content or ""
        usage = completion.usage
        step.tokens = f"{usage.prompt_tokens}+{usage.completion_tokens}" if usage else ""

    def stream(self, step: Step, leave_after: int | None = None, **options: Any) -> None:
        """One answer as a stream; ``leave_after`` so many chunks, hang up."""
        options = _DEFAULTS | {"stream": True, "stream_options": {"include_usage": True}} | options
        messages: Any = [{"role": "user", "content": step.asked}]
        raw = self.openai.chat.completions.with_raw_response.create(messages=messages, **options)
        _note_headers(step, raw.headers)
        parts: list[str] = []
        with raw.parse() as chunks:
            for count, chunk in enumerate(chunks):
                if chunk.choices and chunk.choices[0].delta.content:
                    parts.append(chunk.choices[0].delta.content)
                if chunk.usage:
                    step.tokens = f"{chunk.usage.prompt_tokens}+{chunk.usage.completion_tokens}"
                if leave_after is not None and count >= leave_after:
                    step.tokens = "left"
                    break
        step.answer = "".join(parts)


Call = Callable[[Client, Step], None]
Planned = tuple[str, str, str, Call]
"""Tenant, what the step shows, what is asked, how."""

_PROOF = "In one short sentence: why is the square root of 2 irrational?"
_TRIAL = "A shop's customer asks; answer in at most ten words."


def _chat(**options: Any) -> Call:
    return lambda client, step: client.chat(step, **options)


def _stream(**options: Any) -> Call:
    return lambda client, step: client.stream(step, **options)


def without_small() -> Iterator[Planned]:
    """Steps that need the large model and the caches alone. An answer that is cut is not kept."""
    yield "acme", "a hard question", _PROOF, _chat()
    yield "acme", "asked again: exact hit", _PROOF, _chat()
    yield "acme", "asked again, as a stream", _PROOF, _stream()
    yield "globex", "another tenant: nothing shared", _PROOF, _chat()
    yield "globex", "pinned to the large model", "Say hello.", _chat(model="large")
    essay = "Explain TCP's congestion control step by step, with a worked example."
    yield "globex", "a client that leaves midway", essay, _stream(leave_after=8, max_tokens=400)
    yield "initech", "a small budget", _PROOF, _chat()
    yield "initech", "the budget is spent", "In one short sentence: why is pi irrational?", _chat()


def with_embedder() -> Iterator[Planned]:
    """Steps that need the embedder."""
    yield "acme", "a support question, by tag", "Is a 10 day trial enough?", _support
    yield "acme", "re-worded: semantic hit", "is a 10 day trial enough", _support
    yield "acme", "another number: no hit", "Is a 30 day trial enough?", _support


def _support(client: Client, step: Step) -> None:
    messages = [
        {"role": "system", "content": _TRIAL},
        {"role": "user", "content": step.asked},
    ]
    client.chat(step, messages=messages, extra_headers={"x-tollhouse-tags": "feature=support"})


def with_small() -> Iterator[tuple[Task, Planned, Planned]]:
    """Each task of the exam, pinned to the small model and left to ``auto``."""
    for task in demo_tasks.chosen():
        form = demo_tasks.form_of(task)
        pinned = _chat(model="small", max_tokens=task.max_tokens + 8, **form)
        routed = _chat(max_tokens=task.max_tokens + 8, **form)
        yield (
            task,
            ("globex", "pinned to the small model", task.prompt, pinned),
            ("globex", "left to auto", task.prompt, routed),
        )


class Workload:
    """Sends steps one after the other, numbered; errors are part of the show."""

    def __init__(self, base_url: str, keys: dict[str, str]) -> None:
        self._clients = {tenant: Client(base_url, key) for tenant, key in keys.items()}
        self.steps: list[Step] = []

    def send(self, planned: Planned, told: Callable[[str], None], task: Task | None = None) -> Step:
        """Send one step. told: called with a line before the request."""
        tenant, shows, asked, call = planned
        step = Step(number=len(self.steps) + 1, tenant=tenant, shows=shows, asked=asked, task=task)
        told(f"{step.number}: {tenant}: {shows}")
        began = time.monotonic()
        try:
            call(self._clients[tenant], step)
            step.status = step.status or 200
        except openai.APIStatusError as error:
            step.status = error.status_code
            _note_headers(step, error.response.headers)
            step.answer = f"{error.code}: {error.message}"
        except openai.APIError as error:
            step.status, step.answer = 0, str(error)
        step.milliseconds = (time.monotonic() - began) * 1e3
        self.steps.append(step)
        return step


def _note_headers(step: Step, headers: Any) -> None:
    step.request_id = headers.get("x-request-id", "")
    step.model = headers.get("x-tollhouse-model", "")
    step.cache = headers.get("x-tollhouse-cache", "")
