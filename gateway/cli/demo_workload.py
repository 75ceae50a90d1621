"""The demo's workload: a day in the life of three tenants, through the ``openai`` client.

Each step says what it shows. Knows the client and nothing of the gateway's inside.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import openai
from rich.console import Console

TENANTS = ("acme", "globex", "initech")
_DEFAULTS: dict[str, Any] = {"model": "auto", "max_tokens": 240, "temperature": 0}
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
        message = completion.choices[0].message
        if message.tool_calls:
            call = message.tool_calls[0].function
            step.answer = f"{call.name}({call.arguments})"
        else:
            step.answer = message.content or ""
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

    def embed(self, step: Step) -> None:
        """Vectors of two texts."""
        raw = self.openai.embeddings.with_raw_response.create(
            model="embedder", input=[step.asked, "Something else entirely."]
        )
        _note_headers(step, raw.headers)
        answer = raw.parse()
        step.tokens = f"{answer.usage.prompt_tokens}+0"
        step.answer = f"{len(answer.data)} vectors of {len(answer.data[0].embedding)}"


Call = Callable[[Client, Step], None]

_SUPPORT = {"x-tollhouse-tags": "feature=support"}
_EASY = (
    "What is the capital of France?",
    "Say hello in Spanish.",
    "What color is the sky on a clear day?",
    "How many days are in a week?",
    "What is the opposite of hot?",
    "Name a fruit that is yellow.",
    "What language is spoken in Brazil?",
    "Who wrote Romeo and Juliet?",
)
_HARD = (
    "Prove that the square root of 2 is irrational, and generalise the proof to every prime.",
    "A tank fills in 6 hours by one pipe and 4 hours by another while a leak empties it in 12."
    " After 90 minutes the faster pipe is shut. When is the tank full? Show every step.",
    "Write a Python function that finds the strongly connected components of a directed graph"
    " in linear time, without recursion, and explain why it is correct.",
    "Compare the liability of a bailee under common law with that of a depositary under the"
    " French civil code when goods are destroyed by a third party's negligence.",
    "Derive the posterior predictive distribution of a Dirichlet-multinomial model and show"
    " how it reduces to Laplace smoothing.",
    "Explain step by step why TCP's congestion control can fail to share a link fairly when"
    " round-trip times differ, with a worked numerical example.",
)
_REWORDED = (
    ("How do I reset my password?", "how do i reset my password"),
    ("What are your opening hours?", "What are your opening hours please?"),
    ("How can I cancel my subscription?", "How can I cancel my subscription, thanks?"),
    ("Which payment methods do you accept?", "Which payment methods do you accept"),
)
_NEAR_MISSES = (
    ("a number changed", "Is a 10 day trial enough?", "Is a 30 day trial enough?"),
    ("negated", "Does the basic plan include support?", "Does the basic plan not include support?"),
    ("direction swapped", "How do I move from monthly to yearly billing?",
     "How do I move from yearly to monthly billing?"),
    ("another unit", "Is 5 GB enough for my photos?", "Is 5 TB enough for my photos?"),
)  # fmt: skip
_WEATHER_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city now.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
_PERSON_SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "person",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
            "required": ["name", "age"],
            "additionalProperties": False,
        },
    },
}


def _chat(**options: Any) -> Call:
    return lambda client, step: client.chat(step, **options)


def _stream(**options: Any) -> Call:
    return lambda client, step: client.stream(step, **options)


def script() -> Iterator[tuple[str, str, str, Call]]:
    """Each step: (tenant, what it shows, what is asked, how)."""
    for question in _EASY:
        yield "acme", "easy", question, _chat()
    for question in _EASY[2:6]:
        yield "acme", "exact repeat", question, _chat()
    for question in _EASY[2:6]:
        yield "acme", "exact repeat, now as a stream", question, _stream()
    yield "globex", "another tenant, same words: no shared answer", _EASY[0], _chat()
    for first, second in _REWORDED:
        yield "acme", "a support question, by tag", first, _chat(extra_headers=_SUPPORT)
        yield "acme", "re-wording", second, _chat(extra_headers=_SUPPORT)
    for what, first, second in _NEAR_MISSES:
        yield "acme", "a support question, by tag", first, _chat(extra_headers=_SUPPORT)
        yield "acme", f"near miss: {what}", second, _chat(extra_headers=_SUPPORT)
    for question in _HARD:
        yield "globex", "hard", question, _chat()
    for question in _HARD[:3]:
        yield "globex", "hard, exact repeat", question, _chat()
    for question in _EASY[1:5]:
        yield "globex", "easy, streamed", question, _stream()
    for question in _HARD[3:5]:
        yield "globex", "hard, streamed", question + " Be brief.", _stream()
    yield (
        "globex",
        "a client that leaves mid-stream",
        _HARD[5] + " At length.",
        _stream(leave_after=8, max_tokens=400),
    )
    yield "globex", "a tool call", "What is the weather in Oslo?", _chat(tools=[_WEATHER_TOOL])
    yield (
        "globex",
        "a JSON-schema answer",
        "Ada Lovelace was 36.",
        _chat(response_format=_PERSON_SCHEMA, max_tokens=80),
    )
    yield "globex", "pinned to the large model", "Say hello.", _chat(model="large")
    yield "globex", "pinned to the small model", "Say hello.", _chat(model="small")
    yield "globex", "local embeddings", "A sentence to embed.", Client.embed
    yield "globex", "an unknown model", "Say hello.", _chat(model="gpt-nonexistent")
    for number in range(1, 9):
        question = f"{_HARD[number % 6]} Variant {number}."
        yield "initech", "a small budget", question, _chat(max_tokens=60)
    yield "initech", "the budget is spent", _HARD[0], _chat(max_tokens=60)


def run_workload(base_url: str, keys: dict[str, str], console: Console) -> list[Step]:
    """Send every step, one after the other; errors are part of the show."""
    clients = {tenant: Client(base_url, key) for tenant, key in keys.items()}
    steps: list[Step] = []
    with console.status("") as status:
        for number, (tenant, shows, asked, call) in enumerate(script(), 1):
            step = Step(number=number, tenant=tenant, shows=shows, asked=asked)
            status.update(f"{number}: {tenant}: {shows}")
            began = time.monotonic()
            try:
                call(clients[tenant], step)
                step.status = step.status or 200
            except openai.APIStatusError as error:
                step.status = error.status_code
                _note_headers(step, error.response.headers)
                step.answer = f"{error.code}: {error.message}"
            except openai.APIError as error:
                step.status, step.answer = 0, str(error)
            step.milliseconds = (time.monotonic() - began) * 1e3
            steps.append(step)
    return steps


def _note_headers(step: Step, headers: Any) -> None:
    step.request_id = headers.get("x-request-id", "")
    step.model = headers.get("x-tollhouse-model", "")
    step.cache = headers.get("x-tollhouse-cache", "")
