"""What a prepared plan remembers of its costs."""

from __future__ import annotations

import random

from edgewise.inference.recent_costs import CostBySize, Slowest


def test_the_slowest_of_the_last_64_is_known_after_each() -> None:
    slowest, values, rng = Slowest(), list[float](), random.Random(0)
    assert slowest.largest == 0.0
    for index in range(1000):
        values.append(rng.choice([rng.random(), 0.5, 1.0 / (index + 1)]))
        slowest.add(values[-1])
        assert slowest.largest == max(values[-64:])


def test_a_pause_in_one_run_does_not_make_the_next_look_long_and_what_lasts_is_learned() -> None:
    costs = CostBySize()
    for seconds in (1.0, 1.0, 1000.0):
        costs.add(64, seconds)
    assert costs.expected_s(64) <= 1.2
    for _ in range(40):
        costs.add(64, 5.0)
    assert costs.expected_s(64) >= 4.0
