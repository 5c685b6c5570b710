from __future__ import annotations

import numpy as np
import pytest

from edgewise.core.errors import InputError
from edgewise.inference.gates.exit import (
    accuracy_lower_bound,
    choose_threshold,
    confidence,
    first_answer,
    leaves,
    tradeoff,
)
from edgewise.inference.gates.gate_states import GateStates
from edgewise.planning.plan import EXIT, Gate
from tests.inference.tiny import images


def test_confidence_is_the_top_softmax() -> None:
    # softmax([ln 3, 0]) = (3/4, 1/4); adding a constant changes nothing.
    assert confidence(np.array([[np.log(3), 0.0], [np.log(3) + 1000, 1000.0]])) == pytest.approx([0.75, 0.75])


def test_a_batch_leaves_only_if_every_example_is_confident() -> None:
    logits = np.array([[9.0, 0.0], [0.1, 0.0]])
    assert leaves(logits[:1], 0.9)
    assert not leaves(logits, 0.9)
    assert leaves(logits, 0.0)


def test_the_first_exit_whose_rule_is_met_is_taken() -> None:
    gates = tuple(Gate(EXIT, "device", t, tensors=(f"e{i}",), index=i) for i, t in enumerate((0.99, 0.6, 0.0)))
    logits = {f"e{i}": np.array([[2.0, 0.0]]) for i in range(3)}
    assert GateStates(gates).ask(logits) == (gates[1], {"e1": logits["e1"]}, True)
    assert GateStates(gates[:1]).ask(logits) == (gates[0], {"e0": logits["e0"]}, False)
    assert GateStates(()).ask(logits) is None


def test_the_bound_is_clopper_and_pearsons() -> None:
    # n of n right: the bound solves a^n = α.
    assert accuracy_lower_bound(59, 59) == pytest.approx(0.05 ** (1 / 59))
    assert accuracy_lower_bound(0, 10) == 0.0


def test_the_bound_holds_in_the_promised_share_of_samples() -> None:
    right = np.random.default_rng(0).binomial(200, 0.9, size=2000)
    bounds = np.array([accuracy_lower_bound(int(k), 200) for k in right])
    # 95 % promised; three standard errors of 2,000 draws are 1.5 points.
    assert (bounds <= 0.9).mean() >= 0.95 - 0.015


def calibration(seed: int, num: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    """Two classes whose confidence is the true probability of being right."""
    rng = np.random.default_rng(seed)
    sure = rng.uniform(0.5, 1.0, num)
    logits = np.stack([np.log(sure), np.log(1 - sure)], axis=1)
    return logits, np.where(rng.uniform(size=num) < sure, 0, 1)


def test_the_threshold_lets_those_leave_whose_accuracy_has_the_evidence() -> None:
    logits, targets = calibration(0)
    threshold = choose_threshold(logits, targets, min_accuracy=0.9)
    assert threshold is not None
    # Above t the mean confidence is (1 + t)/2, so 0.9 needs t ≥ 0.8; the bound asks for a little more.
    assert 0.8 <= threshold <= 0.9
    stricter = choose_threshold(logits, targets, min_accuracy=0.9, risk=0.001)
    assert stricter is not None
    assert stricter >= threshold


def test_the_chosen_threshold_keeps_its_promise_on_new_data() -> None:
    failures = 0
    for seed in range(100):
        threshold = choose_threshold(*calibration(seed, 500), min_accuracy=0.9)
        failures += threshold is not None and (1 + threshold) / 2 < 0.9
    # Risk 5 %: more than 12 of 100 has probability < 0.2 %.
    assert failures <= 12


def test_without_evidence_there_is_no_threshold() -> None:
    logits, targets = calibration(0, 30)
    assert choose_threshold(logits, targets, min_accuracy=0.99) is None
    assert choose_threshold(logits, targets, min_accuracy=1.0) is None
    assert choose_threshold(logits, targets, min_accuracy=0.0) is not None
    with pytest.raises(InputError, match="there are no calibration examples"):
        choose_threshold(logits[:0], targets[:0], min_accuracy=0.9)


def test_the_tradeoff_counts_who_leaves_and_how_right_they_are() -> None:
    logits = np.log([[0.9, 0.1], [0.6, 0.4]])
    rows = tradeoff(logits, np.array([0, 1]), (0.5, 0.8, 0.95))
    assert rows[:2] == [(0.5, 1.0, 0.5), (0.8, 0.5, 1.0)]
    assert rows[2][1] == 0.0
    assert np.isnan(rows[2][2])


@pytest.mark.parametrize("classes", [1, 2, 10, 32, 33, 1000])
def test_the_first_answer_is_the_first_rows_confidence_and_class(classes: int) -> None:
    for logits in (
        images(3).reshape(3, -1)[:, :1].repeat(classes, 1) * np.linspace(1, 2, classes),
        np.zeros((2, classes)),
    ):
        for shaped in (logits.astype(np.float32), logits.astype(np.float32).reshape(-1, 1, classes)):
            assert first_answer(shaped) == (confidence(shaped)[0], shaped[0].argmax())
