"""How many requests the local model is given at once: as many as it answers without much queueing.

Nobody can know the number beforehand: it depends on the machine, the model, the prompts, and on
whoever else computes there. So it is measured: the wait for the first token is compared with what
prompts of that size wait where few are under way. Knows times and sizes; no socket, no clock.
"""

import math

from gateway.upstreams.bulkhead import Bulkhead

TOLERANCE = 3.0
"""Longer than so many times the usual wait of its class: the model queues. A class spans sizes from
one power of two to the next, so 2 of the 3 may be the prompt's own length."""

_DECREASE = 0.8
_WEIGHT = 0.1  # of one more wait in the usual wait


class AdaptiveLimit:
    """Additive increase, multiplicative decrease of a bulkhead's limit, between floor and maximum.

    The floor is the number of slots with which one tenant alone, at its share, keeps the whole
    model busy: fewer would leave the model idle while requests wait. A busy machine makes waits
    noisy, and without the floor the limit fell to 2 and stayed there for minutes.

    The limit grows by one per limit of prompt answers, and only while it is nearly used up: an idle
    model proves nothing about a larger one. It falls by a fifth for a late answer, and once for
    all the answers that were asked for before it last fell. The usual wait is learnt only from
    requests that met ``unloaded`` others at most; learnt under load, it would be compared with its
    own queue, and both would grow together.
    """

    def __init__(self, slots: Bulkhead, *, start: int, unloaded: int) -> None:
        """unloaded: so many the model computes at once; fewer than those do not queue."""
        self._slots = slots
        self._floor = min(math.ceil(unloaded / slots.tenant_share), slots.slots_max)
        self._limit = float(start)
        self._unloaded = unloaded
        self._fell = 0.0
        self._usual: dict[int, float] = {}  # seconds, by size class
        slots.set_limit(start)

    def answered(self, size_bytes: int, under_way: int, asked: float, first: float) -> None:
        """The first token of an answer has come. asked, first: monotonic seconds.

        size_bytes: of the prompt; under_way: requests when it was asked, itself included.
        """
        size_class, wait = size_bytes.bit_length(), first - asked
        usual = self._usual.setdefault(size_class, wait)
        if wait > TOLERANCE * usual:
            self._fall(asked, first)
        elif self._slots.in_use >= 0.75 * self._slots.limit:
            self._set(self._limit + 1 / self._limit)
        if under_way <= self._unloaded:
            self._usual[size_class] += _WEIGHT * (wait - usual)
        elif wait < usual:
            self._usual[size_class] = wait

    def failed(self, asked: float, now: float) -> None:
        """It refused for being busy, or did not begin in time."""
        self._fall(asked, now)

    def _fall(self, asked: float, now: float) -> None:
        if asked >= self._fell:
            self._fell = now
            self._set(self._limit * _DECREASE)

    def _set(self, limit: float) -> None:
        self._limit = float(min(max(self._floor, limit), self._slots.slots_max))
        self._slots.set_limit(int(self._limit))
