"""Every gate rule: pure, lets the first request of a stream pass unless it lets all, answers what it learned."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgewise.core.errors import InputError
from edgewise.inference.gates import GATES, make_gate
from edgewise.inference.gates.frame_difference import difference
from edgewise.planning.plan import INPUT, Gate

FRAME = {"x": np.zeros((1, 3, 4, 4), np.float32)}
ANSWER = {"end": np.float32([[1.0, 2.0]])}
SPECS = [*GATES, "frame_difference(every=3)", "frame_difference(cells=4)"]


def gate(spec: str, threshold: float = 0.5) -> Any:
    return make_gate(Gate(spec, INPUT, threshold, tensors=("x",)))


@pytest.mark.parametrize("spec", SPECS)
def test_asking_changes_nothing_but_the_state_it_returns(spec: str) -> None:
    rule, frame = gate(spec), {"x": FRAME["x"].copy()}
    state = None if rule.learn is None else rule.learn(frame, ANSWER, None)
    first, second = rule.ask(frame, state), rule.ask(frame, state)
    assert np.array_equal(frame["x"], FRAME["x"])
    assert (first[0] is None) == (second[0] is None)


@pytest.mark.parametrize("spec", SPECS)
def test_without_experience_a_gate_that_learns_lets_every_request_pass(spec: str) -> None:
    rule = gate(spec)
    if rule.learn is not None:
        assert rule.ask(FRAME, None) == (None, None)


@pytest.mark.parametrize("spec", SPECS)
def test_a_gate_that_learns_answers_what_it_was_told_for_the_same_request(spec: str) -> None:
    rule = gate(spec)
    if rule.learn is not None:
        answer, _ = rule.ask(FRAME, rule.learn(FRAME, ANSWER, None))
        assert answer is not None
        assert np.array_equal(answer["end"], ANSWER["end"])


def test_a_gate_nobody_knows_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"gates has no 'frame_diference'\. Did you mean 'frame_difference'"):
        gate("frame_diference")


def test_a_small_thing_that_moves_is_averaged_away_unless_the_grid_is_fine() -> None:
    moved = {"x": FRAME["x"].copy()}
    moved["x"][..., 0, 0] = 1.0
    # One of 16 places changed by one: 1/16 over the frame, 1 in its own cell of a 4 × 4 grid.
    assert difference(moved, FRAME) == pytest.approx(1 / 16)
    assert difference(moved, FRAME, cells=4) == pytest.approx(1.0)
    assert difference({"x": np.zeros((2, 3, 4, 4))}, FRAME) == float("inf")


def test_every_nth_frame_passes_whatever_it_shows() -> None:
    rule = gate("frame_difference(every=3)")
    state, passed = None, []
    for _ in range(9):
        answer, state = rule.ask(FRAME, state)
        passed.append(answer is None)
        if answer is None:
            state = rule.learn(FRAME, ANSWER, state)
    assert passed == [True, False, False] * 3
