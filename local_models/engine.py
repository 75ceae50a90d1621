"""Continuous batching: many requests, one thread, one session.

The engine thread owns the session. Each step appends one token to every sequence that is
decoding and, beside them, one chunk of the one sequence whose prompt is being read; sequences
join and leave between steps. Sequences that decode fill the session's slots from the first on;
the one that prefills has the slot after them.

    submit ──► waiting line ──► prefill, chunk by chunk ──► decode, row of the batch ──► deliver

Knows requests and slots. Does not know tenants, sockets or an event loop: ``deliver`` is called
on the engine thread and must return quickly.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Many
from pathlib import Path
from typing import Any

from local_models import cpu_traits, graph, native, sampler
from local_models.chat_template import ChatTemplate, texts_of
from local_models.constraints import check as check_constraint
from local_models.decoder_graph import Options
from local_models.devices import choose
from local_models.family import read_shape
from local_models.fit import require_room
from local_models.gguf import GgufFile
from local_models.grammar import Compiler
from local_models.labels import LabelSequence
from local_models.memory import Need, need_of
from local_models.messages import (
    Delta,
    Device,
    EngineBusy,
    Finished,
    FinishReason,
    GenerationRequest,
    InvalidModel,
    InvalidPrompt,
    LocalModelError,
    ModelInfo,
    ModelUnavailable,
    PromptTooLong,
    SamplingParams,
    TokenLogprob,
)
from local_models.prefixes import PIECE_TOKENS_MIN, Prefixes
from local_models.sequence import Deliver, Sequence
from local_models.session import DecoderSession
from local_models.tokenizer import Tokenizer

__all__ = [
    "Delta",
    "Engine",
    "EngineBusy",
    "Finished",
    "GenerationRequest",
    "InvalidModel",
    "InvalidPrompt",
    "LocalModelError",
    "ModelInfo",
    "ModelUnavailable",
    "PromptTooLong",
    "SamplingParams",
    "TokenLogprob",
]

WAITING_MAX = 64
"""Requests that may wait for a slot; the next one is refused."""

CHUNK_TOKENS_ALONE = 256
"""Prompt tokens read in one step when nobody else would be kept waiting."""

CHUNK_TOKENS_SHARED = 64
"""Prompt tokens read in one step beside rows that decode: at 1,300 tokens/s they pause 50 ms."""

CLOSE_TIMEOUT_SECONDS = 10.0

_log = logging.getLogger(__name__)


class Engine:
    """A loaded model that answers requests. Any thread may call ``submit`` and ``cancel``."""

    info: ModelInfo

    def __init__(
        self, session: DecoderSession, tokenizer: Tokenizer, chat: ChatTemplate, info: ModelInfo
    ) -> None:
        self.info = info
        self._session = session
        self._tokenizer = tokenizer
        self._chat = chat
        self._compiler = Compiler(tokenizer)
        self._changed = threading.Condition()
        self._waiting: deque[Sequence] = deque()  # guarded by _changed
        self._cancelled: set[str] = set()  # guarded by _changed
        self._live: set[str] = set()  # guarded by _changed
        self._closed = False  # guarded by _changed
        self._decoding: list[Sequence] = []
        self._prefilling: Sequence | None = None
        self._prefixes = Prefixes(session.slots)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @classmethod
    def load(
        cls,
        model_dir: Path,
        *,
        threads: int = 2,
        slots: int = 4,
        context_tokens: int = 2048,
        accuracy_level: int = 4,
        fused: bool | None = None,
        device: Device = "auto",
        admit: Callable[[Need], None] | None = None,
    ) -> "Engine":
        """Load the model in a catalogue's folder; the first time, its graph is built there.

        fused: our own operators; None takes them when the native library is there and the weights
        suit it. context_tokens: at most what the model was trained for. device: ``auto`` takes
        a GPU where ONNX Runtime can use one; ``info`` says which it is, and why not the other.
        admit: told what the model needs before anything large is loaded; what it raises ends the
        loading. Raises InvalidModel or ModelUnavailable.
        """
        gguf_path = model_dir / "model.gguf"
        gguf = GgufFile(gguf_path)
        shape = read_shape(gguf)
        context_tokens = min(context_tokens, shape.context_tokens)
        require_room(gguf, shape, slots=slots, context_tokens=context_tokens)
        placement = choose(device)
        on_gpu = placement.device == "cuda"
        if admit is not None:
            file_bytes = gguf_path.stat().st_size
            admit(need_of(file_bytes, shape, slots=slots, context_tokens=context_tokens))
        library = native.library_path()
        if fused is None:
            fused = not on_gpu and library is not None and graph.can_be_fused(gguf)
        if fused and library is None:
            raise InvalidModel("the fused operators need the native library, which is not built")
        if fused and on_gpu:
            raise InvalidModel("the engine has no fused operators on a GPU yet")
        options = Options(
            accuracy_level=accuracy_level,
            fused=fused,
            context_tokens=context_tokens,
            pairs=not fused and not on_gpu and cpu_traits.single_rows_differ(accuracy_level),
            half_cache=on_gpu,
        )
        tokenizer = Tokenizer(gguf.metadata)
        if len(tokenizer) != shape.vocabulary:
            raise InvalidModel("the vocabulary and the embedding differ in size")
        session = DecoderSession(
            graph.ensure_graph(gguf_path, options),
            shape,
            options,
            threads=threads,
            slots=slots,
            library=library if fused else None,
            device=placement.device,
        )
        info = ModelInfo(
            name=model_dir.name,
            context_tokens=options.context_tokens,
            vocabulary=shape.vocabulary,
            fused=fused,
            accuracy_level=accuracy_level,
            device=placement.device,
            device_reason=placement.reason,
        )
        return cls(session, tokenizer, ChatTemplate(gguf.metadata, tokenizer), info)

    def submit(self, request: GenerationRequest, deliver: Deliver) -> None:
        """Put a request into the waiting line; its last message to ``deliver`` is a Finished.

        Raises EngineBusy, PromptTooLong or InvalidPrompt at once, and then delivers nothing.
        """
        sampler.check(request.params)
        for token, _ in request.params.logit_bias:
            if token >= self.info.vocabulary:
                raise InvalidPrompt(f"logit_bias: the model has no token {token}")
        if request.constraint is not None:
            check_constraint(request.constraint)
        prompt = self._prompt_tokens(request)
        limit = self.info.context_tokens
        if len(prompt) >= limit:
            raise PromptTooLong(
                f"the prompt has {len(prompt)} tokens; the context window is {limit}"
            )
        kind = LabelSequence if request.labels else Sequence
        sequence = kind(request, prompt, deliver, self._tokenizer, limit)
        with self._changed:
            if self._closed:
                raise EngineBusy("the engine is closed")
            if request.request_id in self._live:
                raise InvalidPrompt(f"request_id {request.request_id!r} is already in use")
            if len(self._waiting) >= WAITING_MAX:
                raise EngineBusy(f"{WAITING_MAX} requests are waiting already")
            if request.constraint is not None:
                sequence.guide = self._compiler.compile(request.constraint, self._notify)
            self._live.add(request.request_id)
            self._waiting.append(sequence)
            self._changed.notify()

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify()

    def cancel(self, request_id: str) -> None:
        """End a request before the next step; unknown and finished ones are ignored."""
        with self._changed:
            if request_id in self._live:
                self._cancelled.add(request_id)
                self._changed.notify()

    def count_tokens(
        self,
        messages_or_prompt: Many[dict[str, Any]] | str,
        tools: Many[dict[str, Any]] | None = None,
    ) -> int:
        """Prompt tokens of a conversation, its template included, or of a raw prompt."""
        self._refuse_what_can_never_fit([messages_or_prompt, tools])
        if isinstance(messages_or_prompt, str):
            return len(self._raw_tokens(messages_or_prompt))
        return len(self._chat.encode(messages_or_prompt, tools))

    def close(self) -> None:
        """Finish every request as cancelled and end the engine thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._compiler.close()
        self._thread.join(CLOSE_TIMEOUT_SECONDS)

    def _prompt_tokens(self, request: GenerationRequest) -> list[int]:
        if (request.messages is None) == (request.prompt is None):
            raise InvalidPrompt("a request has either messages or a prompt")
        self._refuse_what_can_never_fit([request.prompt, request.messages, request.tools])
        if request.messages is not None:
            tokens = self._chat.encode(request.messages, request.tools)
            if not tokens:
                raise InvalidPrompt("the model's chat template makes an empty prompt of this")
            return tokens
        return self._raw_tokens(request.prompt or "")

    def _refuse_what_can_never_fit(self, prompt: Any) -> None:
        """Before tokenizing, which takes a second for some megabytes."""
        limit_bytes = self.info.context_tokens * self._tokenizer.token_bytes_max
        if sum(map(len, texts_of(prompt))) > limit_bytes:
            raise PromptTooLong(f"the prompt is over {limit_bytes} bytes, more than can ever fit")

    def _raw_tokens(self, prompt: str) -> list[int]:
        first = self._tokenizer.first_token
        tokens = self._tokenizer.encode(prompt)
        tokens = tokens if first is None else [first, *tokens]
        if not tokens:
            raise InvalidPrompt("the prompt is empty")
        return tokens

    # From here on: the engine thread.

    def _run(self) -> None:
        while self._wait_for_work():
            try:
                self._retire_unwanted()
                self._step()
            except Exception:
                # The outermost edge: a step's failure must end its requests, never the engine.
                _log.exception("a step of the engine failed")
                self._end_running("error", "the model failed; the log has the reason")
        self._end_running("cancelled", "the engine is closing")
        with self._changed:
            waiting = list(self._waiting)
            self._waiting.clear()
        for sequence in waiting:
            self._end(sequence, "cancelled", "the engine is closing")

    def _wait_for_work(self) -> bool:
        with self._changed:
            while not (self._closed or self._decoding or self._prefilling or self._next_waiting()):
                self._changed.wait()
            return not self._closed

    def _retire_unwanted(self) -> None:
        """End what was cancelled or is too late, wherever it is."""
        now_seconds = time.monotonic()
        with self._changed:
            cancelled = set(self._cancelled)
            waiting = list(self._waiting)
        for sequence in [*self._running(), *waiting]:
            deadline_seconds = sequence.request.deadline_seconds
            if sequence.request.request_id in cancelled:
                self._remove(sequence)
                self._end(sequence, "cancelled")
            elif deadline_seconds is not None and now_seconds >= deadline_seconds:
                self._remove(sequence)
                self._end(sequence, "error", "the deadline passed")

    def _step(self) -> None:
        if self._decoding:
            self._decode()
        if self._prefilling is None:
            self._admit()
        if self._prefilling is not None:
            self._prefill(self._prefilling)

    def _admit(self) -> None:
        with self._changed:
            sequence = self._next_waiting()
            if sequence is None or len(self._decoding) >= self._session.slots:
                return
            self._waiting.remove(sequence)
        refusal = sequence.guide.exception() if sequence.guide is not None else None
        if refusal is not None:
            refused = isinstance(refusal, InvalidPrompt)
            if not refused:
                _log.error("compiling a grammar failed", exc_info=refusal)
            message = str(refusal) if refused else "the form asked for could not be compiled"
            self._end(sequence, "error", message, refused=refused)
            return
        self._prefilling = sequence
        if not self._share_prompt(sequence):
            self._share_prefix(sequence)

    def _next_waiting(self) -> Sequence | None:
        """The first in the waiting line whose grammar does not hold it up; under the lock."""
        return next((sequence for sequence in self._waiting if sequence.ready), None)

    def _share_prompt(self, sequence: Sequence) -> bool:
        """Copy the prompt's keys and values from another answer to the same request, if any."""
        group = sequence.request.group
        if not group:
            return False
        for slot, other in enumerate(self._decoding):
            logits = other.prompt_logits
            if (
                other.request.group == group
                and other.prompt == sequence.prompt
                and logits is not None
            ):
                target = len(self._decoding)
                self._session.move(slot, target, len(sequence.prompt))
                self._prefixes.copied(slot, target)
                sequence.cached = len(sequence.prompt)
                sequence.shared_tokens = other.shared_tokens
                self._begin(sequence, logits)
                self._retire_if_ended(sequence)
                return True
        return False

    def _share_prefix(self, sequence: Sequence) -> None:
        """Begin with what a slot still holds of the prompt, for the same scope."""
        begin_seconds = time.perf_counter()
        scope, prompt, target = sequence.request.scope, sequence.prompt, len(self._decoding)
        source, tokens = self._prefixes.longest(scope, prompt)
        in_place = tokens > 0 and source == target
        if self._prefixes.worth_keeping(target, beside=prompt if in_place else None):
            self._rescue(target, target, besides=source if tokens else -1)
        if tokens and not in_place:
            self._session.move(source, target, tokens)
        sequence.cached = sequence.shared_tokens = tokens
        self._prefixes.hold(target, scope, prompt, tokens)
        sequence.compute_seconds += time.perf_counter() - begin_seconds

    def _rescue(self, slot: int, first: int, besides: int = -1) -> None:
        """Copy a slot that is about to be overwritten to the oldest free one, from ``first`` on."""
        oldest = self._prefixes.oldest(first, besides)
        if oldest is not None and oldest != slot:
            self._session.move(slot, oldest, self._prefixes.length(slot))
            self._prefixes.copied(slot, oldest)

    def _begin(self, sequence: Sequence, logits: "sampler.Float") -> None:
        """Make a row of a sequence whose prompt is in the cache; float32 [vocabulary]."""
        if sequence.request.group:
            sequence.prompt_logits = logits.copy()
        self._decoding.append(sequence)
        self._prefilling = None
        self._accept(sequence, logits)

    def _decode(self) -> None:
        begin_seconds = time.perf_counter()
        rows = list(self._decoding)
        logits = self._session.decode(
            [sequence.last_token for sequence in rows], [sequence.cached for sequence in rows]
        )
        for row, sequence in enumerate(rows):
            sequence.cached += 1
            self._accept(sequence, logits[row])
        share_seconds = (time.perf_counter() - begin_seconds) / len(rows)
        for sequence in rows:
            sequence.compute_seconds += share_seconds
        for sequence in rows:
            self._retire_if_ended(sequence)

    def _prefill(self, sequence: Sequence) -> None:
        begin_seconds = time.perf_counter()
        size = CHUNK_TOKENS_SHARED if self._decoding else CHUNK_TOKENS_ALONE
        left = len(sequence.prompt) - sequence.cached
        if 0 < left - size < PIECE_TOKENS_MIN:
            size -= PIECE_TOKENS_MIN
        chunk = sequence.prompt[sequence.cached : sequence.cached + size]
        slot = len(self._decoding)
        logits = self._session.prefill(slot, chunk, sequence.cached)
        sequence.cached += len(chunk)
        self._prefixes.hold(slot, sequence.request.scope, sequence.prompt, sequence.cached)
        if sequence.prefilled:
            self._begin(sequence, logits)
        sequence.compute_seconds += time.perf_counter() - begin_seconds
        self._retire_if_ended(sequence)

    def _accept(self, sequence: Sequence, logits: "sampler.Float") -> None:
        try:
            sequence.accept(logits)
        except Exception:
            # A reader that fails loses its own answer; the other rows go on.
            _log.exception("delivering to request %s failed", sequence.request.request_id)
            sequence.reason = "error"

    def _retire_if_ended(self, sequence: Sequence) -> None:
        if sequence.reason is not None:
            self._remove(sequence)
            self._end(sequence, sequence.reason)

    def _remove(self, sequence: Sequence) -> None:
        """Take a sequence out of the line or its slot, and close the gap it leaves."""
        if sequence is self._prefilling:
            self._prefilling = None
        elif sequence in self._decoding:
            slot, last = self._decoding.index(sequence), len(self._decoding) - 1
            moved = self._decoding.pop()
            reading = self._prefilling
            overwritten = moved is not sequence or reading is not None
            if overwritten and self._prefixes.worth_keeping(slot):
                self._rescue(slot, last + 1 if reading is None else last + 2)
            if moved is not sequence:
                self._move(last, slot, moved.cached)
                self._decoding[slot] = moved
            if reading is not None:
                self._move(last + 1, last, reading.cached)
        else:
            with self._changed:
                self._waiting.remove(sequence)

    def _move(self, source: int, target: int, length: int) -> None:
        self._session.move(source, target, length)
        self._prefixes.copied(source, target)
        self._prefixes.clear(source)

    def _end(
        self, sequence: Sequence, reason: FinishReason, message: str = "", *, refused: bool = False
    ) -> None:
        with self._changed:
            self._live.discard(sequence.request.request_id)
            self._cancelled.discard(sequence.request.request_id)
        try:
            sequence.finish(reason, message, refused=refused)
        except Exception:
            _log.exception("ending request %s failed", sequence.request.request_id)

    def _end_running(self, reason: FinishReason, message: str) -> None:
        running = self._running()
        self._decoding, self._prefilling = [], None
        self._prefixes = Prefixes(self._session.slots)  # a step that failed may have left anything
        for sequence in running:
            self._end(sequence, reason, message)

    def _running(self) -> list[Sequence]:
        return [*self._decoding, *([self._prefilling] if self._prefilling else [])]
