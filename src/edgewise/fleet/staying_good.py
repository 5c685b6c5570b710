"""What a device does so that its model stays good: watches confidences, keeps hard examples, joins them with labels.

Everything here stays on the device: inputs are traced raw data, labels come to it by feedback. What leaves is an alarm,
counts, and later an update.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from edgewise.core.ids import NodeId, RequestId
from edgewise.core.seeds import Seeds
from edgewise.fleet.messages import DriftReport, InstallOrder
from edgewise.inference.exits import confidence
from edgewise.inference.request import Served
from edgewise.inference.stages import Tensors
from edgewise.lifecycle import drift, hard_examples
from edgewise.lifecycle.hard_examples import HardExample
from edgewise.lifecycle.labels import LabelHelp, label_source
from edgewise.models.task import Examples

MAX_EXAMPLES = 400
ALARM = 8_000.0
"""Mean number of undrifted requests between false alarms of one device is at least this; with n devices n times as often."""


class StayingGood:
    """One device's detector and buffer.

    Attributes:
        alarm: The drift it reported under the version in force; None before.
    """

    def __init__(self, node: NodeId, max_bytes: int) -> None:
        self._node = node
        self._seeds = Seeds(0).at("buffer", node)
        self._detector: drift.DriftState | None = None
        self._buffer = hard_examples.hard_examples(MAX_EXAMPLES, max_bytes)
        self._answers: dict[RequestId, int] = {}
        self.alarm: DriftReport | None = None

    @property
    def num_hard(self) -> int:
        """Hard examples kept."""
        return len(self._buffer.kept)

    def installed(self, order: InstallOrder) -> None:
        """A version is in force: its own calibration confidences are the reference from here on."""
        self.alarm = None
        reference = {0: order.confidences} if order.confidences else {}
        self._detector = drift.drift_detector(reference, threshold=ALARM) if reference else None

    def served(self, inputs: Tensors, served: Served) -> DriftReport | None:
        """Takes one served request.

        Args:
            inputs: What came, traced as raw data.
            served: What was answered.

        Returns:
            The alarm, if this request completed its evidence.
        """
        seen = served.observation
        if not served.outputs:
            return None
        now = time.monotonic()
        (logits,) = list(served.outputs.values())[-1:]
        sure = seen.confidence if seen.confidence is not None else float(confidence(logits)[0])
        (array,) = list(inputs.values())[:1]
        example = HardExample(RequestId(seen.request), array[0], int(np.argmax(logits[0])), sure, now)
        rng = self._seeds.at(self._buffer.num_offered).rng()
        self._buffer, _ = hard_examples.step(self._buffer, example, rng)
        if self._detector is None or seen.confidence is None:
            return None
        event = drift.ConfidenceObserved(self._node, seen.confidence, 0, now)
        self._detector, alarms = drift.step(self._detector, event)
        for found in alarms:
            # What was kept before the change is of the old kind: the buffer begins anew with the drift.
            recent = tuple(pair for pair in self._buffer.kept if pair[1].time >= found.since)
            self._buffer = replace(self._buffer, kept=recent)
            self.alarm = DriftReport(self._node, found.statistic, found.threshold, found.num_since, len(recent))
            return self.alarm
        return None

    def label(self, labels: dict[str, int]) -> int:
        """Takes true labels by request; returns how many belong to kept examples."""
        self._answers |= {RequestId(k): v for k, v in labels.items()}
        kept = {e.request for e in self._buffer.examples}
        self._answers = {k: v for k, v in self._answers.items() if k in kept}
        return len(self._answers)

    def labelled(self, source: str = "feedback") -> Examples | None:
        """Hard examples that have a label, as training data; None without any."""
        examples = self._buffer.examples
        labels = label_source(source).label(examples, LabelHelp(answers=self._answers)).labels
        pairs = [(e.input, label) for e, label in zip(examples, labels, strict=True) if label is not None]
        if not pairs:
            return None
        return Examples.of(np.stack([x for x, _ in pairs]), np.array([y for _, y in pairs], np.int64))
