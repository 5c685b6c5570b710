"""The monitor of change: false alarms are as rare as promised, alarms come as soon as theory says."""

from __future__ import annotations

from math import comb, nan, prod
from typing import Any

import numpy as np
import pytest

from edgewise.core.errors import InputError
from edgewise.lifecycle import change
from edgewise.lifecycle.change import BLOCK, ChangeDetected, ChangeState, DriftAnswer, Seen, change_monitor, step
from edgewise.lifecycle.unknown_start import start_weight

MIX = np.full(10, 0.1)
USUAL, UNSURE, SURE = (8.0, 0.6), (2.5, 0.7), (60.0, 0.6)
"""Confidences: Beta of mean 0.93, 0.78 and 0.99."""


def requests(
    rng: np.random.Generator, number: int, sure: tuple[float, float] = USUAL, mix: Any = MIX, bright: float = 0.0
) -> list[Seen]:
    """Confidences, classes and covariates, independent of each other; a third goes on to a second exit."""
    values, classes = rng.beta(*sure, number), rng.choice(len(mix), number, p=mix)
    looks = rng.normal((bright, 0.0, 0.0, 0.0), size=(number, 4))
    found = []
    for value, name, look in zip(values.tolist(), classes.tolist(), looks.tolist(), strict=True):
        answer = DriftAnswer(value, name)
        found.append(Seen({0: answer} if value > 0.95 else {0: answer, 1: answer}, tuple(look)))
    return found


def confidences(values: Any) -> list[Seen]:
    return [Seen({0: DriftAnswer(float(value))}) for value in np.asarray(values, float)]


def feed(state: ChangeState, seen: list[Seen], rng: np.random.Generator) -> tuple[ChangeState, list[ChangeDetected]]:
    alarms: list[ChangeDetected] = []
    for one in seen:
        state, found = step(state, one, float(state.num_seen), rng)
        alarms.extend(found)
    return state, alarms


def delay(seed: int, number: int = 300, **drifted: Any) -> int | None:
    """Requests to the alarm after 160 as ever; None if it does not come."""
    rng = np.random.default_rng(seed)
    state, early = feed(change_monitor(requests(rng, 320), rng=rng), requests(rng, 160), rng)
    assert early == []
    for index, seen in enumerate(requests(rng, number, **drifted)):
        state, found = step(state, seen, float(index), rng)
        if found:
            return index + 1
    return None


def test_false_alarms_stay_within_alpha() -> None:
    # α = 0.3 on 60 streams of 240: at most 18 are expected. Under Binomial(60, 0.3) more than 29 has probability 0.1 %.
    found = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        state = change_monitor(requests(rng, 100), rng=rng, alpha=0.3)
        found += bool(feed(state, requests(rng, 240), rng)[1])
    assert found <= 29


@pytest.mark.parametrize("kind", ["distinct", "tied"])
def test_a_views_evidence_is_one_on_average_while_nothing_changes(kind: str) -> None:
    # The mean over draws of reference and stream is exactly 1 in each view of the first exit, also with ties: a third is
    # fully sure. What was bet so far is put on one scale.
    finals = []
    for seed in range(200):
        rng = np.random.default_rng(1000 + seed)
        drawn = requests(rng, 100 + BLOCK)
        if kind == "tied":
            drawn = [
                Seen({0: DriftAnswer(1.0 if s.answers[0].confidence > 0.98 else 0.5, s.answers[0].predicted)})
                for s in drawn
            ]
        state, _ = feed(change_monitor(drawn[:100], rng=rng, alpha=1e-99), drawn[100:], rng)
        finals.append((state.by_view[:3] - state.unspent) / (1.0 - state.unspent))
    errors = np.std(finals, axis=0) / np.sqrt(len(finals))
    assert np.all(np.abs(np.mean(finals, axis=0) - 1) < 4 * errors)
    assert np.all(errors < 0.2)


def test_evidence_is_what_laplaces_rule_and_the_law_of_the_gaps_say() -> None:
    # 999 held-out answers leave 1,000 gaps, 100 in each of 10 bins. Of n answers below them all, a law of its own gives the
    # last m the probability 1 / C(m + 9, 9), and the usual one the product of (100 + i) / (1000 + i); blocks begin at 0, 8, 16.
    rng = np.random.default_rng(0)
    state = change_monitor(confidences(np.linspace(0.5, 1.0, 999)), rng=rng, alpha=1e-99)
    state, _ = feed(state, confidences(np.zeros(3 * BLOCK)), rng)
    wanted = 1.0 - sum(start_weight(block) for block in range(3))
    for block in range(3):
        usual = prod((100 + i) / (1000 + i) for i in range(BLOCK * block, 3 * BLOCK))
        num = BLOCK * (3 - block)
        wanted += start_weight(block) / comb(num + 9, 9) / usual
    assert state.by_view == pytest.approx([wanted])


@pytest.mark.parametrize(
    ("drifted", "at_most"),
    [({"sure": UNSURE}, 72), ({"sure": SURE}, 72), ({"mix": [0.64] + [0.04] * 9}, 72), ({"bright": 1.0}, 72)],
    ids=["falling confidence", "rising confidence", "another mix of classes, as sure as ever", "a covariate alone"],
)
def test_a_change_is_found_whatever_moves(drifted: dict[str, Any], at_most: int) -> None:
    delays = [delay(seed, **drifted) for seed in range(9)]
    assert None not in delays
    assert np.median(delays) <= at_most  # type: ignore[arg-type]


def test_the_evidence_of_a_missed_change_does_not_fall() -> None:
    rng = np.random.default_rng(0)
    state = change_monitor(requests(rng, 320), rng=rng, alpha=1e-200)
    state, _ = feed(state, requests(rng, 104), rng)
    statistics = []
    for _ in range(6):
        state, _ = feed(state, requests(rng, 304, UNSURE), rng)
        statistics.append(state.statistic)
    assert min(statistics) == statistics[0] > 1e4


def test_after_an_alarm_it_is_armed_anew_and_finds_what_comes_later() -> None:
    rng = np.random.default_rng(0)
    state = change_monitor(requests(rng, 320), rng=rng)
    state, first = feed(state, requests(rng, 160, UNSURE), rng)
    assert (state.num_alarms, state.reference is state.usual or np.all(state.usual >= state.reference)) == (
        len(first),
        True,
    )
    state, none = feed(state, requests(rng, 400), rng)
    assert len(first) >= 1
    assert none == []
    state, again = feed(state, requests(rng, 160, SURE), rng)
    assert again[0].num_since < again[0].num_armed - 300  # it is dated behind the clean ones


def test_the_alarm_dates_the_change_and_names_the_views() -> None:
    since, named = [], set()
    for seed in range(9):
        rng = np.random.default_rng(seed)
        state, _ = feed(change_monitor(requests(rng, 320), rng=rng), requests(rng, 160), rng)
        _, alarms = feed(state, requests(rng, 160, bright=1.5), rng)
        since.append(alarms[0].since)
        named |= set(alarms[0].views)
    assert 152 <= np.median(since) <= 168
    assert named == {"brightness"}


def test_a_confidence_that_is_no_number_counts_as_unsure_and_full_ties_are_no_alarm() -> None:
    rng = np.random.default_rng(0)
    state = change_monitor(confidences(np.linspace(0.5, 1, 100)), rng=rng)
    assert feed(state, confidences([nan] * 80), rng)[1]
    assert feed(change_monitor(confidences(np.ones(300)), rng=rng), confidences(np.ones(504)), rng)[1] == []


def test_its_size_does_not_grow_with_the_stream() -> None:
    rng = np.random.default_rng(0)
    state, _ = feed(change_monitor(requests(rng, 100), rng=rng), requests(rng, 1000), rng)
    assert len(state.starts) == state.since.shape[1] == change.NUM_STARTS
    assert len(state.pending) < BLOCK


@pytest.mark.parametrize(
    ("number", "alpha", "said"),
    [
        (49, 0.01, "49 held-out requests are too few to rank against, needed are at least 50"),
        (60, 0.0, r"needed is one in \(0, 1\)"),
    ],
)
def test_what_cannot_be_monitored_is_refused(number: int, alpha: float, said: str) -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match=said):
        change_monitor(requests(rng, number), rng=rng, alpha=alpha)
