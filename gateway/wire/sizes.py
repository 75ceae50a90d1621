"""How many tokens a prompt can have at most, and what in it nobody can bound.

No tokenizer yields more tokens of a text than it has bytes, so every byte counts that a model may
read, known field or not. A picture is bounded by its tiles, whatever its bytes. A file, a recording
or a film is not bounded by anything that the body tells: it counts as ``MEDIA_TOKENS`` and is named
in ``unsized`` or ``enclosed``, so that a hard budget can refuse it. Knows fields, no endpoint and
no money.
"""

from typing import Any, Protocol

from gateway.wire.verbatim import encode

# An image's bytes say nothing of its tokens. The dearest known rule is that of gpt-4o-mini: 2,833
# and 5,667 for each of at most 8 tiles; "low" detail has no tiles.
IMAGE_TOKENS_MAX = 2_833 + 8 * 5_667
_IMAGE_TOKENS_LOW = 2_833
MEDIA_TOKENS = IMAGE_TOKENS_MAX  # of a file or recording whose size nobody knows: a floor
_FIELD_OVERHEAD_BYTES = 4
_SCHEME_LENGTH_MAX = 16
_PICTURES_ARE_AT = ("https:", "http:", "data:")

# Parts and items whose every field is text to a model, or one of the fields below.
_KNOWN = frozenset((
    "text", "refusal", "input_text", "output_text", "summary_text", "reasoning_text",
    "thinking", "redacted_thinking", "image_url", "input_image", "image", "computer_screenshot",
    "tool_use", "tool_result", "search_result", "document", "file", "input_file", "input_audio",
    "message", "reasoning",
    "function_call", "function_call_output", "custom_tool_call", "custom_tool_call_output",
    "local_shell_call", "local_shell_call_output", "shell_call", "shell_call_output",
    "apply_patch_call", "apply_patch_call_output", "computer_call", "computer_call_output",
))  # fmt: skip
_MEDIA_KINDS = frozenset((
    "image_url", "input_image", "image", "computer_screenshot", "document", "file", "input_file",
    "input_audio",
))  # fmt: skip
# One of these says what a part of such a kind shows.
_SHOWING = frozenset(
    ("image_url", "source", "file", "file_data", "file_id", "file_url", "input_audio")
)
_ELSEWHERE = frozenset(("file_id", "file_url", "url", "id", "uri", "fileUri"))
_NESTED = frozenset(("content", "output", "summary"))
_MEDIA_FIELDS = frozenset((
    "file", "file_id", "file_ids", "file_url", "file_data", "files", "input_file", "input_audio",
    "audio", "audio_url", "audios", "video", "video_url", "videos", "input_video", "document",
    "document_url", "image", "images", "image_file", "media", "attachments", "inline_data",
    "inlineData", "fileData",
))  # fmt: skip
# Of a whole body: what makes a prompt longer than its bytes. A template is a program.
_UNSIZED_FIELDS = frozenset((
    "chat_template", "data_sources", "files", "attachments", "context_id", "knowledge_base_id",
    "knowledge_base_ids",
))  # fmt: skip


class Measured(Protocol):
    """What a request is told of its prompt's size."""

    prompt_bytes: int
    has_media: bool
    unsized: str | None
    enclosed: str | None


class PromptSize:
    """A running upper bound of a prompt's tokens."""

    __slots__ = ("enclosed", "has_media", "tokens", "unsized")

    def __init__(self, tokens: int = 0) -> None:
        self.tokens = tokens
        self.has_media = False  # pictures, files, recordings: anything that is no text
        self.unsized: str | None = None  # the first field whose size nobody knows
        self.enclosed: str | None = None  # the first file or recording that is in the body itself

    def tell(self, request: Measured) -> None:
        """Hand over what was found out."""
        request.prompt_bytes, request.has_media = self.tokens, self.has_media
        request.unsized, request.enclosed = self.unsized, self.enclosed

    def value(self, value: Any) -> None:
        """Count any JSON as the text that a template may make of it."""
        self.tokens += size_of(value)

    def fields(self, body: dict[str, Any], counted: frozenset[str]) -> None:
        """Count every field of a body but those ``counted`` elsewhere."""
        for name in body.keys() - counted:
            value = body[name]
            if value is None:
                continue
            self.tokens += len(name) + size_of(value) + _FIELD_OVERHEAD_BYTES
            if name in _UNSIZED_FIELDS and value:
                self.refuse(name)

    def message(self, message: dict[str, Any], where: str) -> None:
        """Count a message's or an item's fields; lists of parts are looked into."""
        if not _is_known(message.get("type")):
            self.refuse(f"{where}.type")
        elif message.get("type") == "reasoning" and _is_kept_elsewhere(message):
            self.tokens += MEDIA_TOKENS  # as much as an earlier answer was allowed to think
            self.enclosed = self.enclosed or where
        self._object(message, where)

    def content(self, content: Any, where: str) -> None:
        """Count a text, a part, or a list of parts."""
        if isinstance(content, list):
            for index, part in enumerate(content):
                self._part(part, f"{where}[{index}]")
        elif isinstance(content, dict):
            self._part(content, where)
        else:
            self.value(content)

    def refuse(self, where: str) -> None:
        """Count something of unknown size."""
        self.tokens += MEDIA_TOKENS
        if self.unsized is None:
            self.unsized = where

    def _part(self, part: Any, where: str) -> None:
        if not isinstance(part, dict):
            self.value(part)
            return
        kind = part.get("type")
        if not _is_known(kind):
            self.has_media = True
            self.refuse(f"{where}.type")
        elif kind in _MEDIA_KINDS:
            self.has_media = True
            if _SHOWING.isdisjoint(part):
                self.refuse(where)
        self._object(part, where)

    def _object(self, part: dict[str, Any], where: str) -> None:
        for name, value in part.items():
            if value is None:
                continue
            self.tokens += len(name) + _FIELD_OVERHEAD_BYTES
            if name in _NESTED:
                self.content(value, f"{where}.{name}")
            elif name == "image_url":
                self._image(value, part.get("detail"), f"{where}.{name}")
            elif name == "source" and isinstance(value, dict):
                self._source(value, part.get("type"), f"{where}.{name}")
            elif name in _MEDIA_FIELDS:
                self._media(value, f"{where}.{name}")
            else:
                self.tokens += size_of(value)

    def _media(self, value: Any, where: str) -> None:
        """A file, recording or film: here, or somewhere else."""
        self.has_media = True
        self.tokens += _size_without_base64(value)
        if not _is_enclosed(value, where):
            self.refuse(where)
            return
        self.tokens += MEDIA_TOKENS
        if self.enclosed is None:
            self.enclosed = where

    def _image(self, image: Any, detail: Any, where: str) -> None:
        """A picture: here, or at its address. Some take a film or a file in its place."""
        self.has_media = True
        url = image
        if isinstance(image, dict):
            url, detail = image.get("url"), image.get("detail", detail)
            self.value({name: value for name, value in image.items() if name != "url"})
        self.tokens += _IMAGE_TOKENS_LOW if detail == "low" else IMAGE_TOKENS_MAX
        if isinstance(url, str) and url.startswith("data:image/") and _is_base64(url):
            return
        self.value(url)
        address = url[:_SCHEME_LENGTH_MAX].lower() if isinstance(url, str) else ""
        if address.startswith("data:") and not address.startswith("data:image/"):
            self.tokens += MEDIA_TOKENS
            self.enclosed = self.enclosed or where
        elif not address.startswith(_PICTURES_ARE_AT):
            self.refuse(where)

    def _source(self, source: dict[str, Any], kind: Any, where: str) -> None:
        """What a block of Anthropic's shows: a picture, or a document of pages, text or blocks."""
        form = source.get("type")
        elsewhere = not _ELSEWHERE.isdisjoint(source)
        if kind == "image" and form in ("base64", "url") and "file_id" not in source:
            self.has_media = True
            self.tokens += IMAGE_TOKENS_MAX + _size_without_base64(source)
        elif form == "content" and not elsewhere:
            self.content(source.get("content"), f"{where}.content")
            self.value({name: value for name, value in source.items() if name != "content"})
        elif form == "text" and not elsewhere:
            self.value(source)
        else:
            self._media(source, where)


def size_of(value: Any) -> int:
    """UTF-8 bytes of a text, or of anything else as JSON."""
    if type(value) is str:
        return len(value) if value.isascii() else len(value.encode("utf-8", "surrogatepass"))
    return len(encode(value))


def _is_known(kind: Any) -> bool:
    return kind is None or (isinstance(kind, str) and kind in _KNOWN)


def _is_kept_elsewhere(item: dict[str, Any]) -> bool:
    """Whether an item is only named, so that the provider reads what it has kept of it."""
    return bool(item.get("id")) and not item.get("encrypted_content") and not item.get("content")


def _is_enclosed(value: Any, where: str) -> bool:
    """Whether a file is here and nowhere else."""
    if isinstance(value, str) and not where.endswith(".file_data"):
        return False
    if isinstance(value, dict):
        if not _ELSEWHERE.isdisjoint(value):
            return False
        value = value.get("data") or value.get("file_data")
    return _is_base64(value) and "://" not in value[:64]


def _size_without_base64(value: Any) -> int:
    """Bytes of all that can be words."""
    if isinstance(value, dict):
        return sum(len(name) + _size_without_base64(inner) for name, inner in value.items())
    return 0 if _is_base64(value) else size_of(value)


def _is_base64(data: Any) -> bool:
    """Whether a text holds no words: one that does would be read where it is no picture."""
    return isinstance(data, str) and data.isascii() and " " not in data and "\n" not in data
