"""What the simulated provider says in other dialects: Anthropic's messages, OpenAI's responses.

The same tokens as a chat would get, in another dress. Prompt caching is simulated by what a
request says: Anthropic's marked system blocks are read from the cache and its marked message
blocks written to it; a response with a ``prompt_cache_key`` reads half its prompt. Knows no socket.
"""

from collections.abc import Iterator
from typing import Any

import orjson

from gateway.simulator.documents import (
    CREATED,
    Event,
    Function,
    Generation,
    Message,
    Question,
    Reply,
    Tool,
    UsageHonesty,
)

_LIE = 10**9


def messages_reply(
    body: dict[str, Any], *, seed: int, usage: UsageHonesty, long: bool, count_only: bool
) -> Reply:
    """The reply to Anthropic's ``messages`` or ``messages/count_tokens``. Raises ValueError."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ValueError("messages: at least one message is required")
    if not count_only and not isinstance(body.get("max_tokens"), int):
        raise ValueError("max_tokens: Field required")
    asked = [Message(role="system", content=_plain(body["system"]))] if "system" in body else []
    asked += [
        Message(role=_role(message), content=_plain(message["content"])) for message in messages
    ]
    question = Question(
        model=body["model"],
        messages=asked,
        stream=body.get("stream"),
        max_tokens=body.get("max_tokens"),
        tools=[_tool(tool, "input_schema") for tool in body.get("tools") or ()],
        tool_choice=_choice(body.get("tool_choice")),
    )
    generation = Generation("chat", question, seed, usage, long)
    if count_only:
        counted = orjson.dumps({"input_tokens": generation.prompt_tokens})
        return Reply(
            prompt_tokens=generation.prompt_tokens, completion_tokens=0, body=counted,
            dialect="messages",
        )  # fmt: skip
    return _Message(body, generation, usage).reply()


def responses_reply(body: dict[str, Any], *, seed: int, usage: UsageHonesty, long: bool) -> Reply:
    """The reply to OpenAI's ``responses``. Raises ValueError."""
    given = body.get("input")
    if not given:
        raise ValueError("'input' must not be empty")
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    asked = [Message(role="system", content=body["instructions"])] if "instructions" in body else []
    asked += [
        Message(
            role="tool" if item.get("type") == "function_call_output" else item.get("role", "user"),
            content=_plain(item.get("content", item.get("output"))),
        )
        for item in items
    ]
    question = Question(
        model=body["model"],
        messages=asked,
        stream=body.get("stream"),
        max_tokens=body.get("max_output_tokens"),
        tools=[_tool(tool, "parameters") for tool in body.get("tools") or ()],
        tool_choice=_choice(body.get("tool_choice")),
        response_format=_format(body),
    )
    return _Response(body, Generation("chat", question, seed, usage, long), usage).reply()


class _Message:
    """One answer of Anthropic's."""

    def __init__(self, body: dict[str, Any], generation: Generation, usage: UsageHonesty) -> None:
        self._body = body
        self._honesty = usage
        self._generation = generation
        self._tokens, self._whole = generation.tokens(generation.digests[0])
        self._id = generation.digests[0].hex()
        self._head = {
            "id": f"msg_{self._id}",
            "type": "message",
            "role": "assistant",
            "model": body["model"],
        }

    def reply(self) -> Reply:
        streamed = bool(self._body.get("stream"))
        document = {
            **self._head,
            "content": [self._block("".join(self._tokens))],
            "stop_reason": self._reason,
            "stop_sequence": None,
            **self._usage(len(self._tokens)),
        }
        return Reply(
            prompt_tokens=self._generation.prompt_tokens,
            completion_tokens=len(self._tokens),
            body=b"" if streamed else orjson.dumps(document),
            events=list(self._events()) if streamed else None,
            dialect="messages",
        )

    @property
    def _reason(self) -> str:
        if not self._whole:
            return "max_tokens"
        return "tool_use" if self._generation.tool is not None else "end_turn"

    def _block(self, text: str) -> dict[str, Any]:
        tool = self._generation.tool
        if tool is None:
            return {"type": "text", "text": text}
        whole = orjson.loads(text) if text and self._whole else {}
        return {
            "type": "tool_use",
            "id": f"toolu_{self._id[:12]}",
            "name": tool.name,
            "input": whole,
        }

    def _events(self) -> Iterator[Event]:
        start = {**self._head, "content": [], "stop_reason": None, "stop_sequence": None}
        yield _event("message_start", message={**start, **self._usage(1)})
        empty = self._block("")
        yield _event("content_block_start", index=0, content_block=empty)
        yield _event("ping")
        key = "text" if self._generation.tool is None else "partial_json"
        kind = "text_delta" if self._generation.tool is None else "input_json_delta"
        for token in self._tokens:
            delta = {"type": kind, key: token}
            yield _event("content_block_delta", 1, index=0, delta=delta)
        yield _event("content_block_stop", index=0)
        change = {"stop_reason": self._reason, "stop_sequence": None}
        usage: dict[str, Any] = {}
        if self._honesty != "none":
            usage["usage"] = {"output_tokens": len(self._tokens)}
        yield _event("message_delta", delta=change, **usage)
        yield _event("message_stop")

    def _usage(self, output_tokens: int) -> dict[str, Any]:
        if self._honesty == "none":
            return {}
        if self._honesty == "lying":
            return {
                "usage": {
                    "input_tokens": 1,
                    "output_tokens": output_tokens,
                    "cache_creation_input_tokens": 0,
                    "cache_read_input_tokens": 0,
                    "cache_creation": {"ephemeral_1h_input_tokens": _LIE},
                    "output_tokens_details": {"thinking_tokens": _LIE},
                }
            }
        read = sum(words for words, _ in _marked(self._body.get("system")))
        written = [
            found for message in self._body["messages"] for found in _marked(message["content"])
        ]
        hour = sum(words for words, ttl in written if ttl == "1h")
        total = sum(words for words, _ in written)
        return {
            "usage": {
                "input_tokens": self._generation.prompt_tokens - read - total,
                "cache_creation_input_tokens": total,
                "cache_read_input_tokens": read,
                "cache_creation": {
                    "ephemeral_5m_input_tokens": total - hour,
                    "ephemeral_1h_input_tokens": hour,
                },
                "output_tokens": output_tokens,
                "service_tier": "standard",
            }
        }


class _Response:
    """One answer of OpenAI's responses."""

    def __init__(self, body: dict[str, Any], generation: Generation, usage: UsageHonesty) -> None:
        self._body = body
        self._honesty = usage
        self._generation = generation
        self._tokens, self._whole = generation.tokens(generation.digests[0])
        self._id = generation.digests[0].hex()
        self._sequence = 0

    def reply(self) -> Reply:
        streamed = bool(self._body.get("stream"))
        status = "completed" if self._whole else "incomplete"
        return Reply(
            prompt_tokens=self._generation.prompt_tokens,
            completion_tokens=len(self._tokens),
            body=b"" if streamed else orjson.dumps(self._document(status)),
            events=list(self._events(status)) if streamed else None,
            dialect="responses",
        )

    def _document(self, status: str) -> dict[str, Any]:
        begun = status == "in_progress"
        return {
            "id": f"resp_{self._id}",
            "object": "response",
            "created_at": CREATED,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"}
            if status == "incomplete"
            else None,
            "instructions": self._body.get("instructions"),
            "metadata": {},
            "model": self._body["model"],
            "output": [] if begun else [self._item("".join(self._tokens), status)],
            "parallel_tool_calls": True,
            "tool_choice": self._body.get("tool_choice", "auto"),
            "tools": self._body.get("tools", []),
            "usage": None if begun else self._usage(),
        }

    def _item(self, text: str, status: str) -> dict[str, Any]:
        tool = self._generation.tool
        if tool is None:
            content = [] if status == "in_progress" else [_part(text)]
            return {
                "id": f"msg_{self._id}", "type": "message", "role": "assistant", "status": status,
                "content": content,
            }  # fmt: skip
        return {
            "id": f"fc_{self._id}", "type": "function_call", "call_id": f"call_{self._id[:12]}",
            "name": tool.name, "arguments": text, "status": status,
        }  # fmt: skip

    def _events(self, status: str) -> Iterator[Event]:
        yield self._event("response.created", response=self._document("in_progress"))
        yield self._event("response.in_progress", response=self._document("in_progress"))
        opened = self._item("", "in_progress")
        place = {"item_id": opened["id"], "output_index": 0}
        yield self._event("response.output_item.added", output_index=0, item=opened)
        whole = "".join(self._tokens)
        if self._generation.tool is None:
            place["content_index"] = 0
            yield self._event("response.content_part.added", **place, part=_part(""))
            for token in self._tokens:
                yield self._event(
                    "response.output_text.delta", 1, **place, delta=token, logprobs=[]
                )
            yield self._event("response.output_text.done", **place, text=whole, logprobs=[])
            yield self._event("response.content_part.done", **place, part=_part(whole))
        else:
            for token in self._tokens:
                yield self._event("response.function_call_arguments.delta", 1, **place, delta=token)
            yield self._event("response.function_call_arguments.done", **place, arguments=whole)
        done = self._item(whole, status)
        yield self._event("response.output_item.done", output_index=0, item=done)
        yield self._event(f"response.{status}", response=self._document(status))

    def _event(self, kind: str, tokens: int = 0, **fields: Any) -> Event:
        self._sequence += 1
        return _event(kind, tokens, sequence_number=self._sequence - 1, **fields)

    def _usage(self) -> dict[str, Any] | None:
        if self._honesty == "none":
            return None
        prompt, total = self._generation.prompt_tokens, len(self._tokens)
        lying = self._honesty == "lying"
        cached = _LIE if lying else prompt // 2 if self._body.get("prompt_cache_key") else 0
        reasoning = _LIE if lying else total // 4 if self._body.get("reasoning") else 0
        return {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
            "output_tokens": total,
            "output_tokens_details": {"reasoning_tokens": reasoning},
            "total_tokens": _LIE if lying else prompt + total,
        }


def _event(kind: str, tokens: int = 0, **fields: Any) -> Event:
    data = orjson.dumps({"type": kind, **fields})
    return Event(b"event: %b\ndata: %b\n\n" % (kind.encode(), data), tokens)


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": []}


def _plain(content: Any) -> str:
    """All text of a text or of a list of blocks or parts."""
    if isinstance(content, str):
        return content
    texts = [
        block["text"] if isinstance(block.get("text"), str) else orjson.dumps(block).decode()
        for block in content or ()
    ]
    return "\n".join(texts)


def _role(message: dict[str, Any]) -> str:
    content = message["content"]
    results = isinstance(content, list) and any(b.get("type") == "tool_result" for b in content)
    return "tool" if results else str(message["role"])


def _tool(tool: dict[str, Any], schema: str) -> Tool:
    if tool.get("type", "custom") not in ("custom", "function"):
        return Tool()
    return Tool(function=Function(name=tool["name"], parameters=tool.get(schema)))


def _choice(choice: Any) -> Any:
    """A wish for a tool, as chat says it."""
    if isinstance(choice, dict):
        if choice.get("type") == "none":
            return "none"
        return {"function": {"name": choice["name"]}} if "name" in choice else None
    return choice


def _format(body: dict[str, Any]) -> dict[str, Any] | None:
    text = body.get("text")
    form = text.get("format") if isinstance(text, dict) else None
    if not isinstance(form, dict) or form.get("type") == "text":
        return None
    return {"type": form.get("type"), "json_schema": {"schema": form.get("schema")}}


def _marked(content: Any) -> list[tuple[int, str]]:
    """(words, time to live) of each block that is marked for the prompt cache."""
    if not isinstance(content, list):
        return []
    return [
        (len(_plain([block]).split()), block["cache_control"].get("ttl", "5m"))
        for block in content
        if isinstance(block.get("cache_control"), dict)
    ]
