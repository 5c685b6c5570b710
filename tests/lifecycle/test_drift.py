"""The drift detector: false alarms are as rare as promised, alarms come as soon as theory says."""

from __future__ import annotations

import numpy as np
import pytest

from edgewise.core.errors import InputError
from edgewise.core.ids import NodeId
from edgewise.lifecycle.drift import BETS, ConfidenceObserved, DriftDetected, DriftState, drift_detector, step

NODE = NodeId("device-1")


def feed(
    state: DriftState, confidences: object, *, start: int = 0, exit: int = 0
) -> tuple[DriftState, list[DriftDetected]]:
    alarms: list[DriftDetected] = []
    for index, value in enumerate(np.asarray(confidences, float)):
        state, found = step(state, ConfidenceObserved(NODE, float(value), exit, float(start + index)))
        alarms.extend(found)
    return state, alarms


def test_false_alarms_stay_within_the_bound_n_over_threshold() -> None:
    # 200 undrifted streams of 150 at threshold 1000: at most 15 % may alarm. Few enough for a test, tight enough to
    # tell a broken detector: under Binomial(200, 0.15) more than 45 has probability 0.1 %.
    alarms = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        state = drift_detector({0: rng.beta(8, 0.6, 200)}, threshold=1000)
        alarms += bool(feed(state, rng.beta(8, 0.6, 150))[1])
    assert alarms <= 45


def test_evidence_grows_by_at_most_one_per_undrifted_request_on_average() -> None:
    # E[statistic after n] ≤ n, by the martingale property; heavy-tailed, so a small n and many streams.
    finals = []
    for seed in range(300):
        rng = np.random.default_rng(1000 + seed)
        state, _ = feed(drift_detector({0: rng.random(100)}, threshold=1e12), rng.random(10))
        finals.append(state.statistic)
    assert 3 < np.mean(finals) < 10 * 1.5


def test_no_alarm_on_an_undrifted_stream_at_the_default_threshold() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        assert feed(drift_detector({0: rng.beta(8, 0.6, 300)}), rng.beta(8, 0.6, 150))[1] == []


def test_a_fall_of_mean_confidence_from_093_to_078_is_found_within_60_requests() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        state, early = feed(drift_detector({0: rng.beta(8, 0.6, 300)}), rng.beta(8, 0.6, 150))
        _, alarms = feed(state, rng.beta(2.5, 0.7, 60), start=150)
        assert (len(early), len(alarms)) == (0, 1)


def test_delay_is_what_the_growth_rate_of_the_best_bet_says() -> None:
    # Every confidence below all 999 others ranks about 1/1000, so a request multiplies the evidence of bet ε by
    # g = ε·1000^(1−ε), 53 for the strongest bet. The mean over the 4 bets passes 10,000 at the k-th request with
    # g^k / 4 ≈ 10,000: after the second it is near 700, after the third near 35,000.
    gain = max(e * 1000 ** (1 - e) for e in BETS)
    assert gain**2 / 4 < 10_000 / 2
    assert gain**3 / 4 > 10_000 * 2
    state = drift_detector({0: np.linspace(0.5, 1.0, 999)})
    _, alarms = feed(state, -np.arange(5.0))
    assert alarms[0].num_since == 3


def test_delay_grows_as_the_ranks_come_closer_to_uniform() -> None:
    # ranks Beta(a, 1) have KL = ln a − 1 + 1/a to uniform: 0.90 for a = 1/3, 0.31 for 1/2; ln(40,000) / KL = 12 and 34
    for share, wanted in ((1 / 3, 11.8), (1 / 2, 34.5)):
        delays = []
        for seed in range(40):
            rng = np.random.default_rng(seed)
            state, _ = feed(drift_detector({0: rng.random(300)}), rng.random(150))
            state, alarms = feed(state, rng.random(250) ** (1 / share), start=150)
            delays.append(state.num_seen - 150 if alarms else 250)  # nothing is counted after the alarm
        assert 0.6 * wanted < np.median(delays) < 1.6 * wanted


def test_the_alarm_dates_the_change() -> None:
    since = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        state, _ = feed(drift_detector({0: rng.beta(8, 0.6, 300)}), rng.beta(8, 0.6, 150))
        _, alarms = feed(state, rng.beta(2.5, 0.7, 80), start=150)
        since.append(alarms[0].since)
    assert 145 <= np.median(since) <= 156


def test_rising_confidence_is_no_alarm() -> None:
    rng = np.random.default_rng(0)
    assert feed(drift_detector({0: rng.random(300)}), np.ones(500))[1] == []


def test_ties_at_full_confidence_are_no_alarm() -> None:
    assert feed(drift_detector({0: np.ones(300)}), np.ones(500))[1] == []


def test_there_is_one_alarm() -> None:
    state, alarms = feed(drift_detector({0: np.linspace(0.5, 1, 100)}), np.zeros(500))
    assert len(alarms) == 1
    assert state.detected == alarms[0]


def test_each_exit_is_ranked_among_its_own() -> None:
    state = drift_detector({0: np.linspace(0.9, 1, 100), 1: np.linspace(0.3, 0.5, 100)})
    assert feed(state, np.linspace(0.3, 0.5, 60), exit=1)[1] == []
    assert len(feed(state, np.linspace(0.3, 0.5, 60), exit=0)[1]) == 1


def test_an_exit_without_reference_is_counted_and_left_out() -> None:
    state, alarms = feed(drift_detector({0: np.ones(100)}), np.zeros(40), exit=3)
    assert (state.num_unranked, state.num_seen, alarms) == (40, 0, [])


def test_the_reference_is_bounded() -> None:
    state, _ = feed(drift_detector({0: np.linspace(0, 1, 100)}, max_reference=120), np.linspace(0, 1, 50))
    assert len(state.references[0]) == 120


def test_a_small_reference_is_refused() -> None:
    with pytest.raises(InputError, match="exit 0 has 49 calibration confidences, needed are at least 50"):
        drift_detector({0: np.ones(49)})


def test_a_threshold_of_one_is_refused() -> None:
    with pytest.raises(InputError, match=r"drift threshold 1.0 must be above 1"):
        drift_detector({0: np.ones(50)}, threshold=1.0)
