"""Bodies of every shape, and what an adversary could bill for them."""

from typing import Any

from hypothesis import strategies as st

from gateway.wire.openai import Endpoint

PICTURE = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
# Judged or renamed, and so not text to anybody.
_NO_TEXT = frozenset(("model", "n", "best_of", "max_tokens", "max_completion_tokens", "stream"))

TEXTS = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=40),
    st.integers(1, 400).map(lambda count: "t " * count),
    st.just(PICTURE),
    st.sampled_from(["https://example.org/a b c", "file-1", "data:text/plain;base64,t t t t", ""]),
)
VALUES = st.recursive(
    st.one_of(TEXTS, st.integers(0, 9), st.booleans(), st.none()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
PART_FIELDS = (
    "text", "refusal", "image_url", "source", "file", "file_id", "file_url", "file_data", "url",
    "input_audio", "audio_url", "video_url", "data", "detail", "content", "output", "summary",
    "title", "context", "input", "name", "arguments", "thinking", "signature", "encrypted_content",
    "cache_control", "citations", "unheard_of",
)  # fmt: skip
PART_KINDS = (
    "text", "refusal", "image_url", "image", "input_text", "input_image", "input_file", "file",
    "input_audio", "video_url", "document", "tool_use", "tool_result", "search_result", "thinking",
    "redacted_thinking", "reasoning", "function_call", "function_call_output", "message",
    "computer_call_output", "unheard_of",
)  # fmt: skip
BODY_FIELDS = (
    "tools", "functions", "response_format", "prediction", "suffix", "documents", "chat_template",
    "system", "instructions", "text", "prompt_cache_key", "metadata", "stop", "logit_bias",
    "tool_choice", "user_prompt", "guided_json", "context", "echo", "mcp_servers", "output_config",
    "thinking", "reasoning", "unheard_of",
)  # fmt: skip
ALL_FIELDS = (*PART_FIELDS, *BODY_FIELDS)

SOURCES = st.fixed_dictionaries(
    {"type": st.sampled_from(["base64", "url", "file", "text", "content", "x"])},
    optional={
        "media_type": st.sampled_from(["image/png", "application/pdf", "text/plain"]),
        "data": TEXTS, "url": TEXTS, "file_id": TEXTS, "content": VALUES, "extra": TEXTS,
    },
)  # fmt: skip
IMAGES = st.fixed_dictionaries({"url": TEXTS}, optional={"detail": TEXTS, "extra": TEXTS})


def _parts(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    fields = dict.fromkeys(PART_FIELDS, VALUES)
    fields |= {
        "text": TEXTS, "source": SOURCES, "image_url": st.one_of(IMAGES, TEXTS),
        "content": st.lists(inner, max_size=2), "output": st.lists(inner, max_size=2),
    }  # fmt: skip
    chosen = st.lists(st.sampled_from(PART_FIELDS), max_size=4, unique=True)
    return chosen.flatmap(
        lambda names: st.fixed_dictionaries(
            {"type": st.sampled_from(PART_KINDS), **{name: fields[name] for name in names}}
        )
    )


PARTS = st.recursive(_parts(TEXTS), _parts, max_leaves=4)
CONTENTS = st.one_of(TEXTS, st.lists(PARTS, min_size=1, max_size=3))
OTHERS = st.dictionaries(st.sampled_from(BODY_FIELDS), VALUES, max_size=3)
ENDPOINTS: tuple[Endpoint, ...] = ("chat", "messages", "count_tokens", "responses", "completions")


def body_of(endpoint: Endpoint, content: Any) -> dict[str, Any]:
    """A small body whose only message has this content."""
    message = {"role": "user", "content": content}
    if endpoint == "completions":
        return {"model": "m", "prompt": content, "max_tokens": 1}
    if endpoint == "responses":
        return {"model": "m", "max_output_tokens": 16, "input": [message]}
    return {"model": "m", "max_tokens": 1, "messages": [message]}


@st.composite
def bodies(draw: st.DrawFn) -> tuple[Endpoint, dict[str, Any]]:
    """An endpoint, and a body for it with any parts in it and any fields beside it."""
    endpoint = draw(st.sampled_from(ENDPOINTS))
    content = draw(TEXTS if endpoint == "completions" else CONTENTS)
    body = body_of(endpoint, content)
    others = {name: value for name, value in draw(OTHERS).items() if name not in body}
    if endpoint == "messages":
        others.pop("container", None)
    return endpoint, {**others, **body}


BODIES = bodies()


def texts_of(value: Any, top: bool = True) -> tuple[int, int]:
    """(UTF-8 bytes of every text, pictures) of a body; a picture's own bytes are none."""
    if isinstance(value, str):
        return (0, 0) if value == PICTURE else (len(value.encode()), 0)
    size = pictures = 0
    if isinstance(value, list):
        for item in value:
            more, further = texts_of(item, False)
            size, pictures = size + more, pictures + further
    elif isinstance(value, dict):
        for name, inner in value.items():
            if top and name in _NO_TEXT:
                continue
            more, further = texts_of(inner, False)
            size, pictures = size + more, pictures + further
            pictures += not top and name == "image_url" and _shown(value, inner)
    return size, pictures


def _shown(part: dict[str, Any], image: Any) -> bool:
    """Whether somebody who draws pictures would draw this one, at full detail."""
    detail = image.get("detail") if isinstance(image, dict) else part.get("detail")
    kind = part.get("type")
    return image is not None and detail != "low" and kind in ("image_url", "input_image")
