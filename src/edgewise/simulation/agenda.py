"""What is to happen in virtual time, in order; what happens at one instant is worked off together."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

Call = tuple[Callable[..., None], tuple[Any, ...]]


class Agenda:
    """Calls by virtual time; those of one time run in the order they were added.

    Attributes:
        now: Virtual seconds since the start.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._times: list[float] = []
        self._calls: dict[float, deque[Call]] = {}

    def after(self, seconds: float, call: Callable[..., None], *args: Any) -> None:
        """Puts a call on the agenda, so many virtual seconds from now."""
        time = self.now + seconds
        calls = self._calls.get(time)
        if calls is None:
            calls = self._calls[time] = deque()
            heapq.heappush(self._times, time)
        calls.append((call, args))

    def calls(self) -> Iterator[tuple[float, Callable[..., None], tuple[Any, ...]]]:
        """What is on it: time, call and arguments, in the order they would run."""
        for time in sorted(self._times):
            for call, args in self._calls[time]:
                yield time, call, args

    def load(self, now: float, calls: Iterable[tuple[float, Callable[..., None], tuple[Any, ...]]]) -> None:
        """Makes it what `calls` said at a time.

        Args:
            now: Virtual seconds since the start.
            calls: In their order.
        """
        self.now, self._calls = now, {}
        for time, call, args in calls:
            self._calls.setdefault(time, deque()).append((call, args))
        self._times = sorted(self._calls)

    def step(self, at_rest: Callable[[], None]) -> bool:
        """Runs one call; where an instant has none left, what is done at its end.

        Args:
            at_rest: As in `run`.

        Returns:
            Whether anything is left.
        """
        if not self._times:
            return False
        self.now = self._times[0]
        calls = self._calls[self.now]
        if calls:
            call, args = calls.popleft()
            call(*args)
        else:
            at_rest()
        if not calls:
            at_rest()
        if not calls:
            del self._calls[heapq.heappop(self._times)]
        return bool(self._times)

    def run(self, at_rest: Callable[[], None], until: Callable[[], bool]) -> None:
        """Runs the agenda.

        Args:
            at_rest: Called when everything of an instant is done; may add calls, also at the same time.
            until: Checked after each instant; ends the run early.
        """
        while self._times and not until():
            time = self._times[0]
            self.now = time
            calls = self._calls[time]
            while calls:
                call, args = calls.popleft()
                call(*args)
            at_rest()
            if not calls:
                heapq.heappop(self._times)  # nothing earlier can have been added
                del self._calls[time]
