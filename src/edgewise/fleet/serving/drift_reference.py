"""What a version is known by: how it sees and answers held-out examples along the exits of a plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np

from edgewise.fleet.serving.versions import VersionStore, outputs_of
from edgewise.inference.gates.exit import confidence
from edgewise.lifecycle.change import DriftAnswer, Seen
from edgewise.lifecycle.covariates import covariates
from edgewise.lifecycle.drift import DriftReference

Exits: TypeAlias = tuple[tuple[int, float], ...]
"""Of a plan, in order: index of the exit in the model, and the confidence at which answers leave there; 0 lets all leave."""


def reached(exits: Exits, answers: Mapping[int, DriftAnswer]) -> tuple[int, int]:
    """The first exit of a plan, which each request reaches, and the one where this request ends.

    Args:
        exits: Of the plan; at least one.
        answers: Of every exit of the model.

    Returns:
        Both indices.
    """
    end = next((index for index, threshold in exits if answers[index].confidence >= threshold), exits[-1][0])
    return exits[0][0], end


def drift_reference(versions: VersionStore, number: int, exits: Exits) -> DriftReference:
    """Held-out examples as a version sees and answers them.

    Change is looked for against the calibration part, harm against the gate's as well: it has decided about this version
    before. Codecs at a cut are left out; the gate bounds what they change.

    Args:
        versions: Registry and held-out data.
        number: Version.
        exits: Of the plan.

    Returns:
        The reference; empty without held-out data.
    """
    calibration = versions.calibration_answers(number)
    holdout = versions.holdout_of(versions.get(number).task)
    if holdout is None or any(index not in calibration for index, _ in exits):
        return DriftReference((), ())
    gate = outputs_of(versions.graph(number), holdout.gate_x)
    of_gate = {
        index: [DriftAnswer(*pair) for pair in zip(confidence(gate[index]), gate[index].argmax(axis=1), strict=True)]
        for index, _ in exits
    }
    looks = [covariates(example) for example in np.asarray(holdout.calibration_x)]
    judged, seen = [], []
    for part, labels in ((calibration, holdout.calibration_y), (of_gate, holdout.gate_y)):
        for row, label in enumerate(np.asarray(labels).tolist()):
            answers = {index: part[index][row] for index, _ in exits}
            judged.append((label, answers[reached(exits, answers)[1]].predicted != label))
    for row, look in enumerate(looks):
        answers = {index: calibration[index][row] for index, _ in exits}
        seen.append(Seen({index: answers[index] for index in reached(exits, answers)}, look))
    return DriftReference(seen, judged)
