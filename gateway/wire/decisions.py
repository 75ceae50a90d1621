"""OpenAI's decisions: questions about an input, and how likely each possible answer is.

Reads and bounds a body, and says what a model is asked for each question and which labels it may
answer. Knows no socket, no model and no money.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from gateway.errors import InvalidRequest
from gateway.wire.growth import growth_of
from gateway.wire.openai import Endpoint, ParsedRequest, decode_body, shown, user_of
from gateway.wire.sizes import size_of
from gateway.wire.verbatim import encode

QUESTIONS_MAX = 64
CHOICES_MAX = 255
LEVELS_MAX = 10
PROMPTS_BYTES_MAX = 4 << 20
"""Of all prompts that a body asks for: each question is put with the input, and with none."""

WITHOUT_INPUT = ("N/A", "", "[MASK]")
"""What stands for the input where only the preference for a label is asked."""

_UNKNOWN = re.compile(r"unknown field `(.*)`", re.DOTALL)
_TEMPLATE_BYTES = 128  # a chat template's marks, and the system prompt that some of them add


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of a body; a field that nobody knows is refused."""


class Text(_Section, frozen=True, tag="input_text", tag_field="type"):
    """Words."""

    text: str
    prompt_cache_breakpoint: Any = None


class Said(_Section, frozen=True, tag="output_text", tag_field="type"):
    """Words of a model."""

    text: str


class Declined(_Section, frozen=True, tag="refusal", tag_field="type"):
    """Words of a model that declined."""

    refusal: str


class Data(_Section, frozen=True, tag="input_json", tag_field="type"):
    """An object, or several, read as JSON."""

    data: dict[str, Any] | list[dict[str, Any]]


class Image(_Section, frozen=True, tag="input_image", tag_field="type"):
    """A picture, which no local model reads."""

    image_url: str
    detail: str | None = None
    prompt_cache_breakpoint: Any = None


Content = str | list[Text | Said | Declined | Data | Image]


class Item(_Section, frozen=True, kw_only=True):
    """A message, a call of a tool, or what it gave."""

    type: Literal[
        "message",
        "function_call",
        "function_call_output",
        "custom_tool_call",
        "custom_tool_call_output",
    ] = "message"
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: Content | None = None
    name: str | None = None
    arguments: str | None = None
    input: str | None = None
    output: Content | None = None
    call_id: str | None = None
    id: str | None = None
    namespace: str | None = None
    status: str | None = None
    phase: str | None = None


class Predicate(_Section, frozen=True, kw_only=True, tag="predicate", tag_field="type"):
    """Is a statement about the input true?"""

    instructions: Content
    name: str | None = None


class Option(_Section, frozen=True):
    """One of a question's choices; its value keeps its type."""

    value: str | bool
    description: str | None = None


class Choice(_Section, frozen=True, kw_only=True, tag="choice", tag_field="type"):
    """Which of these?"""

    instructions: Content
    choices: Annotated[list[Option], Meta(min_length=2, max_length=CHOICES_MAX)]
    name: str | None = None


class Level(_Section, frozen=True):
    """One of a question's levels."""

    label: str
    description: str | None = None


class Score(_Section, frozen=True, kw_only=True, tag="score", tag_field="type"):
    """How much, in levels from the lowest to the highest?"""

    instructions: Content
    levels: Annotated[list[Level], Meta(min_length=2, max_length=LEVELS_MAX)]
    name: str | None = None


Question = Predicate | Choice | Score


class Decision(_Section, frozen=True, kw_only=True):
    """A whole body."""

    model: str
    input: str | list[Item]
    questions: Annotated[list[Question], Meta(min_length=1, max_length=QUESTIONS_MAX)]
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None


class Asked(msgspec.Struct, frozen=True):
    """One question as a model gets it.

    prompts: with the input, then with each of WITHOUT_INPUT. labels: its possible answers.
    """

    prompts: tuple[str, ...]
    labels: tuple[str, ...]


def parse_request(
    endpoint: Endpoint, raw: bytes | bytearray, deployment: str | None = None
) -> ParsedRequest:
    """Decode and check a body. Raises InvalidRequest naming the field."""
    body = decode_body(raw, deployment)
    decision = read_decision(body)
    asked = questions_of(decision)
    prompts = [prompt for each in asked for prompt in each.prompts]
    return ParsedRequest(
        endpoint=endpoint,
        body=body,
        model=body["model"],
        prompt_bytes=sum(size_of(prompt) + _TEMPLATE_BYTES for prompt in prompts),
        prompts=len(prompts),
        growth=growth_of(body) * len(prompts),
        has_media=_has_image(decision),
        user=user_of(body, "safety_identifier"),
    )


def read_decision(body: dict[str, Any]) -> Decision:
    """A body's fields. Raises InvalidRequest."""
    try:
        decision = msgspec.convert(body, Decision)
    except (msgspec.ValidationError, RecursionError) as error:
        message, _, place = str(error).partition(" - at `$")
        field = place.removesuffix("`").removeprefix(".")
        unknown = _UNKNOWN.search(message)
        if unknown is not None:
            field = f"{field}.{unknown[1]}".lstrip(".")
            message = "There is no such field"
        where = f": '{shown(field)}'" if field else ""
        raise InvalidRequest(f"{message}{where}.", param=shown(field) or None) from None
    if not _text_of_input(decision.input).strip() and not _has_image(decision):
        raise InvalidRequest("'input' is empty.", param="input")
    return decision


def questions_of(decision: Decision) -> list[Asked]:
    """What is to be asked, in order. Raises InvalidRequest for what cannot be told apart."""
    given = _text_of_input(decision.input)
    asked: list[tuple[str, tuple[str, ...]]] = []
    for number, question in enumerate(decision.questions):
        place = f"questions[{number}]"
        instructions = _text(question.instructions)
        if not instructions.strip():
            raise InvalidRequest(f"'{place}.instructions' is empty.", param=f"{place}.instructions")
        asked.append(_question(question, instructions, place))
    size = sum(size_of(text) * (1 + len(WITHOUT_INPUT)) for text, _ in asked)
    size += size_of(given) * len(asked)
    if size > PROMPTS_BYTES_MAX:
        raise InvalidRequest(
            f"The input and the questions make prompts of {size} bytes; the limit is"
            f" {PROMPTS_BYTES_MAX}.",
            param="input",
        )
    return [
        Asked(
            tuple(f"{text}\n\nInput:\n{each}\n\nAnswer:" for each in (given, *WITHOUT_INPUT)),
            labels,
        )
        for text, labels in asked
    ]


def value_text(value: str | bool) -> str:
    """A choice's value as it is put to a model."""
    return value if isinstance(value, str) else str(value).lower()


def _question(question: Question, instructions: str, place: str) -> tuple[str, tuple[str, ...]]:
    match question:
        case Predicate():
            text = f"Is this true of the input? {instructions}\nAnswer Yes or No."
            return text, ("Yes", "No")
        case Choice():
            ask = "Answer with one of these, and nothing else:"
            options = [(value_text(each.value), each.description) for each in question.choices]
            place = f"{place}.choices"
        case Score():
            ask = "Answer with one of these levels, from the lowest to the highest:"
            options = [(each.label, each.description) for each in question.levels]
            place = f"{place}.levels"
    labels = tuple(label for label, _ in options)
    _refuse_alike(labels, place)
    lines = [f"- {label}: {why}" if why else f"- {label}" for label, why in options]
    return "\n".join([instructions, ask, *lines]), labels


def _refuse_alike(labels: Sequence[str], place: str) -> None:
    first: dict[str, int] = {}
    for number, label in enumerate(labels):
        if not label.strip():
            raise InvalidRequest(f"'{place}[{number}]' is empty.", param=f"{place}[{number}]")
        if first.setdefault(label, number) != number:
            raise InvalidRequest(
                f"'{place}[{number}]' reads like '{place}[{first[label]}]'.",
                param=f"{place}[{number}]",
            )


def _text_of_input(given: str | list[Item]) -> str:
    if isinstance(given, str):
        return given
    if len(given) == 1 and given[0].role == "user":
        return _item(given[0], "input[0]")
    lines = []
    for number, item in enumerate(given):
        text = _item(item, f"input[{number}]")
        lines.append(f"{item.role or item.type.replace('_', ' ')}: {text}")
    return "\n".join(lines)


def _item(item: Item, place: str) -> str:
    match item.type:
        case "message":
            found = None if item.role is None else item.content
        case "function_call" | "custom_tool_call":
            given = item.arguments if item.type == "function_call" else item.input
            found = None if item.name is None or given is None else f"{item.name}({given})"
        case _:
            found = item.output
    if found is None:
        raise InvalidRequest(f"'{place}' lacks a field that a {item.type} has.", param=place)
    return _text(found)


def _text(content: Content) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for part in content:
        match part:
            case Text() | Said():
                texts.append(part.text)
            case Declined():
                texts.append(part.refusal)
            case Data():
                texts.append(encode(part.data).decode("utf-8", "replace"))
            case Image():
                pass  # the plan refuses it: no model that answers here has vision
    return "\n".join(texts)


def _has_image(decision: Decision) -> bool:
    contents: list[Content | None] = [question.instructions for question in decision.questions]
    for item in decision.input if isinstance(decision.input, list) else ():
        contents += [item.content, item.output]
    return any(
        isinstance(part, Image)
        for content in contents
        if isinstance(content, list)
        for part in content
    )
