"""How likely each of some labels is as the answer.

A label's score is the sum of its tokens' log-probabilities after the prompt. No score is kept from
one request to another. What makes probabilities of scores is ``calibration``.
"""

from collections.abc import Sequence as Many

import numpy as np
import numpy.typing as npt

from local_models.messages import GenerationRequest, InvalidPrompt
from local_models.sequence import Deliver, Sequence
from local_models.tokenizer import Tokenizer

LABELS_MAX = 255
LABEL_TOKENS_MAX = 1_024
"""Of all labels together, beginnings that they share counted once."""


def check(labels: Many[str]) -> None:
    """Raise InvalidPrompt for labels that cannot be told apart."""
    if not 2 <= len(labels) <= LABELS_MAX:
        raise InvalidPrompt(f"there must be 2 to {LABELS_MAX} labels")
    if len(set(labels)) < len(labels) or not all(labels):
        raise InvalidPrompt("labels must differ, and none may be empty")


class LabelSequence(Sequence):
    """A request with labels: walks their tokens as a tree, and generates nothing."""

    def __init__(
        self,
        request: GenerationRequest,
        prompt: list[int],
        deliver: Deliver,
        tokenizer: Tokenizer,
        context_tokens: int,
    ) -> None:
        super().__init__(request, prompt, deliver, tokenizer, context_tokens)
        check(request.labels)
        self._tokens = [tuple(tokenizer.encode(label)) for label in request.labels]
        nodes = {tokens[:end] for tokens in self._tokens for end in range(len(tokens))}
        if len(nodes) > LABEL_TOKENS_MAX or not all(self._tokens):
            raise InvalidPrompt(f"the labels have over {LABEL_TOKENS_MAX} tokens, or one has none")
        if len(prompt) + max(map(len, self._tokens)) > context_tokens:
            raise InvalidPrompt(f"prompt and label are over {context_tokens} tokens")
        self._scores = [0.0] * len(self._tokens)
        self._place: tuple[int, ...] = ()
        # Last in, first out: what a place follows is in the cache when its turn comes.
        self._open: list[tuple[int, ...]] = []

    def accept(self, logits: npt.NDArray[np.float32]) -> None:
        """Take the log-probabilities of what may follow, float32 [vocabulary]; go on elsewhere."""
        if self._overflows(logits):
            return
        shifted = logits.astype(np.float64) - logits.max()
        total = np.log(np.exp(shifted).sum())
        depth, following = len(self._place), set()
        for number, tokens in enumerate(self._tokens):
            if len(tokens) > depth and tokens[:depth] == self._place:
                self._scores[number] += float(shifted[tokens[depth]] - total)
                if len(tokens) > depth + 1:
                    following.add(tokens[: depth + 1])
        self._open += sorted(following)
        if not self._open:
            self.scores, self.reason = tuple(self._scores), "stop"
            return
        self._place = self._open.pop()
        self.last_token = self._place[-1]
        self.cached = len(self.prompt) + len(self._place) - 1
