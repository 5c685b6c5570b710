"""How many open requests the next site is trusted with: all, until it is full or late, then fewer, then more again.

Reference:
    Chiu & Jain, "Analysis of the Increase and Decrease Algorithms for Congestion Avoidance in Computer Networks",
    Computer Networks and ISDN Systems 1989. Additive increase, multiplicative decrease.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

MOST_REMOTE = 64.0
_CUT_BACK = 0.7


@dataclass(slots=True)
class RemoteWindow:
    """A number of open requests.

    Attributes:
        size: It.
    """

    size: float = MOST_REMOTE
    _cut_s: float = -inf
    _now: Callable[[], float] = time.monotonic

    def grow(self) -> None:
        """One was answered: one more for all of them."""
        self.size = min(MOST_REMOTE, self.size + 1.0 / self.size)

    def cut(self, num_open: int, usual_s: float) -> None:
        """One was refused, or late.

        Args:
            num_open: Requests under way; they were too many.
            usual_s: Seconds that one usually takes; within them others of the same crowd fail, and count once.
        """
        now_s = self._now()
        if now_s - self._cut_s > usual_s:
            self._cut_s = now_s
            self.size = max(1.0, _CUT_BACK * min(self.size, max(1, num_open)))
