"""What the simulated provider says: OpenAI documents and events, from a seed and a request.

Pure: the same seed and request give the same answer, whole or streamed. A token is a word with its
blank, or a few characters of JSON. Every text says that it is simulated. Knows no socket.
"""

import array
import base64
import hashlib
import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
import orjson

Kind = Literal["chat", "completions", "embeddings"]
Dialect = Literal["chat", "messages", "responses"]
UsageHonesty = Literal["true", "none", "lying"]

DIMENSIONS = 64
CREATED = 1_700_000_000
_DONE = b"data: [DONE]\n\n"
_Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 31)]
_SENTENCES = tuple(
    text.split()
    for text in (
        "In short, {topic} is easiest to understand from an example.",
        "Most of what matters about {topic} fits into a few steps.",
        "It helps to begin with what is known and to check each step.",
        "The usual answer is yes, as long as nothing else changes meanwhile.",
        "Where two readings are possible, the simpler one is usually meant.",
        "A careful reader would also ask what happens when {topic} fails.",
        "First collect the facts, then compare them, and only then decide.",
        "There are exceptions, but they are rare and easy to recognise.",
        "For most purposes that is all one has to know about {topic}.",
        "If in doubt, try it on a small case and look at the result.",
    )
)


class Message(msgspec.Struct):
    """One message of a chat."""

    role: str
    content: Any = None


class Function(msgspec.Struct):
    """A function that the model may call."""

    name: str
    parameters: dict[str, Any] | None = None


class Tool(msgspec.Struct):
    """A tool, which is a function or is ignored."""

    function: Function | None = None


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class Question(msgspec.Struct):
    """A request body, as far as the provider looks at it. Other fields are ignored."""

    model: str
    messages: list[Message] = []
    prompt: str | list[Any] | None = None
    input: str | list[Any] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=128)] | None = None
    max_tokens: _Count | None = None
    max_completion_tokens: _Count | None = None
    tools: list[Tool] | None = None
    tool_choice: Any = None
    response_format: dict[str, Any] | None = None
    dimensions: Annotated[int, msgspec.Meta(ge=1, le=4096)] | None = None
    encoding_format: Literal["float", "base64"] | None = None


class Event(msgspec.Struct, frozen=True):
    """One server-sent event, how many tokens it carries, and a silence before it."""

    data: bytes
    tokens: int = 0
    pause_seconds: float = 0.0


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """An honest reply: a body, or the events of a stream."""

    prompt_tokens: int
    completion_tokens: int
    body: bytes = b""
    events: list[Event] | None = None  # None: not a stream
    dialect: Dialect = "chat"  # in which a fault reports an error


_decode = msgspec.json.Decoder(Question).decode


def read_question(kind: Kind, raw: bytes) -> Question:
    """Decode a body. Raises ValueError (in words) for one that cannot be answered."""
    question = _decode(raw)
    if kind == "chat" and not question.messages:
        raise ValueError("'messages' must hold at least one message")
    if kind == "embeddings" and not question.input:
        raise ValueError("'input' must not be empty")
    return question


def reply_to(
    kind: Kind, question: Question, *, seed: int, usage: UsageHonesty = "true", long: bool = False
) -> Reply:
    """The whole reply. usage: what to report; long: at least 60 tokens, for faults to cut."""
    if kind == "embeddings":
        return _embeddings(question)
    return Generation(kind, question, seed, usage, long).reply()


class Generation:
    """One chat or text completion: its tokens, and its documents in OpenAI's oldest dialect."""

    def __init__(
        self, kind: Kind, question: Question, seed: int, usage: UsageHonesty, long: bool
    ) -> None:
        self._kind = kind
        self._question = question
        self._usage = usage
        text = _prompt_text(question)
        self.prompt_tokens = len(text.split()) + 4 * (len(question.messages) or 1)
        self._limit = question.max_completion_tokens or question.max_tokens
        self.digests = [_digest(seed, text, index) for index in range(question.n or 1)]
        self.tool = _chosen_tool(question) if kind == "chat" else None
        self._schema = _schema(question)
        self._topic = _topic(text)
        self._words_min = 60 if long else 20 if text.count(" ") < 12 else 30
        self._common = {
            "id": ("chatcmpl-" if kind == "chat" else "cmpl-") + self.digests[0].hex(),
            "object": "",
            "created": CREATED,
            "model": question.model,
        }

    def reply(self) -> Reply:
        """The whole reply, as chat or as completion."""
        streamed = bool(self._question.stream)
        choices = [self.tokens(digest) for digest in self.digests]
        total = sum(len(tokens) for tokens, _ in choices)
        return Reply(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=total,
            body=b"" if streamed else self._document(choices, total),
            events=list(self._events(choices, total)) if streamed else None,
        )

    def tokens(self, digest: bytes) -> tuple[list[str], bool]:
        """(tokens, whole): all that is generated for one choice, cut at the limit."""
        if self.tool is not None:
            arguments = orjson.dumps(instance(self.tool.parameters or {})).decode()
            tokens = ["", *_parts(arguments, 8)]  # the first token is the function's name
        elif self._schema is not None:
            tokens = _parts(orjson.dumps(instance(self._schema)).decode(), 4)
        else:
            tokens = self._words(digest)
        limit = self._limit
        return (tokens, True) if limit is None or len(tokens) <= limit else (tokens[:limit], False)

    def _words(self, digest: bytes) -> list[str]:
        words = ["[simulated]"]
        position, count_min = digest[0], self._words_min + digest[1] % 25
        while len(words) < count_min:
            sentence = _SENTENCES[position % len(_SENTENCES)]
            words += [" " + word.replace("{topic}", self._topic) for word in sentence]
            position += 1
        return words

    def _document(self, choices: list[tuple[list[str], bool]], total: int) -> bytes:
        listed = []
        for index, (tokens, whole) in enumerate(choices):
            choice: dict[str, Any] = {"index": index, "logprobs": None}
            choice["finish_reason"] = self._reason(whole)
            text = "".join(tokens)
            if self._kind == "completions":
                choice["text"] = text
            elif self.tool is not None:
                call = self._call(index, text)
                choice["message"] = {"role": "assistant", "content": None, "tool_calls": [call]}
            else:
                choice["message"] = {"role": "assistant", "content": text, "refusal": None}
            listed.append(choice)
        kind = "chat.completion" if self._kind == "chat" else "text_completion"
        document = {**self._common, "object": kind, "choices": listed}
        if self._usage != "none":
            document["usage"] = self._usage_document(total)
        return orjson.dumps(document)

    def _events(self, choices: list[tuple[list[str], bool]], total: int) -> Iterator[Event]:
        for index, (tokens, whole) in enumerate(choices):
            if self._kind == "chat":
                content = None if self.tool is not None else ""
                yield self._event(index, {"role": "assistant", "content": content})
            for position, token in enumerate(tokens):
                yield self._event(index, self._delta(index, position, token), tokens=1)
            yield self._event(index, {}, reason=self._reason(whole))
        options = self._question.stream_options
        if options is not None and options.include_usage and self._usage != "none":
            last = {**self._common, "object": self._chunk, "choices": []}
            yield Event(_frame({**last, "usage": self._usage_document(total)}))
        yield Event(_DONE)

    def _delta(self, index: int, position: int, token: str) -> dict[str, Any]:
        if self.tool is None:
            return {"content": token}
        if position == 0:
            return {"tool_calls": [{"index": 0, **self._call(index, "")}]}
        return {"tool_calls": [{"index": 0, "function": {"arguments": token}}]}

    def _event(
        self, index: int, delta: dict[str, Any], *, tokens: int = 0, reason: str | None = None
    ) -> Event:
        choice: dict[str, Any] = {"index": index}
        if self._kind == "chat":
            choice["delta"] = delta
        else:
            choice["text"] = delta.get("content", "")
        choice |= {"logprobs": None, "finish_reason": reason}
        return Event(_frame({**self._common, "object": self._chunk, "choices": [choice]}), tokens)

    @property
    def _chunk(self) -> str:
        return "chat.completion.chunk" if self._kind == "chat" else "text_completion"

    def _call(self, index: int, arguments: str) -> dict[str, Any]:
        assert self.tool is not None, "only a request with tools is answered with a call"
        return {
            "id": f"call_{self.digests[index].hex()[:12]}",
            "type": "function",
            "function": {"name": self.tool.name, "arguments": arguments},
        }

    def _reason(self, whole: bool) -> str:
        if not whole:
            return "length"
        return "tool_calls" if self.tool is not None else "stop"

    def _usage_document(self, total: int) -> dict[str, Any]:
        if self._usage == "lying":
            return {
                "prompt_tokens": 1,
                "completion_tokens": total,
                "total_tokens": 10**9,
                "prompt_tokens_details": {"cached_tokens": 10**9},
            }
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": total,
            "total_tokens": self.prompt_tokens + total,
        }


def instance(schema: dict[str, Any]) -> Any:
    """A value that fits a JSON schema of the common kinds: the simplest one."""
    if "const" in schema:
        return schema["const"]
    choices = schema.get("enum")
    if isinstance(choices, list) and choices:
        return choices[0]
    for name in ("anyOf", "oneOf"):
        options = schema.get(name)
        if isinstance(options, list) and options and isinstance(options[0], dict):
            return instance(options[0])
    kind = schema.get("type", "object")
    kind = kind[0] if isinstance(kind, list) and kind else kind
    if kind == "object":
        properties = schema.get("properties") or {}
        return {name: instance(part) for name, part in properties.items() if isinstance(part, dict)}
    if kind == "array":
        items = schema.get("items")
        return [instance(items if isinstance(items, dict) else {"type": "string"})]
    least = schema.get("minimum")
    if kind in ("integer", "number") and isinstance(least, int | float):
        return least
    return {"string": "simulated", "integer": 36, "number": 3.6, "boolean": True}.get(kind)


def _embeddings(question: Question) -> Reply:
    given = question.input
    whole = isinstance(given, str) or (bool(given) and isinstance(given[0], int))  # type: ignore[index] # one text, or the tokens of one
    texts = [given] if whole else given
    assert isinstance(texts, list), "checked when it was read"
    vectors = [_vector(str(text), question.dimensions or DIMENSIONS) for text in texts]
    if question.encoding_format == "base64":
        values: list[Any] = [base64.b64encode(vector.tobytes()).decode() for vector in vectors]
    else:
        values = [vector.tolist() for vector in vectors]
    tokens = sum(len(text.split()) if isinstance(text, str) else 1 for text in texts)
    document = {
        "object": "list",
        "model": question.model,
        "data": [
            {"object": "embedding", "index": index, "embedding": value}
            for index, value in enumerate(values)
        ],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return Reply(prompt_tokens=tokens, completion_tokens=0, body=orjson.dumps(document))


def _vector(text: str, width: int) -> "array.array[float]":
    """A direction of length 1 that depends on the text and on nothing else; float32 [width]."""
    noise = hashlib.shake_128(text.encode()).digest(width)
    values = [byte - 127.5 for byte in noise]
    length = math.sqrt(sum(value * value for value in values))
    return array.array("f", (value / length for value in values))


def _chosen_tool(question: Question) -> Function | None:
    """The function to call: the one asked for, else the first; none once a result has come."""
    if question.tool_choice == "none" or question.messages[-1].role == "tool":
        return None
    functions = [tool.function for tool in question.tools or () if tool.function is not None]
    if isinstance(question.tool_choice, dict):
        wanted = question.tool_choice.get("function")
        name = wanted.get("name") if isinstance(wanted, dict) else None
        functions = [function for function in functions if function.name == name]
    return functions[0] if functions else None


def _schema(question: Question) -> dict[str, Any] | None:
    given = question.response_format
    if given is None or given.get("type") not in ("json_schema", "json_object"):
        return None
    named = given.get("json_schema")
    schema = named.get("schema") if isinstance(named, dict) else None
    return schema if isinstance(schema, dict) else {"type": "object"}


def _prompt_text(question: Question) -> str:
    """All text of a request."""
    if question.messages:
        return "\n".join(_text(message.content) for message in question.messages)
    return _text(question.prompt)


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "" if content is None else orjson.dumps(content).decode()


def _topic(text: str) -> str:
    """The longest word of a question's end."""
    words = [word.strip("?!.,:;'\"()[]{}") for word in text[-300:].split()]
    longest = max((word for word in words if word.isalpha()), key=len, default="")
    return longest if len(longest) > 3 else "this"


def _digest(seed: int, text: str, index: int) -> bytes:
    return hashlib.blake2b(f"{seed}\0{index}\0{text}".encode(), digest_size=12).digest()


def _parts(text: str, size: int) -> list[str]:
    return [text[i : i + size] for i in range(0, len(text), size)]


def _frame(document: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(document) + b"\n\n"
