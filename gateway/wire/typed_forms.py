"""A whole message or response as the events of its stream, and such a stream as a whole.

For a provider that answers in another form than it was asked for. Knows Anthropic's messages and
OpenAI's responses; no socket.
"""

from collections.abc import Iterator
from typing import Any

import orjson

from gateway.errors import UpstreamProtocolError
from gateway.wire.sse import EventSplitter, event_data

Document = dict[str, Any]

# Of a block's delta: the field of the block that it continues, by the field that carries the text.
_TEXT_DELTAS = {
    "text_delta": "text",
    "thinking_delta": "thinking",
    "signature_delta": "signature",
}


def message_events(message: Document) -> bytes:
    """The stream of a whole message of Anthropic's."""
    usage = _object(message.get("usage"))
    begun = {
        **message, "content": [], "stop_reason": None, "stop_sequence": None,
        "usage": {**usage, "output_tokens": 0},
    }  # fmt: skip
    events: list[Document] = [{"type": "message_start", "message": begun}]
    for index, block in enumerate(message["content"]):
        empty, deltas = _opened(block)
        events.append({"type": "content_block_start", "index": index, "content_block": empty})
        for delta in deltas:
            events.append({"type": "content_block_delta", "index": index, "delta": delta})
        events.append({"type": "content_block_stop", "index": index})
    ending = {name: message.get(name) for name in ("stop_reason", "stop_sequence")}
    events.append({"type": "message_delta", "delta": ending, "usage": usage})
    events.append({"type": "message_stop"})
    return _written(events)


def _opened(block: Document) -> tuple[Document, list[Document]]:
    """A block as it begins, and the deltas that complete it."""
    empty, deltas = dict(block), list[Document]()
    for kind, field in _TEXT_DELTAS.items():
        if isinstance(block.get(field), str) and block.get("type") in ("text", "thinking"):
            empty[field] = ""
            deltas.append({"type": kind, field: block[field]})
    if isinstance(block.get("input"), dict):
        empty["input"] = {}
        written = orjson.dumps(block["input"]).decode()
        deltas.append({"type": "input_json_delta", "partial_json": written})
    if block.get("citations"):
        empty["citations"] = []
        deltas += [{"type": "citations_delta", "citation": one} for one in block["citations"]]
    return empty, deltas


def whole_message(stream: bytes) -> Document:
    """The message of a stream that has ended well. Raises UpstreamProtocolError for a doubt."""
    message: Document = {}
    blocks: dict[Any, Document] = {}
    inputs: dict[Any, str] = {}
    try:
        for event in _documents(stream):
            match event.get("type"):
                case "message_start":
                    message = dict(event["message"])
                case "content_block_start":
                    blocks[event["index"]] = dict(event["content_block"])
                case "content_block_delta":
                    _continue(blocks[event["index"]], inputs, event)
                case "message_delta":
                    message |= event["delta"]
                    told = _object(event.get("usage")).items()
                    message["usage"] = {
                        **_object(message.get("usage")),
                        **{name: value for name, value in told if value is not None},
                    }
        for index, text in inputs.items():
            blocks[index]["input"] = orjson.loads(text) if text else {}
        message["content"] = [blocks[index] for index in sorted(blocks)]
    except (KeyError, TypeError, ValueError):
        raise UpstreamProtocolError(
            "The provider answered with a stream that makes no whole message."
        ) from None
    return message


def _continue(block: Document, inputs: dict[Any, str], event: Document) -> None:
    delta = event["delta"]
    kind = delta["type"]
    if kind in _TEXT_DELTAS:
        field = _TEXT_DELTAS[kind]
        block[field] = (block.get(field) or "") + delta[field]
    elif kind == "input_json_delta":
        inputs[event["index"]] = inputs.get(event["index"], "") + delta["partial_json"]
    elif kind == "citations_delta":
        block["citations"] = [*(block.get("citations") or ()), delta["citation"]]
    else:
        raise ValueError(kind)


def response_events(response: Document) -> bytes:
    """The stream of a whole response of OpenAI's."""
    begun = {**response, "status": "in_progress", "output": [], "usage": None}
    events: list[Document] = [{"type": "response.created", "response": begun}]
    for place, item in enumerate(response["output"]):
        events += _item_events(item, {"output_index": place, "item_id": item.get("id")})
    last = "incomplete" if response.get("status") == "incomplete" else "completed"
    events.append({"type": f"response.{last}", "response": response})
    return _written([{**event, "sequence_number": n} for n, event in enumerate(events)])


def _item_events(item: Document, place: Document) -> Iterator[Document]:
    parts = item.get("content") if item.get("type") == "message" else None
    empty = {**item, "content": []} if parts is not None else dict(item)
    if isinstance(item.get("arguments"), str):
        empty["arguments"] = ""
    added = {"output_index": place["output_index"], "item": empty}
    yield {"type": "response.output_item.added", **added}
    for number, part in enumerate(parts if isinstance(parts, list) else ()):
        at = {**place, "content_index": number}
        field = "refusal" if part.get("type") == "refusal" else "text"
        kind = "refusal" if field == "refusal" else "output_text"
        text = part.get(field) or ""
        extra: Document = {"logprobs": []} if field == "text" else {}
        yield {"type": "response.content_part.added", **at, "part": {**part, field: ""}}
        yield {"type": f"response.{kind}.delta", **at, "delta": text, **extra}
        yield {"type": f"response.{kind}.done", **at, field: text, **extra}
        yield {"type": "response.content_part.done", **at, "part": part}
    if isinstance(item.get("arguments"), str):
        kind, told = "response.function_call_arguments", item["arguments"]
        yield {"type": f"{kind}.delta", **place, "delta": told}
        yield {"type": f"{kind}.done", **place, "name": item.get("name"), "arguments": told}
    yield {"type": "response.output_item.done", **added, "item": item}


def whole_response(stream: bytes) -> Document:
    """The response of a stream that has ended well: its last event repeats it."""
    last: Document = {}
    for event in _documents(stream):
        if event.get("type") in ("response.completed", "response.incomplete"):
            last = _object(event.get("response"))
    return last


def _documents(stream: bytes) -> Iterator[Document]:
    splitter = EventSplitter(len(stream) + 1)
    for event in (*splitter.feed(stream), splitter.pending):
        data = event_data(event)
        if data is not None:
            yield _object(orjson.loads(data))


def _written(events: list[Document]) -> bytes:
    return b"".join(
        b"event: %b\ndata: %b\n\n" % (event["type"].encode(), orjson.dumps(event))
        for event in events
    )


def _object(value: Any) -> Document:
    return value if isinstance(value, dict) else {}
