"""What a prepared plan remembers of its costs."""

from __future__ import annotations

import random

from edgewise.inference.recent_costs import Slowest


def test_the_slowest_of_the_last_64_is_known_after_each() -> None:
    slowest, values, rng = Slowest(), list[float](), random.Random(0)
    assert slowest.largest == 0.0
    for index in range(1000):
        values.append(rng.choice([rng.random(), 0.5, 1.0 / (index + 1)]))
        slowest.add(values[-1])
        assert slowest.largest == max(values[-64:])
