"""One request inside the engine: its tokens, its text, and when it ends.

Knows sampling and text; does not know slots, threads or sessions.
"""

from collections.abc import Callable
from concurrent.futures import Future

import numpy as np
import numpy.typing as npt

from local_models.grammar import GrammarFailed, Guide
from local_models.messages import (
    Delta,
    Finished,
    FinishReason,
    GenerationRequest,
    TokenLogprob,
)
from local_models.nonsense import Detector
from local_models.sampler import Sampler, log_probabilities
from local_models.stopping import StopFilter
from local_models.tokenizer import Detokenizer, Tokenizer

Deliver = Callable[[str, Delta | Finished], None]


class Sequence:
    """A prompt that grows. ``cached`` counts its tokens whose keys and values are in the cache."""

    def __init__(
        self,
        request: GenerationRequest,
        prompt: list[int],
        deliver: Deliver,
        tokenizer: Tokenizer,
        context_tokens: int,
    ) -> None:
        self.request = request
        self.prompt = prompt
        self.cached = 0
        self.shared_tokens = 0
        """Of the prompt, tokens that were in the cache when its turn came."""
        self.last_token = prompt[-1]
        self.completion_tokens = 0
        self.compute_seconds = 0.0
        self.guide: Future[Guide] | None = None
        """Of a request with a constraint; it has a result before the first token is chosen."""
        self.message = ""
        self.refused = False
        self.scores: tuple[float, ...] = ()
        self.prompt_logits: npt.NDArray[np.float32] | None = None
        """float32 [vocabulary] after the prompt, of a request in a group."""
        self.reason: FinishReason | None = None
        self._deliver = deliver
        self._tokenizer = tokenizer
        room_tokens = context_tokens - len(prompt)
        self._tokens_max = min(request.params.max_tokens, room_tokens)
        self._sampler = Sampler(request.params)
        self._detokenizer = Detokenizer(tokenizer)
        self._stops = StopFilter(request.params.stop)
        self._detector = Detector(_asked(request)) if request.ends_nonsense else None
        self._undelivered_tokens = 0
        # Logarithms wait with their token's text: they would give a stop string away.
        self._waiting: list[tuple[int, TokenLogprob]] = []
        self._decoded_characters = 0
        self._shown_characters = 0

    @property
    def ready(self) -> bool:
        """Whether its grammar, where it has one, is compiled or refused."""
        return self.guide is None or self.guide.done()

    @property
    def prefilled(self) -> bool:
        """Whether the whole prompt is in the cache."""
        return self.cached >= len(self.prompt)

    def _overflows(self, logits: npt.NDArray[np.float32]) -> bool:
        """End in an error where what would be chosen from the logits means nothing.

        Finite weights may still overflow.
        """
        if np.isfinite(logits.max()):
            return False
        self.reason, self.message = "error", "the model's numbers overflow: its file is damaged"
        return True

    def accept(self, logits: npt.NDArray[np.float32]) -> None:
        """Choose the next token from float32 [vocabulary], and deliver the text it makes certain.

        Sets ``reason`` when the sequence has ended.
        """
        if self._overflows(logits):
            return
        guide = self.guide.result() if self.guide is not None else None
        try:
            token = self._choose(logits, guide)
        except GrammarFailed as error:
            self.reason, self.message = "error", str(error)
            # Nothing can begin by it, whoever is asked: a value that must hold itself, for one.
            self.refused = not self.completion_tokens
            return
        self.last_token = token
        self.completion_tokens += 1
        self._undelivered_tokens += 1
        if token in self._tokenizer.end_tokens:
            self.reason = "stop"
            return
        if self.request.params.logprobs is not None:
            self._waiting.append((self._decoded_characters, self._logprob(logits, token)))
        text = self._detokenizer.push(token)
        self._decoded_characters += len(text)
        nonsense = self._detector.push(token, text) if self._detector is not None else None
        if nonsense is not None and guide is not None and guide.closes and not guide.in_text:
            guide.closing, nonsense = True, None
        shown = self._stops.push(text)
        if self._stops.stopped or (guide is not None and guide.complete):
            self.reason = "stop"
        elif self.completion_tokens >= self._tokens_max:
            self.reason = "length"
        elif nonsense is not None:
            self.reason, self.message = "nonsense", nonsense
        self._show(shown)

    def _choose(self, logits: npt.NDArray[np.float32], guide: Guide | None) -> int:
        if guide is None:
            return self._sampler.choose(logits)
        left = self._tokens_max - self.completion_tokens
        if left <= min(guide.closing_tokens, self._tokens_max // 2):
            guide.closing = True
        token = self._sampler.choose(logits, guide.allowed())
        if token not in self._tokenizer.end_tokens:
            guide.accept(token)
        return token

    def finish(self, reason: FinishReason, message: str = "", *, refused: bool = False) -> None:
        """Deliver what is still held back, then the end."""
        shown = self._stops.push(self._detokenizer.flush())
        self._show(shown + self._stops.flush())
        if self._stops.stopped and reason == "length":
            reason = "stop"
        finished = Finished(
            reason=reason,
            prompt_tokens=len(self.prompt),
            completion_tokens=self.completion_tokens,
            compute_us=round(self.compute_seconds * 1e6),
            message=message or self.message,
            refused=refused or self.refused,
            scores=self.scores,
            cached_tokens=self.shared_tokens,
        )
        self._deliver(self.request.request_id, finished)

    def _show(self, text: str) -> None:
        if not text:
            return
        self._shown_characters += len(text)
        ready = [entry for start, entry in self._waiting if start < self._shown_characters]
        del self._waiting[: len(ready)]
        delta = Delta(text=text, tokens=self._undelivered_tokens, logprobs=tuple(ready))
        self._undelivered_tokens = 0
        self._deliver(self.request.request_id, delta)

    def _logprob(self, logits: npt.NDArray[np.float32], token: int) -> TokenLogprob:
        alternatives = self.request.params.logprobs or 0
        logprob, best = log_probabilities(logits, token, alternatives)
        top = tuple((self._shown_as(other), value) for other, value in best)
        return TokenLogprob(
            token=self._shown_as(token),
            bytes_=self._tokenizer.bytes_of(token),
            logprob=logprob,
            top=top,
        )

    def _shown_as(self, token: int) -> str:
        return self._tokenizer.bytes_of(token).decode("utf-8", errors="replace")


def _asked(request: GenerationRequest) -> str:
    """All that was said before the answer."""
    if request.prompt is not None:
        return request.prompt
    texts = (message.get("content") for message in request.messages or ())
    return "\n".join(text for text in texts if isinstance(text, str))
