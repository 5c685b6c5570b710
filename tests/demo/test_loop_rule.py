"""The demo's own rule, three seeds: drift costs at least 3 points, and learning from it wins back at least half of them."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest

from edgewise.demo.scenario import DemoSettings
from tests.demo.loop import Outcome, run_loop

SEEDS = (0, 1, 2)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def outcomes() -> Iterator[dict[int, Outcome]]:
    with ProcessPoolExecutor(len(SEEDS), multiprocessing.get_context("spawn")) as pool:
        yield dict(zip(SEEDS, pool.map(run_loop, SEEDS), strict=True))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_drop_is_at_least_three_points_and_at_least_half_of_it_is_recovered(outcomes, seed):
    found = outcomes[seed]
    assert found.drop >= 0.03, found
    assert found.recovered >= 0.5, found


@pytest.mark.parametrize("seed", SEEDS)
def test_drift_is_noticed_while_it_lasts_and_not_before(outcomes, seed):
    found = outcomes[seed]
    assert not found.false_alarm, found
    assert found.alarm_after is not None, found
    assert found.alarm_after <= DemoSettings().drifted


@pytest.mark.parametrize("seed", SEEDS)
def test_the_gate_lets_the_new_version_through_and_refuses_the_spoiled_one(outcomes, seed):
    found = outcomes[seed]
    assert found.gate.passed, found.gate.reason
    assert found.gate.num_examples >= 300
    assert not found.bad_gate.passed, found.bad_gate.reason
