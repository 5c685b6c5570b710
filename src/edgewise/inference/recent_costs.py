"""What the last runs of something took: the slowest of them, a running mean, and what one of another size is expected to take."""

from __future__ import annotations

from collections import deque

_WINDOW = 64
_MEMORY = 16
_SIZES = 16
_MOST_TIMES = 3.0


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


class CostBySize:
    """What runs took by the size of what they were given, for the sizes seen last.

    A size not seen is expected to take in proportion to the largest below it, at most what a larger one took. A run that
    took many times the usual counts as three times that: what lasts is learned from some runs.
    """

    __slots__ = ("_means",)

    def __init__(self) -> None:
        self._means: dict[int, float] = {}

    def add(self, size: int, seconds: float) -> None:
        """Takes one run.

        Args:
            size: Of what it was given, e.g. entries.
            seconds: What it took.
        """
        before = self._means.pop(size, None)
        if before is not None:  # a pause of the machine in one run says nothing of the next, and would have it refused
            before = min(before, _MOST_TIMES * seconds)  # nor does a first run, which loads what others find
            seconds = running_mean(before, min(seconds, _MOST_TIMES * before), is_first=False)
        self._means[size] = seconds
        if len(self._means) > _SIZES:
            del self._means[next(iter(self._means))]

    def expected_s(self, size: int) -> float:
        """Seconds that a run is expected to take; 0 before the first.

        Args:
            size: Of what it is given.
        """
        if (known := self._means.get(size)) is not None:
            return known
        below = max((s for s in self._means if s < size), default=0)
        above = [seconds for s, seconds in self._means.items() if s > size]
        scaled = self._means[below] * size / below if below else max(above, default=0.0)
        return min([scaled, *above])

    def is_sure(self, size: int) -> bool:
        """Whether a run of at least a quarter of a size was seen, so that what is expected is no far guess.

        Args:
            size: Of what a run is given.
        """
        return any(4 * known >= size for known in self._means)
