"""The monitor of harm: false alarms are as rare as promised, whatever the order; falls are proved with the labels it says."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from edgewise.core.errors import InputError
from edgewise.lifecycle import harm
from edgewise.lifecycle.harm import (
    HarmDetected,
    HarmState,
    LabelArrived,
    harm_monitor,
    labelled,
    labels_needed,
    unlabelled,
)

RISKS = np.array([0.01, 0.02, 0.03, 0.05, 0.10, 0.02, 0.03, 0.05, 0.15, 0.04])
"""Of ten classes; their mean is 5 %."""


def reference(rng: np.random.Generator, number: int = 800) -> list[tuple[int, bool]]:
    labels = rng.integers(10, size=number)
    return list(zip(labels.tolist(), (rng.random(number) < RISKS[labels]).tolist(), strict=True))


def monitor(rng: np.random.Generator, **how: float) -> HarmState:
    return harm_monitor(reference(rng), **how)


def feed(
    state: HarmState, labels: Iterable[int], rng: np.random.Generator, rise: float = 0.0
) -> tuple[HarmState, list[HarmDetected]]:
    alarms: list[HarmDetected] = []
    for label in labels:
        event = LabelArrived(int(label), bool(rng.random() < RISKS[label] + rise), float(state.num_labels))
        state, found = labelled(state, event, rng)
        alarms.extend(found)
    return state, alarms


def feed_late(
    state: HarmState,
    number: int,
    rng: np.random.Generator,
    *,
    latest: int = 200,
    begins: int | None = None,
    told: bool = True,
) -> tuple[HarmState, int | None]:
    """Labels late by up to so many requests; how many from a fall on until it is proved."""
    late = np.argsort(np.arange(number) + rng.integers(latest + 1, size=number), kind="stable")
    labels, since = rng.integers(10, size=number), 0
    for request in late.tolist():
        is_after = begins is not None and request >= begins
        risk, since = RISKS[labels[request]] + 0.5 * is_after, since + is_after
        event = LabelArrived(int(labels[request]), bool(rng.random() < risk), 0.0, request if told else None)
        state, alarms = labelled(state, event, rng)
        if alarms:
            return state, since
    return state, None


ORDERS = {
    "as they come": lambda labels: labels,
    "ordered by class": np.sort,
    "in bursts of a class": lambda labels: np.repeat(labels[::20], 20),
}


@pytest.mark.parametrize("order", ORDERS)
def test_false_alarms_stay_within_alpha_whatever_the_order(order: str) -> None:
    # α = 0.3 on 60 streams of 300 labels: under Binomial(60, 0.3) more than 29 has probability 0.1 %.
    found = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        labels = ORDERS[order](rng.integers(10, size=300))  # type: ignore[no-untyped-call]
        found += bool(feed(monitor(rng, alpha=0.3), labels, rng)[1])
    assert found <= 29


@pytest.mark.parametrize("is_late", [False, True])
def test_evidence_is_one_on_average_while_answers_are_as_good_as_ever(is_late: bool) -> None:
    # A bet is 1 on average whatever the model's risk: here held-out data and stream are few, and a class is new.
    finals = []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        state = harm_monitor(reference(rng, 60), alpha=1e-9)
        state, _ = feed_late(state, 12, rng, latest=40) if is_late else feed(state, rng.integers(10, size=12), rng)
        finals.append(state.evidence[:, 0].sum(axis=0).mean() / (1.0 - state.unspent))
    error = np.std(finals) / np.sqrt(len(finals))
    assert abs(np.mean(finals) - 1) < 4 * error < 0.5


@pytest.mark.parametrize(("rise", "at_most"), [(0.30, 100), (0.10, 500)])
def test_a_fall_is_proved_with_the_labels_it_says(rise: float, at_most: int) -> None:
    delays = []
    for seed in range(9):
        rng = np.random.default_rng(seed)
        state, early = feed(monitor(rng), rng.integers(10, size=300), rng)
        assert early == []
        needed = labels_needed(state, rise)
        _, alarms = feed(state, rng.integers(10, size=1000), rng, rise)
        delays.append(alarms[0].num_since if alarms else 1000)
    assert np.median(delays) <= at_most
    assert needed is not None
    assert 0.3 <= np.median(delays) / needed <= 3.0


def test_late_labels_cost_few_more_where_their_requests_are_known() -> None:
    # Half of the first labels after a fall are of requests from before it, and speak against every start that counts them.
    make = np.random.default_rng
    found = {told: [feed_late(monitor(make(seed)), 900, make(seed), begins=500, told=told)[1] or 900 for seed in range(15)]
             for told in (True, False)}  # fmt: skip
    assert np.median(found[True]) < 0.8 * np.median(found[False])
    assert max(found[True]) <= 100


@pytest.mark.parametrize(("classes", "starts", "apart"), [(10, 40, 10), (1000, 4, 100)])
def test_evidence_does_not_grow_with_labels_and_hardly_with_classes(classes: int, starts: int, apart: int) -> None:
    rng = np.random.default_rng(0)
    state = harm_monitor([(index % classes, False) for index in range(2 * classes + 60)])
    for request in range(900):
        state, _ = labelled(state, LabelArrived(request % classes, False, 0.0, request), rng)
    assert state.evidence.shape[:2] == (starts, 1 + classes)
    assert set(np.diff(state.starts[1:])) == {apart}


def test_another_mix_of_classes_is_no_harm() -> None:
    rng = np.random.default_rng(0)
    state, alarms = feed(monitor(rng), np.full(1500, 8), rng)  # the class that is answered worst
    assert alarms == []
    assert state.risk is not None
    assert state.risk > 2 * state.risk_reference


def test_an_improvement_is_no_harm() -> None:
    rng = np.random.default_rng(0)
    assert feed(monitor(rng), rng.integers(10, size=1500), rng, rise=-1.0)[1] == []


def test_unlabelled_requests_tell_when_to_bet() -> None:
    # Ten labels a second of requests whose confidence has fallen: bets begin at the hint, and the alarm comes sooner.
    delays: dict[bool, list[int]] = {True: [], False: []}
    for seed in range(9):
        for hints in (True, False):
            rng = np.random.default_rng(seed)
            state, _ = feed(monitor(rng), rng.integers(10, size=100), rng)
            for unsure in (*rng.beta(0.5, 9, 1000), *rng.beta(2, 4, 110)):
                state = unlabelled(state, float(unsure)) if hints else state
            assert state.hint.is_given == hints
            _, alarms = feed(state, rng.integers(10, size=1000), rng, 0.12)
            delays[hints].append(alarms[0].num_since)
    assert np.mean(delays[True]) < np.mean(delays[False])


def test_the_alarm_says_since_when_and_how_bad_and_it_is_armed_anew() -> None:
    rng = np.random.default_rng(1)
    state, _ = feed(monitor(rng), rng.integers(10, size=300), rng)
    state, alarms = feed(state, rng.integers(10, size=300), rng, 0.4)
    assert 280 <= alarms[0].since <= 320
    assert alarms[0].risk_before < 0.1 < 0.3 < alarms[0].risk_since
    assert len(alarms) == state.num_alarms > 1  # it is still there, and found again
    assert feed(state, rng.integers(10, size=300), rng)[1] == []  # it is over


def test_a_class_that_was_never_held_out_proves_nothing_by_itself() -> None:
    rng = np.random.default_rng(0)
    state, _ = labelled(monitor(rng), LabelArrived(12, True), rng)
    assert state.bag[:, 12].tolist() == [1.0, 1.0]
    assert state.statistic < 10


@pytest.mark.parametrize(
    ("number", "alpha", "said"),
    [(20, 0.01, "20 held-out answers cannot say how often"), (60, 1.0, r"needed is one in \(0, 1\)")],
)
def test_what_cannot_be_monitored_is_refused(number: int, alpha: float, said: str) -> None:
    with pytest.raises(InputError, match=said):
        harm_monitor([(0, False)] * number, alpha=alpha)


def test_a_small_reference_says_that_it_cannot_prove_a_small_fall() -> None:
    state = harm_monitor([(index % 10, index % 20 == 0) for index in range(200)])
    assert labels_needed(state, 0.05) is None
    assert (labels_needed(state, 0.5) or 0) < (labels_needed(state, 0.3) or 0) < 200
    assert harm.BETS.prod(axis=1).max() < 1.0  # each bet is a density
