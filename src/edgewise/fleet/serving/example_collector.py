"""What a device collects of a model's requests: hard examples, the labels that belong to them, confidences to report.

Inputs are traced raw data and stay here, labels come to the device by feedback. What leaves are the confidences and
classes of answers (`drift_watch.py` weighs them), and later an update.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from edgewise.core.ids import NodeId, RequestId
from edgewise.core.seeds import Seeds
from edgewise.fleet.serving.drift_watch import Confidences
from edgewise.inference.gates.exit import confidence
from edgewise.inference.request_driver import Served
from edgewise.inference.stages import Tensors
from edgewise.lifecycle import hard_examples
from edgewise.lifecycle.hard_examples import HardExample
from edgewise.lifecycle.labels import LabelHelp, label_source
from edgewise.models.task import Examples

log = logging.getLogger("edgewise.fleet")
MAX_EXAMPLES = 400
BATCH = 8
"""Confidences reported at once."""


class ExampleCollector:
    """Collects hard examples of one model on one device, in a bounded buffer."""

    def __init__(self, node: NodeId, model: str, max_bytes: int) -> None:
        self._node, self._model = node, model
        self._seeds = Seeds(0).at("buffer", node)
        self._buffer = hard_examples.hard_examples(MAX_EXAMPLES, max_bytes)
        self._answers: dict[RequestId, int] = {}
        self._times: deque[float] = deque(maxlen=10 * MAX_EXAMPLES)
        self._unreported: dict[tuple[int, int], list[tuple[float, int]]] = {}

    @property
    def num_hard(self) -> int:
        """Hard examples kept."""
        return len(self._buffer.kept)

    @property
    def num_labelled(self) -> int:
        """Those whose label is known."""
        return len(self._answers.keys() & {example.request for example in self._buffer.examples})

    def served(self, inputs: Tensors, served: Served) -> Confidences | None:
        """Takes one served request.

        Args:
            inputs: What came, traced as raw data.
            served: What was answered.

        Returns:
            Confidences and classes to report to the coordinator, when a few have come together.
        """
        seen = served.observation
        if not served.outputs:
            return None
        now = time.monotonic()
        (logits,) = list(served.outputs.values())[-1:]
        top1 = seen.confidence if seen.confidence is not None else float(confidence(logits)[0])
        (array,) = list(inputs.values())[:1]
        example = HardExample(RequestId(seen.request), array[0], int(np.argmax(logits[0])), top1, now)
        rng = self._seeds.at(self._buffer.num_offered).rng()
        self._buffer, _ = hard_examples.step(self._buffer, example, rng)
        self._times.append(now)
        if seen.confidence is None or seen.predicted is None:
            return None
        under = (seen.version, seen.confidence_exit)
        unreported = self._unreported.setdefault(under, [])
        unreported.append((seen.confidence, seen.predicted))
        if len(unreported) < BATCH:
            return None
        self._unreported = {
            key: values for key, values in self._unreported.items() if key != under and key[0] == seen.version
        }
        values, predicted = zip(*unreported, strict=True)
        return Confidences(
            self._node, seen.version, values, now, seen.confidence_exit, predicted=predicted, model=self._model
        )

    def collect(self, last: int) -> int:
        """The inputs have changed: forgets what was seen before the last so many requests; returns what is kept."""
        since = self._times[-last] if last <= len(self._times) else float("-inf")
        recent = tuple(pair for pair in self._buffer.kept if pair[1].time >= since)
        self._buffer = replace(self._buffer, kept=recent)
        return len(recent)

    def label(self, labels: Mapping[str, int]) -> int:
        """Takes true labels by request; returns how many of them belong to kept examples."""
        kept = {e.request for e in self._buffer.examples}
        new = {RequestId(k): v for k, v in labels.items() if k in kept}
        self._answers = {k: v for k, v in self._answers.items() if k in kept} | new
        return len(new)

    def labelled(self, source: Any = "feedback", help: LabelHelp | None = None) -> Examples | None:
        """Hard examples that have a label, as training data; a teacher may take its time: call it off the event loop.

        Args:
            source: Spec of the label source.
            help: What this device offers it, beside the true labels it knows.

        Returns:
            The examples; None without any.

        Raises:
            InputError: If the source needs what is not offered here.
            PolicyViolation: If the source would send what may not leave.
        """
        examples, asked = self._buffer.examples, label_source(source)
        labels = asked.label(examples, replace(help or LabelHelp(), answers=self._answers)).labels
        pairs = [(e.input, label) for e, label in zip(examples, labels, strict=True) if label is not None]
        log.info("%s: %d of %d hard examples have a label from %s", self._node, len(pairs), len(examples), asked.spec)
        if not pairs:
            return None
        return Examples.of(np.stack([x for x, _ in pairs]), np.array([y for _, y in pairs], np.int64))
