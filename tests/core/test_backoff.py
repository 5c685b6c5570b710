from __future__ import annotations

import random

import numpy as np
import pytest

from edgewise.core.backoff import Backoff
from edgewise.core.errors import InputError


def test_waits_grow_by_the_factor_up_to_the_bound() -> None:
    assert [Backoff(0.5, 3.0, 10.0).delay_s(n) for n in range(5)] == [0.5, 1.5, 4.5, 10.0, 10.0]


def test_factor_one_keeps_the_wait_constant() -> None:
    assert {Backoff(0.05, factor=1.0).delay_s(n) for n in (0, 1, 10**9)} == {0.05}


def test_a_million_retries_later_the_wait_is_the_bound() -> None:
    assert Backoff(0.05, most_s=2.0).delay_s(10**6) == 2.0


@pytest.mark.parametrize("rng", [random.Random(0), np.random.default_rng(0)], ids=["random", "numpy"])
def test_jitter_shortens_the_wait_by_at_most_its_fraction(rng: random.Random) -> None:
    drawn = [Backoff(1.0, most_s=4.0, jitter_fraction=0.25).delay_s(5, rng) for _ in range(200)]
    assert min(drawn) >= 3.0
    assert max(drawn) <= 4.0
    assert len(set(drawn)) == 200


def test_jitter_is_the_same_under_the_same_seed() -> None:
    wait = Backoff(1.0, jitter_fraction=1.0)
    assert wait.delay_s(3, random.Random(7)) == wait.delay_s(3, random.Random(7))


def test_jitter_without_a_source_is_refused() -> None:
    with pytest.raises(InputError, match="draws jitter"):
        Backoff(1.0, jitter_fraction=0.5).delay_s(0)


@pytest.mark.parametrize(
    "fields",
    [
        {"base_s": -1.0},
        {"base_s": 1.0, "factor": 0.5},
        {"base_s": 1.0, "most_s": 0.5},
        {"base_s": 1.0, "jitter_fraction": 2.0},
    ],
)
def test_an_impossible_backoff_is_refused(fields: dict[str, float]) -> None:
    with pytest.raises(InputError, match="is not a backoff"):
        Backoff(**fields)
