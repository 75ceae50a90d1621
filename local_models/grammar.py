"""Answers that keep a form: JSON by a schema, a regular expression, one of several texts.

Constraints become grammars of llguidance, compiled on a thread of their own, with bounds on time
and memory; the last ones are kept. A ``Guide`` is one answer's place in its grammar: it says which
tokens may come next. Knows vocabularies and grammars; does not know requests, slots or sampling.
"""

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt
from llguidance import (
    LLMatcher,
    LLParserLimits,
    LLTokenizer,
    TokenizerWrapper,
)

from local_models import tool_calls
from local_models.constraints import calling_of, check, decoded
from local_models.endings import endings
from local_models.json_schema import for_grammar
from local_models.messages import Constraint, InvalidPrompt
from local_models.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

GRAMMARS_MAX = 32
"""Compiled grammars that are kept for the next request with the same constraint."""

CLOSING_TOKENS = 64
"""Of the tokens that an answer may have, the last so many close what is open; more of a schema."""

# llguidance's own limits allow a step 50 ms and a grammar 500 MB. A schema of the tests compiles
# in 1 to 4 ms with these, too.
_LIMITS = LLParserLimits(
    initial_lexer_fuel=500_000,
    step_lexer_fuel=100_000,
    step_max_items=20_000,
    max_items_in_row=4_000,  # of an object with 900 properties that may be left out; 30 ms, once
    max_lexer_states=20_000,
    max_grammar_size=100_000,
    verbose_errors=False,
)
# No free white space: a small model would fill an answer with it.
_STYLE: "JsonCompileOptions" = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}

_MARK = tool_calls.BEGIN.encode()
_MARK_BYTES = len(_MARK) + 2

Mask = npt.NDArray[np.bool_]


class GrammarFailed(Exception):
    """A grammar became too complex in the midst of an answer."""


class Guide:
    """One answer's place in its grammar. Belongs to one thread at a time."""

    def __init__(self, matcher: LLMatcher, vocabulary: "GrammarVocabulary", constraint: Constraint):
        self._matcher = matcher
        self._vocabulary = vocabulary
        kind = constraint.kind
        self._json = _JsonPlace() if kind in ("json", "calls") else None
        self._may_be_text = kind == "calls"
        self.in_text = False
        """The next token belongs to text beside calls: nothing is open, nothing is to be closed."""
        self.closing = False
        """From now on the shortest way to the end is taken."""
        self.closing_tokens = 0
        self._endings: tuple[str, ...] = ()
        self._forced: list[int] = []
        if self._json is not None:
            self.closing_tokens = CLOSING_TOKENS + len(constraint.source) // 4
            self._endings = endings(decoded(constraint.source))

    @property
    def closes(self) -> bool:
        """Whether there is a shortest way to the end, as in JSON."""
        return self._json is not None

    @property
    def complete(self) -> bool:
        """Nothing may follow."""
        return bool(self._matcher.is_stopped())

    def allowed(self) -> Mask:
        """Tokens that may come next, bool [vocabulary]. Raises GrammarFailed."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise GrammarFailed(self._why())
        mask: Mask = np.unpackbits(bits, bitorder="little")[: self._vocabulary.size].view(np.bool_)
        if self._may_be_text:
            ends = mask[[*self._vocabulary.ends]].any()
            self.in_text = bool(ends and 2 * np.count_nonzero(mask) > len(mask))
        if self.closing and not self.in_text:
            return self._shortest(mask)
        return mask

    def accept(self, token: int) -> None:
        """Go on by a token that was allowed. Raises GrammarFailed."""
        if not self._matcher.consume_token(token):
            raise GrammarFailed(self._why())
        if self._json is not None:
            self._json.feed(self._vocabulary.bytes_of(token))

    def _why(self) -> str:
        return "the form asked for cannot be followed: " + _one_line(self._matcher.get_error())

    def _shortest(self, mask: Mask) -> Mask:
        """Of the allowed tokens, those that close what is open."""
        words, place = self._vocabulary, self._json
        first = [*words.ends]
        if place is not None:
            first += words.in_text if place.in_text else words.between_texts
        chosen = next((token for token in first if mask[token]), None)
        if chosen is None and place is not None and place.in_text:
            if not self._forced:
                self._forced = self._way_out()
            if self._forced and mask[self._forced[0]]:
                chosen = self._forced.pop(0)
        if chosen is not None:
            only = np.zeros_like(mask)
            only[chosen] = True
            return only
        unopened = mask & ~words.opening
        return unopened if unopened.any() else mask

    def _way_out(self) -> list[int]:
        """Tokens that end the open text as its pattern asks; none where no ending is known."""
        for text in self._endings:
            for start in range(len(text)):
                tokens = self._vocabulary.encode(text[start:] + '"')
                if self._matcher.validate_tokens(tokens) == len(tokens):
                    return tokens
        return []


class _JsonPlace:
    """Whether a growing JSON document is within a text."""

    def __init__(self) -> None:
        self.in_text = False
        self._escaped = False
        self._last = b""

    def feed(self, piece: bytes) -> None:
        """The document's next bytes."""
        # Whatever a text before a call has had of quotation marks, the call begins without.
        self._last = (self._last + piece)[-_MARK_BYTES:]
        for byte in piece:
            if self._escaped:
                self._escaped = False
            elif byte == 0x22:
                self.in_text = not self.in_text
            elif byte == 0x5C:
                self._escaped = self.in_text
        if _MARK in self._last:
            self.in_text = self._escaped = False


class GrammarVocabulary:
    """A model's tokens as llguidance wants them, and those that close JSON."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.size = len(tokenizer)
        self.ends = sorted(tokenizer.end_tokens)
        self._of_bytes = {tokenizer.bytes_of(token): token for token in reversed(range(self.size))}
        self.in_text = self._tokens(b'"')
        self.between_texts = self._tokens(b"}", b"]", b",", b'"')
        self.opening = np.array(
            [tokenizer.bytes_of(token).startswith((b"{", b"[")) for token in range(self.size)]
        )
        self.for_grammars = LLTokenizer(
            # Of a kind that it knows by an attribute, not by inheritance.
            cast(TokenizerWrapper, _Described(tokenizer)),
            n_vocab=self.size,
            eos_token=self.ends,
            slices=LLTokenizer.json_slices(),
        )

    def bytes_of(self, token: int) -> bytes:
        """What a token adds to the text."""
        return self._tokenizer.bytes_of(token)

    def refuse_unspellable(self, texts: list[str]) -> None:
        """Raise InvalidPrompt for a text with bytes that no token has."""
        for text in texts:
            if b"".join(map(self.bytes_of, self.encode(text))) != text.encode():
                raise InvalidPrompt(f"the model's vocabulary cannot spell {text[:40]!r}")

    def encode(self, text: str) -> list[int]:
        """Tokens of a text."""
        return self._tokenizer.encode(text)

    def _tokens(self, *texts: bytes) -> list[int]:
        return [self._of_bytes[text] for text in texts if text in self._of_bytes]


class _Described:
    """The attributes that llguidance reads of a tokenizer of another library."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = min(tokenizer.end_tokens)
        self.special_token_ids: list[int] = []
        self.tokens: list[bytes] = []
        for token in range(len(tokenizer)):
            text = tokenizer.bytes_of(token)
            if not text:
                self.special_token_ids.append(token)
            self.tokens.append(text or b"<special %d>" % token)

    def __call__(self, text: str | bytes) -> list[int]:
        """Tokens of a text."""
        plain = text if isinstance(text, str) else text.decode(errors="replace")
        return self._tokenizer.encode(plain)


class Compiler:
    """Turns constraints into guides, off the calling thread. Any thread may call."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="grammars")
        # Of the compiling thread alone.
        self._vocabulary: GrammarVocabulary | None = None
        self._kept: OrderedDict[Constraint, LLMatcher] = OrderedDict()
        self._compiled = 0
        self._lock = threading.Lock()

    @property
    def compiled(self) -> int:
        """Grammars compiled so far, not those that were kept."""
        return self._compiled

    def compile(self, constraint: Constraint, then: Callable[[], None]) -> "Future[Guide]":
        """A guide at the beginning, or InvalidPrompt; ``then`` is called once there is either."""
        future = self._thread.submit(self._guide, constraint)
        future.add_done_callback(lambda _: then())
        return future

    def close(self) -> None:
        """Compile no more."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _guide(self, constraint: Constraint) -> Guide:
        if self._vocabulary is None:
            self._vocabulary = GrammarVocabulary(self._tokenizer)
        kept = self._kept.get(constraint)
        if kept is None:
            if constraint.kind == "choice":
                self._vocabulary.refuse_unspellable(decoded(constraint.source))
            kept = self._matcher(_grammar(constraint), self._vocabulary)
            self._kept[constraint] = kept
            if len(self._kept) > GRAMMARS_MAX:
                self._kept.popitem(last=False)
        self._kept.move_to_end(constraint)
        return Guide(kept.deep_copy(), self._vocabulary, constraint)

    def _matcher(self, grammar: str, vocabulary: GrammarVocabulary) -> LLMatcher:
        self._compiled += 1
        matcher = LLMatcher(vocabulary.for_grammars, grammar, log_level=0, limits=_LIMITS)
        if not matcher.is_error():
            # The first step builds most of what a hostile expression would make slow.
            matcher.compute_bitmask()
        if matcher.is_error():
            raise InvalidPrompt(_reason(matcher.get_error()))
        return matcher


def _grammar(constraint: Constraint) -> str:
    check(constraint)
    if constraint.kind == "json":
        schema = decoded(constraint.source)
        if isinstance(schema, bool):
            schema = {} if schema else {"enum": []}
        try:
            written = json.dumps(for_grammar(schema))
            return LLMatcher.grammar_from_json_schema(written, overrides=_STYLE)
        except (ValueError, RecursionError) as error:
            raise InvalidPrompt(_reason(str(error))) from error
    if constraint.kind == "calls":
        calling = calling_of(constraint.source)
        return LLMatcher.grammar_from_lark(tool_calls.grammar(calling, dict(_STYLE)))
    if constraint.kind == "choice":
        expression = "|".join(re.escape(choice) for choice in decoded(constraint.source))
    else:
        expression = constraint.source
    return LLMatcher.grammar_from_regex(expression)


def _reason(words: str) -> str:
    return "the form asked for cannot be kept: " + _one_line(words)


def _one_line(words: str) -> str:
    """The library's words."""
    return " ".join(words.split())[:300]
