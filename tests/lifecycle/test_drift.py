"""The drift detector: false alarms are as rare as promised, alarms come as soon as theory says."""

from __future__ import annotations

from math import comb, nan, prod
from typing import Any

import numpy as np
import pytest

from edgewise.core.errors import InputError
from edgewise.core.ids import NodeId
from edgewise.lifecycle import drift
from edgewise.lifecycle.drift import (
    SCALES,
    AnswerObserved,
    DriftAnswer,
    DriftDetected,
    DriftState,
    drift_detector,
    step,
)

NODE = NodeId("device-1")
MIX = np.full(10, 0.1)
USUAL, UNSURE, SURE = (8.0, 0.6), (2.5, 0.7), (60.0, 0.6)
"""Confidences: Beta of mean 0.93, 0.78 and 0.99."""


def answers(
    rng: np.random.Generator, number: int, sure: tuple[float, float] = USUAL, mix: Any = MIX
) -> list[DriftAnswer]:
    """Confidences and classes, independent of each other."""
    values, classes = rng.beta(*sure, number), rng.choice(len(mix), number, p=mix)
    return list(map(DriftAnswer, values.tolist(), classes.tolist()))


def confidences(values: Any) -> list[DriftAnswer]:
    return [DriftAnswer(float(value)) for value in np.asarray(values, float)]


def feed(
    state: DriftState, seen: list[DriftAnswer], rng: np.random.Generator, *, start: int = 0, exit: int = 0
) -> tuple[DriftState, list[DriftDetected]]:
    alarms: list[DriftDetected] = []
    for index, (sure, predicted) in enumerate(seen):
        state, found = step(state, AnswerObserved(NODE, sure, exit, float(start + index), predicted), rng)
        alarms.extend(found)
    return state, alarms


def undrifted(seed: int, number: int, threshold: float, reference: int = 200) -> DriftState:
    """The detector after so many answers of the reference's own kind."""
    rng = np.random.default_rng(seed)
    state = drift_detector({0: answers(rng, reference)}, rng=rng, threshold=threshold)
    return feed(state, answers(rng, number), rng)[0]


def delay(seed: int, drifted: dict[str, Any], number: int = 250, **settings: Any) -> int | None:
    """Requests to the alarm after 150 undrifted ones; None if it does not come."""
    rng = np.random.default_rng(seed)
    state = drift_detector({0: answers(rng, 320)}, rng=rng, **settings)
    state, early = feed(state, answers(rng, 150), rng)
    assert early == []
    state, alarms = feed(state, answers(rng, number, **drifted), rng, start=150)
    return state.num_seen - 150 if alarms else None  # nothing is counted after the alarm


def test_false_alarms_stay_within_the_bound_n_over_twice_the_threshold() -> None:
    # 200 undrifted streams of 60 at threshold 100: at most 30 % may alarm. Under Binomial(200, 0.3) more than 80 has
    # probability 0.1 %.
    assert sum(undrifted(seed, 60, 100.0).detected is not None for seed in range(200)) <= 80


def test_the_mean_time_to_a_false_alarm_is_at_least_the_threshold() -> None:
    # Streams are cut at 400, which only makes the mean smaller; num_seen stands still after the alarm.
    assert np.mean([undrifted(seed, 400, 40.0).num_seen for seed in range(80)]) >= 40


@pytest.mark.parametrize("kind", ["distinct", "tied"])
def test_a_views_evidence_grows_by_one_per_undrifted_request_on_average(kind: str) -> None:
    # E[statistic after n] = n by the martingale property, on each scale; ties do not change it, as they are broken
    # at random: with them a third of the answers is fully sure.
    finals = []
    for seed in range(400):
        rng = np.random.default_rng(1000 + seed)
        drawn = answers(rng, 110, mix=np.array([0.5, 0.3, 0.2]))
        if kind == "tied":
            drawn = [DriftAnswer(1.0 if sure > 0.98 else 0.5, predicted) for sure, predicted in drawn]
        state, _ = feed(drift_detector({0: drawn[:100]}, rng=rng, threshold=1e12), drawn[100:], rng)
        finals.append([view.statistic for view in state.views.values()])
    assert np.all(np.abs(np.mean(finals, axis=0) - 10) < 3)


def test_evidence_is_what_laplaces_rule_and_the_law_of_the_gaps_say() -> None:
    # 999 reference answers leave 1,000 gaps, 100 in each of 10 bins. Of n answers below them all, a law of its own gives
    # the last m the probability 1 / C(m + 9, 9), and the usual one the product of (100 + i) / (1000 + i).
    rng = np.random.default_rng(0)
    state = drift_detector({0: confidences(np.linspace(0.5, 1.0, 999))}, rng=rng, threshold=1e12)
    state, _ = feed(state, confidences(np.zeros(20)), rng)
    wanted = sum(
        prod((1000 + i) / (100 + i) for i in range(start, 20)) / comb(20 - start + 9, 9) for start in range(20)
    )
    assert [view.statistic for view in state.views.values()] == [pytest.approx(wanted)]
    assert state.statistic == pytest.approx(wanted / 6)


def test_no_alarm_on_undrifted_streams_at_the_default_threshold() -> None:
    assert [undrifted(seed, 1000, 1e6, 300).detected for seed in range(10)] == [None] * 10


@pytest.mark.parametrize(
    ("drifted", "at_most"),
    [
        ({"sure": UNSURE}, 60),
        ({"sure": SURE}, 60),
        ({"mix": [0.64] + [0.04] * 9}, 60),
    ],
    ids=["falling confidence", "rising confidence", "another mix of classes, as sure as ever"],
)
def test_a_change_of_confidence_or_of_classes_is_found(drifted: dict[str, Any], at_most: int) -> None:
    delays = [delay(seed, drifted) for seed in range(20)]
    assert None not in delays
    assert np.median(delays) <= at_most  # type: ignore[arg-type]


def test_delay_grows_as_the_ranks_come_closer_to_uniform() -> None:
    # Ranks Beta(a, 1) have KL = ln a − 1 + 1/a to uniform, 1.61 for a = 1/4 and 0.31 for 1/2; in ten bins, of masses
    # (k/10)^a − ((k−1)/10)^a, 0.70 and 0.21. n KL less the redundancy of Laplace's rule passes ln(6,000,000) at n = 37
    # and 141.
    for share, wanted in ((1 / 4, 37), (1 / 2, 141)):
        delays = []
        for seed in range(30):
            rng = np.random.default_rng(seed)
            state = drift_detector({0: confidences(rng.random(320))}, rng=rng)
            state, _ = feed(state, confidences(rng.random(150)), rng)
            state, alarms = feed(state, confidences(rng.random(300) ** (1 / share)), rng, start=150)
            delays.append(state.num_seen - 150 if alarms else 300)
        assert 0.6 * wanted < np.median(delays) < 1.4 * wanted


def test_the_evidence_of_a_missed_drift_does_not_fall() -> None:
    # What comes after a start is never what it is compared with, however much of it there is: not after 3,000 requests
    # either is the evidence less than after 300.
    for seed in range(5):
        rng = np.random.default_rng(seed)
        state = drift_detector({0: answers(rng, 320)}, rng=rng, threshold=1e200)
        state, _ = feed(state, answers(rng, 100), rng)
        statistics = []
        for _ in range(10):
            state, _ = feed(state, answers(rng, 300, UNSURE), rng)
            statistics.append(state.statistic)
        assert min(statistics) == statistics[0] > 1e6


def test_the_alarm_dates_the_change() -> None:
    since = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        state, _ = feed(drift_detector({0: answers(rng, 320)}, rng=rng), answers(rng, 150), rng)
        _, alarms = feed(state, answers(rng, 150, UNSURE), rng, start=150)
        since.append(alarms[0].since)
    assert 145 <= np.median(since) <= 156


def test_without_classes_confidences_alone_are_weighed() -> None:
    rng = np.random.default_rng(0)
    state = drift_detector({0: confidences(rng.random(100))}, rng=rng)
    assert set(state.views) == {(0, SCALES[0])}
    assert len(feed(state, confidences(np.zeros(60)), rng)[1]) == 1
    both = drift_detector({0: answers(rng, 100)}, rng=rng)
    both, _ = feed(both, confidences(rng.beta(*USUAL, 30)), rng)
    assert [both.views[0, scale].statistic > 0 for scale in SCALES] == [True, False, False]


def test_ties_at_full_confidence_are_no_alarm() -> None:
    rng = np.random.default_rng(0)
    assert feed(drift_detector({0: confidences(np.ones(300))}, rng=rng), confidences(np.ones(500)), rng)[1] == []


def test_a_confidence_that_is_no_number_counts_as_unsure() -> None:
    rng = np.random.default_rng(0)
    state = drift_detector({0: confidences(np.linspace(0.5, 1, 100))}, rng=rng)
    assert len(feed(state, confidences([nan] * 60), rng)[1]) == 1


def test_there_is_one_alarm() -> None:
    rng = np.random.default_rng(0)
    state, alarms = feed(
        drift_detector({0: confidences(np.linspace(0.5, 1, 100))}, rng=rng), confidences(np.zeros(500)), rng
    )
    assert len(alarms) == 1
    assert state.detected == alarms[0]


def test_each_exit_is_ranked_among_its_own() -> None:
    rng = np.random.default_rng(0)
    usual = confidences(rng.uniform(0.3, 0.5, 60))
    state = drift_detector(
        {0: confidences(np.linspace(0.9, 1, 100)), 1: confidences(np.linspace(0.3, 0.5, 100))}, rng=rng
    )
    assert feed(state, usual, rng, exit=1)[1] == []
    assert len(feed(state, usual, rng, exit=0)[1]) == 1


def test_an_exit_without_reference_is_counted_and_left_out() -> None:
    rng = np.random.default_rng(0)
    state, alarms = feed(
        drift_detector({0: confidences(np.ones(100))}, rng=rng), confidences(np.zeros(40)), rng, exit=3
    )
    assert (state.num_unranked, state.num_seen, alarms) == (40, 0, [])


def test_what_is_remembered_does_not_grow_with_the_stream() -> None:
    view = undrifted(0, 300, 1e12).views[0, SCALES[-1]]
    assert len(view.starts) == len(view.evidence) == len(view.since) == drift.NUM_STARTS
    assert view.starts[-1].num_before == 299
    assert view.usual.sum() == 201 + 300


def test_starts_that_are_merged_keep_their_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    # One answer more than there is room for: the sum is what it is with more room.
    few = undrifted(0, drift.NUM_STARTS + 1, 1e12)
    monkeypatch.setattr(drift, "NUM_STARTS", 1000)
    many = undrifted(0, 33, 1e12)
    assert [len(state.views[0, SCALES[-1]].starts) for state in (few, many)] == [32, 33]
    assert few.statistic == pytest.approx(many.statistic)


def test_a_small_reference_is_refused() -> None:
    with pytest.raises(InputError, match="exit 0 has 49 calibration confidences, needed are at least 50"):
        drift_detector({0: confidences(np.ones(49))}, rng=np.random.default_rng(0))


def test_a_threshold_of_one_is_refused() -> None:
    with pytest.raises(InputError, match=r"drift threshold 1.0 must be above 1"):
        drift_detector({0: confidences(np.ones(50))}, rng=np.random.default_rng(0), threshold=1.0)
