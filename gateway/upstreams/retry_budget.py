"""How many requests of one upstream may be tried again: a tenth, so that retries never pile up.

Where an upstream fails, every caller that retries adds to the load that made it fail. Counts
requests and the attempts that follow them; knows no time but what it is told.
"""

from collections import deque

RATIO = 0.1
RESERVE = 5
WINDOW_SECONDS = 10


class RetryBudget:
    """In any window at most RATIO of the requests are tried again, or RESERVE of a few.

    The larger of the two, not their sum: from 50 requests in a window on, the calls are at most
    1.1 times the requests, and over any longer time as well, because it is a chain of windows.
    The time given is monotonic, in seconds.
    """

    __slots__ = ("_again", "_requests", "_second", "_seconds")

    def __init__(self) -> None:
        self._seconds: deque[list[int]] = deque([[0, 0, 0]])  # [second, requests, again]
        self._second = self._seconds[0]
        self._requests = self._again = 0

    def request(self, now_seconds: float) -> None:
        """A request makes its first attempt."""
        if int(now_seconds) != self._second[0]:
            self._turn(int(now_seconds))
        self._second[1] += 1
        self._requests += 1

    def take(self, now_seconds: float) -> bool:
        """Whether one more attempt may follow; it then counts as made."""
        if int(now_seconds) != self._second[0]:
            self._turn(int(now_seconds))
        if self._again + 1 > max(RESERVE, int(RATIO * self._requests)):
            return False
        self._second[2] += 1
        self._again += 1
        return True

    def _turn(self, second: int) -> None:
        """Begin another second, and forget those that have left the window."""
        seconds = self._seconds
        self._second = [second, 0, 0]
        seconds.append(self._second)
        while seconds[0][0] <= second - WINDOW_SECONDS:
            _, requests, again = seconds.popleft()
            self._requests -= requests
            self._again -= again
