"""From a target to the largest gap that may still go to the small model.

Knows gaps and expected qualities. Does not know texts. Two sources: a calibration table, for
quality, and the distribution of gaps, for shares and cost.
"""

import threading
from collections import deque
from math import sqrt
from statistics import NormalDist

import msgspec

from gateway.policy.snapshot import QualityTarget

NEVER_SMALL = -2.0  # below every gap, which lies in -1..1
ALWAYS_SMALL = 2.0

LIVE_GAPS_MIN = 200
LIVE_GAPS_MAX = 4_096
_SORT_EVERY = 64


class Row(msgspec.Struct, frozen=True, array_like=True):
    """All calibration rows with a gap up to ``gap``: how many, and their mean qualities."""

    gap: float
    rows: int
    small: float
    large: float


class CalibrationTable(msgspec.Struct, frozen=True):
    """Cumulative rows, ascending by gap; the last one covers everything."""

    rows: tuple[Row, ...]

    def quality_threshold(self, quality: float, confidence: float) -> float:
        """The largest gap where what goes small keeps ``quality`` of the large model's quality.

        Holds at ``confidence`` for the mean over the requests *sent small*, which is stricter than
        over all requests: the traffic's mix of easy and hard need not be that of the table. The
        variance of a mean of successes is taken as m(1 - m) / n for each model, their covariance,
        which would help, as zero.
        """
        deviations = NormalDist().inv_cdf(min(max(confidence, 0.5), 0.9999))
        threshold = NEVER_SMALL
        for row in self.rows:
            spread = row.small * (1 - row.small) + quality**2 * row.large * (1 - row.large)
            margin = deviations * sqrt(max(spread, 0.0) / row.rows)
            if row.small - quality * row.large >= margin:
                threshold = row.gap
        return threshold

    def share_threshold(self, large_share: float) -> float:
        """The gap above which ``large_share`` of the calibration rows lie."""
        wanted = (1.0 - large_share) * self.rows[-1].rows
        threshold = NEVER_SMALL
        for row in self.rows:
            if row.rows <= wanted:
                threshold = row.gap
        return threshold


class LiveGaps:
    """The last gaps seen, for targets that are shares of this deployment's own traffic.

    Bounded, safe from any thread; sorted when asked for, at most every 64 gaps: 0.3 ms when full.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._gaps: deque[float] = deque(maxlen=LIVE_GAPS_MAX)
        self._sorted: list[float] = []
        self._since_sorted = 0

    def add(self, gap: float) -> None:
        """One more request's gap."""
        with self._lock:
            self._gaps.append(gap)
            self._since_sorted += 1

    def share_threshold(self, large_share: float) -> float | None:
        """The gap above which ``large_share`` of recent requests lie; None before 200 of them."""
        with self._lock:
            if self._since_sorted >= _SORT_EVERY:
                self._sorted = sorted(self._gaps)
                self._since_sorted = 0
            gaps = self._sorted
        if len(gaps) < LIVE_GAPS_MIN:
            return None
        small_count = round((1.0 - large_share) * len(gaps))
        if small_count <= 0:
            return NEVER_SMALL
        return gaps[min(small_count, len(gaps)) - 1]


def threshold_for(target: QualityTarget, table: CalibrationTable, live: LiveGaps) -> float:
    """The threshold of one target.

    A cost target is a share of large calls here: the small model runs on our own machine and its
    cost is taken as zero against a paid call's. Extremes mean what they say.
    """
    if target.quality is not None:
        if target.quality <= 0.0:
            return ALWAYS_SMALL
        return table.quality_threshold(target.quality, target.confidence)
    share = target.cost if target.cost is not None else target.large_share
    if share is None or share >= 1.0:
        return NEVER_SMALL
    if share <= 0.0:
        return ALWAYS_SMALL
    found = live.share_threshold(share)
    return table.share_threshold(share) if found is None else found
