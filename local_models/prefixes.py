"""Which prompts the slots of the key-value cache still hold, and for whom.

A request whose prompt begins like one that a slot holds need not read that beginning again. Only
requests of one scope share; the empty scope shares nothing. Knows slots, scopes and tokens; copies
nothing: the engine does, and tells.
"""

from typing import NamedTuple

PREFIX_TOKENS_MIN = 32
"""Shortest beginning that is shared: a chat template's own words are fewer."""

PIECE_TOKENS_MIN = 2
"""Shortest piece of a prompt that is read in one step.

Pieces of two tokens and more give the same bits however a prompt is cut; ONNX Runtime's attention
has a path of its own for one token, which adds up in another order.
"""


class _Held(NamedTuple):
    scope: str
    prompt: list[int]
    length: int  # of the prompt's tokens, those whose keys and values are in the slot
    used: int


_NOTHING = _Held("", [], 0, 0)


class Prefixes:
    """What each slot holds. Used by one thread."""

    def __init__(self, slots: int) -> None:
        self._held = [_NOTHING] * slots
        self._clock = 0

    def hold(self, slot: int, scope: str, prompt: list[int], length: int) -> None:
        """The slot holds the first ``length`` tokens of a prompt, and nothing else to share."""
        self._clock += 1
        self._held[slot] = _Held(scope, prompt, length, self._clock) if scope else _NOTHING

    def length(self, slot: int) -> int:
        """How many tokens of a prompt the slot holds."""
        return self._held[slot].length

    def copied(self, source: int, target: int) -> None:
        """What the source holds is in the target, too."""
        self._held[target] = self._held[source]

    def clear(self, slot: int) -> None:
        """The slot holds nothing to share."""
        self._held[slot] = _NOTHING

    def longest(self, scope: str, prompt: list[int]) -> tuple[int, int]:
        """(slot, tokens) of the longest beginning of a prompt that its scope holds; tokens may be
        0. At least PIECE_TOKENS_MIN tokens are left to read.
        """
        best = (0, 0)
        if not scope:
            return best
        most = len(prompt) - PIECE_TOKENS_MIN
        for slot, held in enumerate(self._held):
            if held.scope == scope:
                tokens = min(_common(held, prompt), most)
                if tokens >= PREFIX_TOKENS_MIN and tokens > best[1]:
                    best = (slot, tokens)
        return best

    def worth_keeping(self, slot: int, beside: list[int] | None = None) -> bool:
        """Whether most of what a slot holds is in no other slot, nor in the prompt ``beside``."""
        held = self._held[slot]
        if held.length < PREFIX_TOKENS_MIN:
            return False
        if beside is not None and 2 * _common(held, beside) >= held.length:
            return False
        return not any(
            other.scope == held.scope
            and 2 * min(_common(held, other.prompt), other.length) >= held.length
            for place, other in enumerate(self._held)
            if place != slot
        )

    def oldest(self, first: int, besides: int = -1) -> int | None:
        """The slot from ``first`` on whose tokens were read longest ago; None: there is none."""
        places = [place for place in range(first, len(self._held)) if place != besides]
        return min(places, key=lambda place: self._held[place].used, default=None)


def _common(held: _Held, prompt: list[int]) -> int:
    """How many tokens of a slot's are the prompt's first: by halves, for lists compare quickly."""
    most = min(held.length, len(prompt))
    if held.prompt[:most] == prompt[:most]:
        return most
    least = 0
    while most - least > 1:
        middle = (least + most) // 2
        if held.prompt[least:middle] == prompt[least:middle]:
            least = middle
        else:
            most = middle
    return least
