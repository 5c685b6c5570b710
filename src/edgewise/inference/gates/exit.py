"""The gate at a classifier: when a request may leave there, and how its threshold is chosen. Read `evidence.py` next."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, isfinite, nan, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.core.errors import InputError
from edgewise.inference.gates.gate import Answer, GateRule, Given, State

_FEW_CLASSES = 32


def confidence(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Top-1 softmax of each row.

    Args:
        logits: float[n, classes].

    Returns:
        float64[n], in (0, 1].

    Reference:
        Laskaridis et al., "SPINN: Synergistic Progressive Inference of Neural Networks over Device and Cloud",
        MobiCom 2020. Teerapittayanon et al., "BranchyNet", ICPR 2016, leaves by entropy instead.
    """
    rows = _rows(logits)
    if rows.shape[1] <= _FEW_CLASSES:  # on every request's path, where a call of numpy costs more than the sum
        return np.array([_top_1(row) for row in rows.tolist()])
    best: NDArray[np.float64] = probabilities(rows).max(axis=1)
    return best


def probabilities(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Softmax of each row.

    Args:
        logits: float[n, classes].

    Returns:
        float64[n, classes]; rows sum to 1.
    """
    rows = _rows(logits)
    shifted: NDArray[np.float64] = np.exp(rows - rows.max(axis=1, keepdims=True))
    shifted /= shifted.sum(axis=1, keepdims=True)
    return shifted


def _rows(logits: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(logits, np.float64).reshape(len(logits), prod(logits.shape[1:]))  # -1 has no meaning for no rows


def _top_1(row: Sequence[float]) -> float:
    best = max(row)
    return 1.0 / sum(exp(value - best) for value in row) if isfinite(best) else nan


def first_answer(logits: NDArray[Any]) -> tuple[float, int]:
    """Top-1 softmax and class of the first row; on every request's path.

    Args:
        logits: float[n, classes].

    Returns:
        (as `confidence`, the class with the highest score).
    """
    first = logits[0].reshape(-1)
    if first.size > _FEW_CLASSES:
        return float(confidence(first[None])[0]), int(first.argmax())
    row = first.tolist()
    return _top_1(row), row.index(max(row))


def leaves(logits: NDArray[Any], threshold: float) -> bool:
    """Whether a request may leave here: every example of its batch is confident.

    Args:
        logits: float[n, classes].
        threshold: Top-1 softmax needed; 0 at the end of the model.

    Returns:
        True if it leaves.
    """
    return threshold <= 0.0 or bool((confidence(logits) >= threshold).all())


def exit_by_confidence(threshold: float) -> GateRule:
    """Answers with an exit's own outputs where its classifier is confident.

    Args:
        threshold: Top-1 softmax of the last of its tensors that every example of the batch needs; 0 lets all leave,
            whatever the tensors are.

    Returns:
        The rule; it has no state.

    Reference:
        Laskaridis et al., "SPINN: Synergistic Progressive Inference of Neural Networks over Device and Cloud",
        MobiCom 2020.
    """

    def ask(tensors: Given, state: State) -> tuple[Answer | None, State]:
        is_leaving = threshold <= 0.0 or leaves(list(tensors.values())[-1], threshold)
        return (dict(tensors) if is_leaving else None), state

    return GateRule(ask)


def accuracy_lower_bound(num_right: int, num_examples: int, *, risk: float = 0.05) -> float:
    """One-sided lower confidence bound of an accuracy, exact for every sample size.

    Args:
        num_right: Examples answered right.
        num_examples: Examples answered.
        risk: Probability that the true accuracy is below the bound, α.

    Returns:
        The bound, in 0…1; 0 without examples.

    Reference:
        Clopper & Pearson, "The use of confidence or fiducial limits illustrated in the case of the binomial",
        Biometrika 1934.
    """
    if num_right <= 0:
        return 0.0
    from scipy.special import betaincinv

    return float(betaincinv(num_right, num_examples - num_right + 1, risk))


def choose_threshold(
    logits: NDArray[Any], targets: NDArray[Any], *, min_accuracy: float, risk: float = 0.05, num_candidates: int = 20
) -> float | None:
    """The lowest threshold whose leavers are accurate enough, with a finite-sample bound.

    Candidates are quantiles of the calibration confidences, tried from the strictest down until one fails (fixed-sequence
    testing), so that the bound needs no correction for the number of candidates.

    Args:
        logits: float[n, classes] of the exit on calibration examples that training has not seen.
        targets: int[n].
        min_accuracy: Accuracy that those who leave must reach, 0…1.
        risk: Probability that they do not although the threshold was chosen.
        num_candidates: Thresholds tried.

    Returns:
        The threshold, or None if not even the strictest one has the evidence.

    Raises:
        InputError: If there are no examples.

    Reference:
        Angelopoulos et al., "Learn then Test", 2021, section 3 (fixed sequences).
        Differs: the tested loss is the error among those who leave, by the Clopper-Pearson bound.
    """
    if len(logits) == 0:
        raise InputError("there are no calibration examples, a threshold needs at least one. Give calibration data.")
    confident, right = confidence(logits), np.asarray(logits).argmax(axis=-1) == np.asarray(targets)
    # The strictest candidate must leave enough examples for its bound to be able to pass.
    fractions = np.linspace(1 / num_candidates, 1.0, num_candidates)
    chosen: float | None = None
    for fraction in fractions:
        threshold = float(np.quantile(confident, 1.0 - fraction))
        leaving = confident >= threshold
        if accuracy_lower_bound(int(right[leaving].sum()), int(leaving.sum()), risk=risk) < min_accuracy:
            if chosen is None and leaving.sum() < _fewest(min_accuracy, risk):
                continue
            break
        chosen = threshold
    return chosen


def _fewest(min_accuracy: float, risk: float) -> float:
    """Examples, all right, below which no bound can reach `min_accuracy`: α^(1/n) ≥ a."""
    if min_accuracy <= 0.0:
        return 0.0
    return float("inf") if min_accuracy >= 1.0 else float(np.log(risk) / np.log(min_accuracy))


def tradeoff(
    logits: NDArray[Any], targets: NDArray[Any], thresholds: Sequence[float]
) -> list[tuple[float, float, float]]:
    """Risk and coverage of an exit at some thresholds.

    Args:
        logits: float[n, classes].
        targets: int[n].
        thresholds: Top-1 softmax values.

    Returns:
        (threshold, share that leaves, accuracy of those; NaN if none) for each.
    """
    confident, right = confidence(logits), np.asarray(logits).argmax(axis=-1) == np.asarray(targets)
    rows = []
    for threshold in thresholds:
        leaving = confident >= threshold
        accuracy = float(right[leaving].mean()) if leaving.any() else float("nan")
        rows.append((threshold, float(leaving.mean()), accuracy))
    return rows
