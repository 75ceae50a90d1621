"""Counting tokens where no provider did: exactly for OpenAI's encodings, else by estimate.

The vocabularies come with the ``bpe-openai`` wheel (GitHub's Rust tokenizer); nothing is ever
downloaded. Loading one takes 0.3 s and 75 MB, so it happens on first need, in a thread, and until
then counts are estimates: the caller is told which it got.
"""

import threading
import warnings
from typing import Protocol

from gateway.wire.openai import ParsedRequest
from gateway.wire.sizes import size_of
from gateway.wire.verbatim import without_halves

BYTES_PER_TOKEN = 4
_CL100K = ("gpt-4-", "gpt-3.5", "text-embedding-3", "text-embedding-ada")
_O200K = ("gpt-4o", "gpt-4.1", "gpt-4.5", "gpt-5", "o1", "o3", "o4", "chatgpt-4o")


class _Encoding(Protocol):
    def encode_ordinary(self, text: str) -> list[int]: ...


class Tokenizers:
    """The encodings loaded so far."""

    def __init__(self) -> None:
        self._loaded: dict[str, _Encoding] = {}
        self._loading: dict[str, threading.Thread] = {}

    def get(self, name: str) -> _Encoding | None:
        """An encoding, or None while it is still being loaded; never waits."""
        found = self._loaded.get(name)
        if found is None and name not in self._loading:
            thread = threading.Thread(target=self._load, args=(name,), daemon=True)
            self._loading[name] = thread
            thread.start()
        return found

    def wait(self, name: str) -> _Encoding:
        """An encoding, loading it here and now. Not for the event loop."""
        if self.get(name) is None:
            self._loading[name].join()
        return self._loaded[name]

    def _load(self, name: str) -> None:
        with warnings.catch_warnings():
            # The wheel reads its files in a way that Python 3.11 calls deprecated.
            warnings.simplefilter("ignore", DeprecationWarning)
            import bpe_openai

            self._loaded[name] = bpe_openai.get_encoding(name)


TOKENIZERS = Tokenizers()


def encoding_name(model: str | None) -> str | None:
    """The encoding that ``model`` uses, or None where it is not one of OpenAI's."""
    if model is None:
        return None
    if model.startswith(_O200K):
        return "o200k_base"
    return "cl100k_base" if model == "gpt-4" or model.startswith(_CL100K) else None


def count_tokens(text: str, *, model: str | None = None) -> tuple[int, bool]:
    """(tokens, exact). Special tokens in the text are ordinary text, as they must be."""
    name = encoding_name(model)
    encoding = TOKENIZERS.get(name) if name is not None else None
    if encoding is None:
        return estimate(size_of(text)), False
    return len(encoding.encode_ordinary(without_halves(text))), True


def estimate(size_bytes: int) -> int:
    """Tokens of so many bytes of text, at four bytes each, rounded up."""
    return -(-size_bytes // BYTES_PER_TOKEN)


def count_prompt(request: ParsedRequest, *, model: str | None = None) -> tuple[int, bool]:
    """(tokens, False): an estimate of a prompt's tokens, for a provider that did not say.

    Chat templates differ between providers, so not even an exact tokenizer counts a chat exactly;
    three tokens per message and three for the answer's head is OpenAI's published rule.
    """
    if request.endpoint == "chat":
        texts = [
            m["content"] for m in request.body["messages"] if isinstance(m.get("content"), str)
        ]
        tokens = sum(count_tokens(text, model=model)[0] for text in texts)
        others = max(0, request.prompt_bytes - sum(size_of(text) + 8 for text in texts))
        return tokens + 4 * request.messages_count + 3 + estimate(others), False
    if request.endpoint == "completions" and request.last_user_text is not None:
        return count_tokens(request.last_user_text, model=model)[0], False
    return estimate(request.prompt_bytes), False
