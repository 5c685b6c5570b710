"""What is known of a model's exits: from calibration logits to evidence rows, from rows to operating points.

    rows = measure_exits({"none": [logits_0, logits_1], "int8": [...]}, labels)   # kept in `ModelVersion.evidence`
    table = ExitTable.of(rows, num_exits=2)
    table.policies                                     # which exits to use, at which thresholds
    table.at(policy, codecs=("none", "int8"))          # accuracy and shares, exit by exit; None without evidence

An exit policy uses some of the exits; the last one it uses has threshold 0, also where the model goes on after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, product
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewise.core.errors import InputError
from edgewise.models.version import ExitEvidence
from edgewise.planning.costs.operating_point import ExitPolicy, OperatingPoint

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


def measure_exits(
    logits: Mapping[str, Sequence[NDArray[Any]]],
    labels: NDArray[Any],
    thresholds: Sequence[float] = THRESHOLDS,
    max_exits: int = 3,
) -> tuple[ExitEvidence, ...]:
    """Evidence of every exit policy and codec from logits on calibration examples.

    Args:
        logits: By codec spec text, per exit float[n, classes]; `none` is the uncut model and must be there. Under a
            codec the logits are those of an exit behind a cut so coded.
        labels: int[n]; the whole model's own answers where there are no labels.
        thresholds: Top-1 softmax values to try at each exit.
        max_exits: Exits in use at most.

    Returns:
        Rows for `ModelVersion.evidence`.

    Raises:
        InputError: If there are no uncoded logits or no examples.
    """
    if "none" not in logits or len(labels) == 0:
        raise InputError(
            f"evidence needs labelled examples and logits of the uncut model under 'none', found {len(labels)} "
            f"examples and {sorted(logits)}. Run the model on calibration data first."
        )
    number = len(logits["none"])
    confident = {codec: [_confidence(rows) for rows in per_exit] for codec, per_exit in logits.items()}
    right = {codec: [rows.argmax(-1) == labels for rows in per_exit] for codec, per_exit in logits.items()}
    rows = []
    for before in _inner_policies(number, thresholds, max_exits):
        staying = np.ones(len(labels), bool)
        for index, threshold in before:
            staying &= confident["none"][index] < threshold
        for index in range(before[-1][0] + 1 if before else 0, number):
            for codec, threshold in product(logits, (0.0, *(thresholds if index < number - 1 else ()))):
                leaving = staying & (confident[codec][index] >= threshold)
                rows.append(_row(index, codec, threshold, before, leaving, right[codec][index]))
    return tuple(rows)


def _row(
    index: int, codec: str, threshold: float, before: ExitPolicy, leaving: NDArray[np.bool_], right: NDArray[np.bool_]
) -> ExitEvidence:
    accuracy = float(right[leaving].mean()) if leaving.any() else float("nan")
    share = float(leaving.mean())
    return ExitEvidence(index, codec, accuracy, float(right.mean()), share, threshold, len(right), before)


def _inner_policies(number: int, thresholds: Sequence[float], max_exits: int) -> list[ExitPolicy]:
    """Every choice of earlier exits and their thresholds, the empty one first."""
    found: list[ExitPolicy] = []
    for size in range(min(max_exits, number)):
        for exits in combinations(range(number - 1), size):
            found.extend(tuple(zip(exits, taus, strict=True)) for taus in product(thresholds, repeat=size))
    return found


def _confidence(logits: NDArray[Any]) -> NDArray[np.float64]:
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    best: NDArray[np.float64] = 1.0 / shifted.sum(axis=-1)
    return best


class ExitTable(msgspec.Struct, frozen=True):
    """Evidence that can be looked up.

    Attributes:
        rows: By (exit, codec, threshold, exits before).
        num_exits: Exits of the model.
    """

    rows: dict[tuple[int, str, float, ExitPolicy], ExitEvidence]
    num_exits: int

    @staticmethod
    def of(evidence: Iterable[ExitEvidence], num_exits: int) -> ExitTable:
        """Arranges rows.

        Args:
            evidence: Rows, as `measure_exits` makes them.
            num_exits: Exits of the model.

        Returns:
            The table.

        Raises:
            InputError: If a row is of an exit that the model does not have.
        """
        evidence = tuple(evidence)
        for row in evidence:
            if row.exit_index >= num_exits:
                raise InputError(
                    f"evidence speaks of exit {row.exit_index}, the model names {num_exits}. Name its exits when it is "
                    "loaded (exits=), or measure the evidence again."
                )
        keyed = {(e.exit_index, e.codec, e.threshold, tuple((i, t) for i, t in e.before)): e for e in evidence}
        return ExitTable(keyed, num_exits)

    @property
    def policies(self) -> tuple[ExitPolicy, ...]:
        """Exit policies with uncoded evidence; only the model's end where there is no evidence at all."""
        ends = [key for key in self.rows if key[1] == "none" and key[2] == 0.0]
        complete = [(*before, (index, 0.0)) for index, _, _, before in ends if self._is_known(before)]
        return tuple(complete) or (((self.num_exits - 1, 0.0),),)

    def _is_known(self, before: ExitPolicy) -> bool:
        return all((i, "none", t, before[:n]) in self.rows for n, (i, t) in enumerate(before))

    def at(self, policy: ExitPolicy, codecs: Sequence[str]) -> OperatingPoint | None:
        """Looks up a policy.

        Args:
            policy: Exits and thresholds.
            codecs: Per exit in use, the codec of the cut it lies behind; `none` before any cut.

        Returns:
            The operating point; None if nothing was measured under one of the codecs.
        """
        if not self.rows:
            whole = policy == ((self.num_exits - 1, 0.0),) and set(codecs) <= {"none"}
            return OperatingPoint(policy, (1.0,), float("nan"), 0) if whole else None
        left, right, fractions = 1.0, 0.0, list[float]()
        num_examples = 0
        for position, ((index, threshold), codec) in enumerate(zip(policy, codecs, strict=True)):
            row = self.rows.get((index, codec, threshold, policy[:position]))
            if row is None:
                return None
            last = position == len(policy) - 1
            fraction = left if last else min(left, row.exit_fraction)
            right += fraction * (row.accuracy if row.exit_fraction > 0 else row.accuracy_all)
            left -= fraction
            fractions.append(fraction)
            num_examples = row.num_examples
        return OperatingPoint(policy, tuple(fractions), right, num_examples)
