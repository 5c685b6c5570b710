"""Both monitors together: what was found, what it is, what is waited for; a benign shift does not call for training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgewise.lifecycle import drift
from edgewise.lifecycle.change import DriftAnswer, Seen
from edgewise.lifecycle.covariates import COVARIATES, covariates
from edgewise.lifecycle.drift import QUIET, DriftReference, DriftState, drift_state
from edgewise.lifecycle.harm import LabelArrived
from edgewise.lifecycle.shift_kind import ShiftKind, shift_of


def requests(
    rng: np.random.Generator, number: int, *, sure: float = 9.0, mix: Any = None, bright: float = 0.0
) -> list[Seen]:
    """A class looks brighter than the last, and is answered less surely: a mix of classes moves everything."""
    classes = rng.choice(5, number, p=mix)
    looks = rng.normal(size=(number, 4))
    looks[:, 0] += classes + bright
    values = rng.beta(sure - classes, 0.7)
    rows = zip(values.tolist(), classes.tolist(), looks.tolist(), strict=True)
    return [Seen({0: DriftAnswer(value, name)}, tuple(look)) for value, name, look in rows]


def started(rng: np.random.Generator) -> DriftState:
    judged = [(int(label), bool(rng.random() < 0.05)) for label in rng.integers(5, size=600)]
    return drift_state(DriftReference(requests(rng, 400), judged), rng=rng)


def fed(state: DriftState, seen: list[Seen], rng: np.random.Generator, risk: float | None = None) -> DriftState:
    for one in seen:
        state = drift.answered(state, one, 0.0, rng)
        if risk is not None:
            state = drift.judged(state, LabelArrived(one.answers[0].predicted or 0, bool(rng.random() < risk)), rng)
    return state


SHIFTS: dict[str, tuple[dict[str, Any], str]] = {
    "class mix": ({"mix": [0.6, 0.1, 0.1, 0.1, 0.1]}, "class 0 is"),
    "covariates": ({"bright": 1.5}, "brightness is higher"),
    "answers": ({"sure": 5.5}, "the same classes are answered less surely"),
}


@pytest.mark.parametrize("kind", SHIFTS)
def test_what_changed_is_named(kind: str) -> None:
    rng = np.random.default_rng(0)
    how, said = SHIFTS[kind]
    found = shift_of(requests(rng, 400), requests(rng, 120, **how))
    assert (found.kind, said in found.text) == (kind, True), found


def test_nothing_is_named_where_nothing_changed() -> None:
    found = [
        shift_of(requests(np.random.default_rng(s), 400), requests(np.random.default_rng(s + 99), 120))
        for s in range(20)
    ]
    assert {shift.kind for shift in found} == {ShiftKind.CONCEPT}


@pytest.mark.parametrize("kind", SHIFTS)
def test_a_benign_shift_is_told_and_does_not_call_for_training(kind: str) -> None:
    rng = np.random.default_rng(0)
    state = fed(started(rng), requests(rng, 200), rng, 0.05)
    assert state.finding.sentence == ""
    finding = fed(state, requests(rng, 300, **SHIFTS[kind][0]), rng, 0.05).finding
    assert (finding.kind, finding.calls_for_training, finding.num_labels) == (kind, False, 500)
    assert "did not look like those of the held-out data" in finding.sentence
    assert finding.waits_for.startswith("labels, 500 held: about ")


def test_harm_calls_for_training_also_where_nothing_looks_different() -> None:
    rng = np.random.default_rng(0)
    state = fed(started(rng), requests(rng, 200), rng, 0.05)
    state = fed(state, requests(rng, 300), rng, 0.5)
    finding = state.finding
    assert (finding.kind, finding.calls_for_training, state.has_begun) == ("concept", True, True)
    assert "of the answers were wrong" in finding.sentence
    assert [type(alarm).__name__ for alarm in state.news] == ["HarmDetected"]


def test_a_change_that_is_over_is_not_told_any_more_and_the_next_one_is() -> None:
    rng = np.random.default_rng(0)
    state = fed(started(rng), requests(rng, 120, bright=2.0), rng)
    assert state.finding.kind == "covariates"
    state = fed(state, requests(rng, QUIET + 200), rng)
    assert state.finding.sentence == ""
    assert fed(state, requests(rng, 200, mix=[0.7, 0.1, 0.1, 0.05, 0.05]), rng).finding.kind == "class mix"


def test_without_held_out_data_it_says_what_it_waits_for() -> None:
    state = drift_state(DriftReference((), ()), rng=np.random.default_rng(0))
    state = drift.judged(
        drift.settled(fed(state, requests(np.random.default_rng(0), 9), np.random.default_rng(0)), 0.5),
        LabelArrived(0, True),
        np.random.default_rng(0),
    )
    assert "held-out data with labels (--holdout)" in state.finding.waits_for
    assert (state.finding.harm_statistic, state.finding.change_statistic) == (None, None)


def test_covariates_say_how_an_input_looks() -> None:
    flat = np.zeros((9, 128), np.float32)
    flat[:8] = np.random.default_rng(0).normal(1.0, 2.0, (8, 128))
    found = dict(zip(COVARIATES, covariates(flat), strict=True))
    assert found["brightness"] == pytest.approx(8 / 9, abs=0.1)
    assert found["stillness"] == pytest.approx(1 / 9)  # one sensor of nine is stuck
    assert covariates(np.array(["text"])) == ()
    assert covariates(np.array([np.nan, 1.0])) == (0.0, 0.0, 0.0, 0.0)
    assert len(covariates(np.ones((3, 224, 224), np.uint8))) == len(COVARIATES) == len(covariates(np.float32(3)))


def test_the_threshold_that_is_told_is_that_of_the_monitors() -> None:
    labels = [(i % 2, i % 10 == 0) for i in range(400)]
    state = drift_state(DriftReference((), labels), rng=np.random.default_rng(0), alpha=0.05)
    assert state.finding.threshold == pytest.approx(20.0)
