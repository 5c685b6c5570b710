"""What the drift monitors know of a version, as it is told over the fleet; light, because every node can read it."""

from __future__ import annotations

import msgspec


class DriftFinding(msgspec.Struct, frozen=True):
    """What is known of the inputs of a version: the numbers of both monitors, and what follows.

    Attributes:
        sentence: What was found; "" while nothing is.
        kind: What changed, as `ShiftKind`; "" while nothing has.
        calls_for_training: Whether answers are proved to be wrong more often.
        waits_for: What would tell more, in words.
        price: How many more labels prove which fall, in words; "" without held-out labels.
        harm_statistic: Evidence of harm; None without held-out labels.
        change_statistic: Evidence of change; None without held-out data.
        threshold: Of both, 1/α; 0 without either.
        num_labels: Labels held.
        num_requests: Requests looked at.
        risk: Share of wrong answers among the labels; None without any.
        risk_reference: The same on held-out data.
        labels_needed: The price as numbers: points of accuracy, and labels; a fall that cannot be proved is left out.
    """

    sentence: str = ""
    kind: str = ""
    calls_for_training: bool = False
    waits_for: str = ""
    price: str = ""
    harm_statistic: float | None = None
    change_statistic: float | None = None
    threshold: float = 0.0
    num_labels: int = 0
    num_requests: int = 0
    risk: float | None = None
    risk_reference: float | None = None
    labels_needed: tuple[tuple[int, int], ...] = ()

    @property
    def waits(self) -> str:
        """What is waited for, in a word or two."""
        if self.calls_for_training:
            return "examples"
        return "held-out data" if self.harm_statistic is None else "labels"
