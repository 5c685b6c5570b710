"""Passes time as an argument: a wall clock for the fleet, a virtual one for simulation and tests."""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable
from typing import Protocol


class Clock(Protocol):
    """Tells the time; nothing in `core` to `lifecycle` asks the system for it."""

    def now(self) -> float:
        """Returns seconds since an arbitrary start; never decreases."""
        ...


class WallClock:
    """Reads the machine's monotonic clock."""

    def now(self) -> float:
        """Returns seconds of `time.monotonic`, which processes of one machine share."""
        return time.monotonic()


class VirtualClock:
    """Advances only by running its agenda of callbacks.

    Example:
        >>> clock = VirtualClock()
        >>> clock.call_at(2.0, lambda: print("at", clock.now()))
        >>> clock.run()
        at 2.0
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def now(self) -> float:
        """Returns virtual seconds since the start."""
        return self._now

    def call_at(self, time_s: float, callback: Callable[[], None]) -> None:
        """Schedules a callback; equal times run in the order they were added."""
        heapq.heappush(self._agenda, (max(time_s, self._now), next(self._order), callback))

    def run(self, until_s: float = float("inf")) -> None:
        """Runs the agenda until it is empty or its next time is past `until_s`."""
        while self._agenda and self._agenda[0][0] <= until_s:
            self._now, _, callback = heapq.heappop(self._agenda)
            callback()
