"""From a conversation to the tokens a chat model was trained on.

The template is the model file's own, rendered in a sandbox. Marks between messages, such as
``<|im_start|>``, become control tokens only where the template itself writes them: in everything a
user, a tool or a definition says, each of them is broken by a character that occurs nowhere else,
which is taken out again before the text is tokenized. A message cannot forge the end of its turn.
"""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from local_models.messages import InvalidModel, InvalidPrompt
from local_models.template_sandbox import SandboxedTemplate
from local_models.tokenizer import Tokenizer

DEPTH_MAX = 32
"""Objects in objects, of a tool's definition or a call's arguments."""

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_ROLES |= {"tool": "tool"}

# Unicode keeps these for a program's own use: no text needs them, and one is always free.
_BREAKERS = [chr(code) for code in range(0xFDD0, 0xFDF0)]


class ChatTemplate:
    """The chat template of one model file, with its vocabulary's marks."""

    def __init__(self, metadata: dict[str, Any], tokenizer: Tokenizer) -> None:
        source = metadata.get("tokenizer.chat_template")
        if not isinstance(source, str):
            raise InvalidModel("the model's metadata have no chat template")
        self._template = SandboxedTemplate(source)
        self._tokenizer = tokenizer
        self._marks = _Marks(tokenizer.marks)
        self._names = {
            f"{name}_token": tokenizer.piece(metadata.get(f"tokenizer.ggml.{name}_token_id"))
            for name in ("bos", "eos")
        }
        self._has_tools = "tools" in source

    def encode(
        self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] | None = None
    ) -> list[int]:
        """Tokens of the conversation, up to where the assistant's answer begins.

        messages, tools: as GenerationRequest has them. Raises InvalidPrompt.
        """
        if not messages:
            raise InvalidPrompt("messages must not be empty")
        if tools and not self._has_tools:
            raise InvalidPrompt("the model's chat template has no place for tools")
        turns = [_turn(message) for message in messages]
        breaker = _free_breaker([turns, tools])
        text = self._template.render(
            messages=[self._marks.broken(turn, breaker) | {"role": turn["role"]} for turn in turns],
            tools=self._marks.broken(list(tools), breaker) if tools else None,
            add_generation_prompt=True,
            **self._names,
        )
        tokens: list[int] = []
        for piece in self._marks.split(text):
            mark = self._tokenizer.marks.get(piece)
            tokens += self._tokenizer.encode(piece.replace(breaker, "")) if mark is None else [mark]
        return tokens


class _Marks:
    """The names of control tokens, and how they are kept out of what is not the template's."""

    def __init__(self, names: dict[str, int]) -> None:
        longest_first = sorted(map(re.escape, names), key=len, reverse=True)
        self._any = re.compile("|".join(longest_first) or r"(?!)")
        self._beginnings = {name[:length] for name in names for length in range(1, len(name))}
        self._ends = {name[length:] for name in names for length in range(1, len(name))}
        self._insides = frozenset(
            name[begin:end]
            for name in names
            for begin in range(1, len(name) - 1)
            for end in range(begin + 1, len(name))
        )
        self._length_max = max(map(len, names), default=0)

    def split(self, text: str) -> list[str]:
        """The text cut into marks and what lies between them."""
        pieces, begin = [], 0
        for found in self._any.finditer(text):
            pieces += [text[begin : found.start()], found.group()]
            begin = found.end()
        return [piece for piece in [*pieces, text[begin:]] if piece]

    def broken(self, value: Any, breaker: str) -> Any:
        """A copy of a JSON value in whose texts no mark occurs, begins or ends."""
        if isinstance(value, str):
            return self._broken_text(value, breaker)
        if isinstance(value, list):
            return [self.broken(each, breaker) for each in value]
        if isinstance(value, dict):
            # A template asks for keys by their name ("name" is a part of "<|repo_name|>"), and
            # prints them in quotation marks only.
            return {
                self._interrupted(key, breaker): self.broken(each, breaker)
                for key, each in value.items()
            }
        return value

    def _interrupted(self, text: str, breaker: str) -> str:
        """The text with a breaker in every whole mark."""
        return self._any.sub(lambda found: found.group()[0] + breaker + found.group()[1:], text)

    def _broken_text(self, text: str, breaker: str) -> str:
        text = self._interrupted(text, breaker)
        # Marks that would be completed by what the template writes beside the text, or by another
        # text; a template may trim spaces off the ends.
        core = text.strip()
        if not core:
            return text
        lead = text[: len(text) - len(text.lstrip())]
        rest = text[len(lead) + len(core) :]
        inside = core in self._insides
        reach = range(1, min(len(core), self._length_max) + 1)
        if inside or any(core[:length] in self._ends for length in reach):
            core = breaker + core
        if inside or any(core[-length:] in self._beginnings for length in reach):
            core += breaker
        return lead + core + rest


def _turn(message: dict[str, Any]) -> dict[str, Any]:
    role, content = message.get("role"), message.get("content")
    if role not in _ROLES:
        raise InvalidPrompt(f"role must be one of {', '.join(_ROLES)}, not {role!r}")
    calls = message.get("tool_calls")
    if content is None and role == "assistant" and calls:
        content = ""
    if not isinstance(content, str):
        raise InvalidPrompt("content must be text")
    turn = {**message, "role": _ROLES[role], "content": content}
    if calls is None:
        turn.pop("tool_calls", None)
    else:
        turn["tool_calls"] = _calls(calls)
    return turn


def _calls(calls: Any) -> list[dict[str, Any]]:
    """Tool calls whose arguments are objects, as templates want them, and not JSON in a text."""
    parsed: list[dict[str, Any]] = []
    call: Any
    for call in calls if isinstance(calls, list | tuple) else [None]:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise InvalidPrompt("each of tool_calls must have a function with a name")
        arguments = function.get("arguments", "{}")
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments or "{}")
            except (ValueError, RecursionError):
                pass  # Not JSON: the model sees the text that it wrote.
        parsed.append({**call, "function": {**function, "arguments": arguments}})
    return parsed


def texts_of(value: Any) -> Iterator[str]:
    """Every text in messages or tools, keys too. Raises InvalidPrompt where they nest too deep."""
    pending = [(value, 0)]
    while pending:
        each, depth = pending.pop()
        if depth > DEPTH_MAX:
            raise InvalidPrompt(f"messages and tools may nest {DEPTH_MAX} deep, not deeper")
        if isinstance(each, str):
            yield each
        elif isinstance(each, dict):
            pending += [(inner, depth + 1) for pair in each.items() for inner in pair]
        elif isinstance(each, list | tuple):
            pending += [(inner, depth + 1) for inner in each]


def _free_breaker(value: Any) -> str:
    """A breaker that occurs in no text of the value: the first, unless a text has it on purpose."""
    used = {breaker for text in texts_of(value) for breaker in _BREAKERS if breaker in text}
    free = [breaker for breaker in _BREAKERS if breaker not in used]
    if not free:
        raise InvalidPrompt("the messages contain every noncharacter from U+FDD0 to U+FDEF")
    return free[0]
