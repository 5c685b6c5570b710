"""How much each moment at which a change may have begun weighs in a test that never ends. Read `harm.py` next."""

from __future__ import annotations

ALIKE = 500
"""Up to about here all starts weigh nearly alike; what begins later weighs less and less."""


def start_weight(index: int) -> float:
    """Weight of the start before step `index`; all of them together are 1.

    The weights b / ((b + j)(b + j + 1)) are differences of b / (b + j). So a test that bets this share of one unit from each start
    on, and keeps the rest, is a test martingale if each bet is one: it passes 1/α at any time with probability at
    most α (Ville), without an end that must be known before. The price of a start is ln(1 / weight): 6.2 nats for the first,
    8.4 for the thousandth, 12 for the ten-thousandth.

    Args:
        index: Steps before it, from 0.

    Returns:
        The weight, in (0, 1).

    Example:
        >>> round(sum(start_weight(index) for index in range(100_000)), 3)
        0.995

    Reference:
        Shin, Ramdas & Rinaldo, "E-detectors: a nonparametric framework for sequential change detection", 2022, where a
        mixture over starts gives a bound of the false alarms instead of a mean run length.
    """
    return ALIKE / ((ALIKE + index) * (ALIKE + index + 1))


def weight_left(index: int) -> float:
    """Weight of all starts from this step on.

    Args:
        index: Steps before it, from 0.

    Returns:
        The weight, in (0, 1].

    Example:
        >>> weight_left(500), round(weight_left(7) - weight_left(8) - start_weight(7), 9)
        (0.5, 0.0)
    """
    return ALIKE / (ALIKE + index)
