"""One namespace's vectors: exact search that any thread may run while one writer changes it.

A reader takes one reference to an immutable view. The writer only ever fills rows that no view
shows yet, or publishes a new matrix; nothing a reader holds is changed under it. Imported with the
first entry: who has vectors has NumPy already, and nobody else needs it.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gateway.caches.semantic.slot import Slot

Vector = npt.NDArray[np.float32]
_ROWS_FIRST = 64


class View(NamedTuple):
    """What readers see: the first ``rows`` rows of the matrix and the slots beside them."""

    matrix: Vector  # float32 [at least rows, dimensions]
    slots: list[Slot]
    rows: int


class Index:
    """Flat cosine search over unit vectors; at most ``entries_max``, the oldest go first.

    ``add`` and ``forget`` belong to one writer at a time; ``nearest`` to anybody.
    """

    def __init__(self, *, entries_max: int, dimensions: int) -> None:
        self._entries_max = entries_max
        self._dimensions = dimensions
        self._view = View(np.zeros((0, dimensions), dtype=np.float32), [], 0)

    def __len__(self) -> int:
        return sum(slot.entry is not None for slot in self._view.slots)

    def nearest(self, vector: Vector, *, count: int, floor: float) -> list[tuple[float, Slot]]:
        """The ``count`` most similar slots with a cosine of ``floor`` or more, best first."""
        view = self._view
        if view.rows == 0:
            return []
        cosines = view.matrix[: view.rows] @ vector
        if view.rows > count:
            best = np.argpartition(-cosines, count - 1)[:count]
        else:
            best = np.arange(view.rows)
        ranked = sorted(((float(cosines[row]), int(row)) for row in best), reverse=True)
        return [(cosine, view.slots[row]) for cosine, row in ranked if cosine >= floor]

    def add(self, vector: Vector, slot: Slot) -> None:
        """Append one question; makes room first when the index is full."""
        if self._view.rows >= self._entries_max:
            self._rebuild(keep_max=self._entries_max - max(1, self._entries_max // 8))
        matrix, slots, count = self._view
        if count == len(matrix):
            rows = min(max(_ROWS_FIRST, 2 * count), self._entries_max)
            grown = np.zeros((rows, self._dimensions), dtype=np.float32)
            grown[:count] = matrix[:count]
            matrix = grown
        matrix[count] = vector
        # The list may be shared with older views, which never look beyond their own rows.
        slots.append(slot)
        self._view = View(matrix, slots, count + 1)

    def forget(self, slots: list[Slot]) -> None:
        """Drop answers at once; their rows go when half of the rows are dead."""
        for slot in slots:
            slot.entry = None
        if len(self) * 2 < self._view.rows:
            self._rebuild(keep_max=self._entries_max)

    def slots(self) -> list[Slot]:
        """Every slot that still has an answer."""
        return [slot for slot in self._view.slots if slot.entry is not None]

    def _rebuild(self, *, keep_max: int) -> None:
        view = self._view
        alive = [row for row in range(view.rows) if view.slots[row].entry is not None]
        alive = alive[max(0, len(alive) - keep_max) :] if keep_max else []
        matrix = np.zeros((max(_ROWS_FIRST, len(alive)), self._dimensions), dtype=np.float32)
        matrix[: len(alive)] = view.matrix[alive]
        self._view = View(matrix, [view.slots[row] for row in alive], len(alive))
