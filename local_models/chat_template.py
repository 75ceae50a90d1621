"""From a conversation to the tokens a chat model was trained on.

Our own code per family, not the template language of the model file: a template is a program from
a download, and rendering through text would let a message forge the marks between messages.
One family so far: ChatML.
"""

import re
from collections.abc import Sequence
from typing import Any

from local_models.messages import InvalidModel, InvalidPrompt
from local_models.tokenizer import Tokenizer

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_DEFAULT_SYSTEM = re.compile(r"<\|im_start\|>system\\n(.+?)<\|im_end\|>")


class ChatTemplate:
    """ChatML: ``<|im_start|>role``, a line end, the content, ``<|im_end|>``, a line end."""

    def __init__(self, metadata: dict[str, Any], tokenizer: Tokenizer) -> None:
        template = metadata.get("tokenizer.chat_template")
        if not isinstance(template, str) or "<|im_start|>" not in template:
            raise InvalidModel("the model's chat template is not ChatML, the one supported")
        # In the file the line end is still an escape: the template is source code.
        found = _DEFAULT_SYSTEM.search(template.replace("\n", "\\n"))
        self._default_system = found.group(1) if found else None
        self._tokenizer = tokenizer
        self._begin = tokenizer.control("<|im_start|>")
        self._end = tokenizer.control("<|im_end|>")

    def encode(
        self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] | None = None
    ) -> list[int]:
        """Tokens of the conversation, up to where the assistant's answer begins.

        messages: ``role`` (system, developer, user, assistant) and ``content``. Raises
        InvalidPrompt.
        """
        if tools:
            raise InvalidPrompt("the model's chat template has no place for tools")
        turns = [_turn(message) for message in messages]
        if not turns:
            raise InvalidPrompt("messages must not be empty")
        if self._default_system is not None and turns[0][0] != "system":
            turns.insert(0, ("system", self._default_system))
        tokens: list[int] = []
        line_end = self._tokenizer.encode("\n")
        for role, content in turns:
            text = self._tokenizer.encode(f"{role}\n{content}")
            tokens += [self._begin, *text, self._end, *line_end]
        return [*tokens, self._begin, *self._tokenizer.encode("assistant\n")]


def _turn(message: dict[str, Any]) -> tuple[str, str]:
    role, content = message.get("role"), message.get("content")
    if role not in _ROLES:
        raise InvalidPrompt(f"role must be one of {', '.join(_ROLES)}, not {role!r}")
    if not isinstance(content, str):
        raise InvalidPrompt("content must be text")
    return _ROLES[role], content
