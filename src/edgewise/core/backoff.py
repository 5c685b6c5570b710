"""Computes how long to wait before a retry. Every retry of Edgewise takes its wait from a `Backoff`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from edgewise.core.errors import InputError


class UniformSource(Protocol):
    """Draws uniform numbers; `random.Random` and numpy's `Generator` both do."""

    def random(self) -> float:
        """Returns a number in [0, 1)."""
        ...


@dataclass(frozen=True, slots=True)
class Backoff:
    """Grows the wait before each retry by a constant factor, up to a bound.

    Attributes:
        base_s: Wait before the first retry.
        factor: Growth per retry; 1 keeps the wait constant.
        most_s: Longest wait.
        jitter_fraction: Share of the wait that is drawn at random, so that many clients do not retry at once; 0 draws none.

    Example:
        >>> wait = Backoff(0.1, most_s=0.5)
        >>> [wait.delay_s(attempt) for attempt in range(4)]
        [0.1, 0.2, 0.4, 0.5]
    """

    base_s: float
    factor: float = 2.0
    most_s: float = math.inf
    jitter_fraction: float = 0.0

    def __post_init__(self) -> None:
        if self.base_s < 0 or self.factor < 1 or self.most_s < self.base_s or not 0 <= self.jitter_fraction <= 1:
            raise InputError(
                f"{self} is not a backoff: needed are base_s >= 0, factor >= 1, most_s >= base_s and a jitter_fraction "
                "in 0..1."
            )

    def delay_s(self, attempt: int, rng: UniformSource | None = None) -> float:
        """Returns the wait before a retry.

        Args:
            attempt: Number of retries before this one, from 0.
            rng: Draws the jitter; needed where `jitter_fraction` is above 0.

        Returns:
            Seconds, in [(1 − jitter_fraction) · w, w] with w = min(most_s, base_s · factor^attempt).

        Raises:
            InputError: If jitter is wanted and there is no `rng`.
        """
        try:
            wait_s = min(self.most_s, self.base_s * self.factor**attempt)
        except OverflowError:  # after thousands of retries
            wait_s = self.most_s
        if self.jitter_fraction == 0:
            return wait_s
        if rng is None:
            raise InputError(f"{self} draws jitter. Give delay_s an rng.")
        return wait_s * (1 - self.jitter_fraction * rng.random())
