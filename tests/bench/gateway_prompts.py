"""The requests the benchmarks send, as bytes; each but the repeated one is new to any cache."""

import itertools
import json
from collections.abc import Callable
from typing import Any

Make = Callable[[], bytes]

_NUMBERS = itertools.count(1)  # no request of this process is like another

PATH = "/v1/chat/completions"
_SYSTEM = "You are a helpful assistant of a company. " * 4
_TEXT = """
garden river engine window market teacher winter summer music paper bridge forest kitchen doctor
island letter mountain station village ocean camera bottle horse student animal picture machine
railway castle harbor pencil ticket basket carpet dinner family farmer finger flower guitar hammer
hotel jacket kettle ladder lemon mirror needle office orange parent planet pocket prison rabbit
rocket saddle salad school shadow silver spider tunnel
"""
_WORDS = tuple(_TEXT.split())
LONG = (
    "We have been asked to compare two ways of heating a small old house in the country, one with"
    " wood and one with electricity. The house has four rooms, an old roof and thin walls. It is"
    " used on most weekends between October and April. Please explain step by step which of the two"
    " costs less over ten years, what has to be bought at the start, which repairs are likely, and"
    " what could change the result of it all. At the end, please say in one sentence what you would"
    " do yourself. Case "
)  # with its number, 500 characters
_SENTENCE = "How does a {} change the {} when a {} and a {} stand near the same {} for a long time?"


def post(path: str, headers: dict[str, str], body: dict[str, Any]) -> bytes:
    """One request as bytes."""
    raw = json.dumps(body, separators=(",", ":")).encode()
    lines = {"content-type": "application/json", **headers, "content-length": str(len(raw))}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST {path} HTTP/1.1\r\nhost: bench\r\n{head}\r\n".encode() + raw


def short(headers: dict[str, str], model: str, path: str = PATH, **more: Any) -> Make:
    """About 60 tokens with a system prompt; never the same twice."""
    return _numbered(post(path, headers, _question(model, "N" * 12) | more))


def _question(model: str, number: str) -> dict[str, Any]:
    messages = [
        {"role": "system", "content": _SYSTEM},
        {"role": "user", "content": f"What is the answer to question number {number}?"},
    ]
    return {"model": model, "messages": messages, "max_tokens": 64}


def repeated(headers: dict[str, str], model: str) -> Make:
    """The same request each time, in every round."""
    request = post(PATH, headers, _question(model, "000000000000"))
    return lambda: request


def long(headers: dict[str, str], model: str) -> Make:
    """A prompt of 500 characters; never the same twice."""
    text = LONG + "N" * 12 + "."
    message = {"role": "user", "content": text}
    return _numbered(post(PATH, headers, {"model": model, "messages": [message], "max_tokens": 64}))


def worded(headers: dict[str, str], model: str) -> Make:
    """A prompt of about 28 tokens of the embedding model; never the same twice, nor in meaning."""

    def make() -> bytes:
        # The stride is prime to the number of combinations: neighbours differ in most words.
        rest, chosen = next(_NUMBERS) * 382_680_043 % len(_WORDS) ** 5, []
        for _ in range(5):
            rest, place = divmod(rest, len(_WORDS))
            chosen.append(_WORDS[place])
        message = {"role": "user", "content": _SENTENCE.format(*chosen)}
        return post(PATH, headers, {"model": model, "messages": [message], "max_tokens": 64})

    return make


def _numbered(request: bytes) -> Make:
    """Puts a new number of as many digits in the place of the twelve Ns."""
    before, _, after = request.partition(b"N" * 12)
    return lambda: b"%b%012d%b" % (before, next(_NUMBERS), after)
