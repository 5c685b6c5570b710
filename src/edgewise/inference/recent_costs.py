"""What the last runs of something took: the slowest of them, and a running mean."""

from __future__ import annotations

from collections import deque

_WINDOW = 64
_MEMORY = 16


class Slowest:
    """The largest of the last 64 values, without looking at all of them each time.

    Attributes:
        largest: It; 0 before the first.
    """

    __slots__ = ("_count", "_falling", "largest")

    def __init__(self) -> None:
        self._falling: deque[tuple[int, float]] = deque()
        self._count = 0
        self.largest = 0.0

    def add(self, value: float) -> None:
        """Takes one more; the 65th before it is forgotten."""
        # Whoever is not larger than a later one will never be the largest again.
        while self._falling and self._falling[-1][1] <= value:
            self._falling.pop()
        self._falling.append((self._count, value))
        if self._falling[0][0] <= self._count - _WINDOW:
            self._falling.popleft()
        self._count += 1
        self.largest = self._falling[0][1]


def running_mean(mean: float, seconds: float, *, is_first: bool) -> float:
    """A mean in which the last sixteen or so values count.

    Args:
        mean: So far.
        seconds: One value more.
        is_first: Whether there was none before.
    """
    return seconds if is_first else mean + (seconds - mean) / _MEMORY
