"""`ModelVersion`: a trained model as a value: digests, lineage, plan evidence, gate result."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from edgewise.core.ids import Digest, RunId

FEDERATED = "federated"
"""Domain of a model that all clients trained together, their data where it is; the protocol does not matter."""


class ExitEvidence(msgspec.Struct, frozen=True):
    """How one exit behaved on calibration data, under one codec at the cut before it.

    Attributes:
        exit_index: 0 is the first exit; the last is the model's end.
        codec: Spec text of the codec at the cut in front of the exit; "none" if uncut.
        accuracy: Accuracy of the examples that leave here; NaN if none does.
        accuracy_all: Accuracy if all examples left here.
        exit_fraction: Share of all examples that leave here under `threshold`.
        threshold: Confidence (top-1 softmax) needed to leave here; 0 for the last exit.
        num_examples: Calibration examples behind these numbers.
        before: Earlier exits in use when this was measured, as (exit index, threshold); () if none was.
    """

    exit_index: int
    codec: str
    accuracy: float
    accuracy_all: float
    exit_fraction: float
    threshold: float
    num_examples: int
    before: tuple[tuple[int, float], ...] = ()


class GateResult(msgspec.Struct, frozen=True):
    """Paired comparison of a candidate with a reference on the same examples.

    Attributes:
        passed: Whether the candidate may serve.
        num_examples: Pairs compared.
        reference_only_right: Reference right, candidate wrong.
        candidate_only_right: Candidate right, reference wrong.
        upper_bound_points: One-sided 95 % bound of the loss of accuracy, in percentage points.
        limit_points: What the bound had to stay within.
        reason: One sentence.
        reference: Number of the version it was compared with; 0 where it has none.
    """

    passed: bool
    num_examples: int
    reference_only_right: int
    candidate_only_right: int
    upper_bound_points: float
    limit_points: float
    reason: str
    reference: int = 0


class ModelVersion(msgspec.Struct, frozen=True):
    """One version of a model.

    Attributes:
        number: Counter in the registry, from 1.
        graph: Digest of the ONNX bytes, exits as outputs, weights inside.
        weights: Digest of the flat float32 vector.
        task: Task name.
        run: Which run made it.
        parent: Version it started from; 0 if from scratch.
        training_domain: Whose data it learned from, together: `cloud` for what was pooled there, `federated` for all clients
            where they are, by whichever protocol, `edge` for those of one edge, `device` for one client.
        data: Which clients and how many examples each, by name.
        evidence: Per exit and codec.
        gate: Result of its gate; None before.
        origin: `trained`, or `imported` for a user's own ONNX file.
        own: Tensors that each device of its run keeps to itself, as patterns; here they have their first values. Empty
            where the model is whole.
    """

    number: int
    graph: Digest
    weights: Digest
    task: str
    run: RunId = RunId("")
    parent: int = 0
    training_domain: str = FEDERATED
    data: dict[str, int] = {}
    evidence: tuple[ExitEvidence, ...] = ()
    gate: GateResult | None = None
    origin: str = "trained"
    own: tuple[str, ...] = ()

    @property
    def caution(self) -> str:
        """What to know before this version is exported or serves; "" where there is nothing."""
        return caution_of(f"version {self.number}", self.own)


def caution_of(what: str, own: Sequence[str]) -> str:
    """Says what a model lacks whose clients keep a part of it to themselves.

    Args:
        what: The model, as the sentence's subject.
        own: Tensors that never leave the clients, as patterns.

    Returns:
        The sentences; "" where the model is whole.

    Example:
        >>> caution_of("version 1", ())
        ''
    """
    if not own:
        return ""
    return (
        f"{what} is the part that its clients share; {', '.join(own)} have their first values in it, and "
        "all that was measured of it (evidence, gate) was measured so. Join it on a device with what that device kept (models/personal_version.py)."
    )
