"""What a device collects of a model's requests: hard examples, the labels that belong to them, confidences to report.

Inputs are traced raw data and stay here, labels come to the device by feedback. What leaves are the confidences and
classes of answers, four numbers of how an input looks, and of each label its class and whether the answer was wrong
(`drift_watch.py` weighs them); later an update.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from edgewise.core.ids import NodeId, RequestId
from edgewise.core.seeds import Seeds
from edgewise.fleet.serving.drift_watch import Confidences, Judged
from edgewise.inference.gates.exit import first_answer
from edgewise.inference.request_driver import Served
from edgewise.inference.session import AnswerSource
from edgewise.inference.stages import Tensors
from edgewise.lifecycle import hard_examples
from edgewise.lifecycle.covariates import covariates
from edgewise.lifecycle.hard_examples import HardExample
from edgewise.lifecycle.labels import LabelHelp, label_source
from edgewise.models.task import Examples

log = logging.getLogger("edgewise.fleet")
MAX_EXAMPLES = 400
BATCH = 8
"""Requests reported at once."""
MAX_REMEMBERED = 4000
"""Last answers that a label can be held against."""
AS_PLANNED = (AnswerSource.PLAN, AnswerSource.OTHER_EDGE)
"""Who gives answers that the plan intends; others say nothing of the version."""


class Unjudged(NamedTuple):
    """An answer that waits for its label: the device's number of the request, what it came from, its class."""

    number: int
    version: int
    revision: int
    predicted: int


class ExampleCollector:
    """Collects hard examples of one model on one device, in a bounded buffer.

    Args:
        node: The device.
        model: The model.
        max_bytes: Bound of the buffer.
        on_judged: Takes what labels say of answers, for the coordinator.
    """

    def __init__(
        self, node: NodeId, model: str, max_bytes: int, *, on_judged: Callable[[Judged], None] = lambda _: None
    ) -> None:
        self._node, self._model, self._on_judged = node, model, on_judged
        self._number = time.time_ns() // 1000  # ascends over restarts, too
        self._remembered: dict[RequestId, Unjudged] = {}
        self._seeds = Seeds(0).at("buffer", node)
        self._buffer = hard_examples.hard_examples(MAX_EXAMPLES, max_bytes)
        self._answers: dict[RequestId, int] = {}
        self._trained_until = float("-inf")
        self._times: deque[float] = deque(maxlen=10 * MAX_EXAMPLES)
        self._unreported: dict[tuple[int, int, int], list[tuple[Any, ...]]] = {}

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
            What to report to the coordinator, when a few have come together.
        """
        seen = served.observation
        if not served.outputs:
            return None
        now = time.monotonic()
        (logits,) = list(served.outputs.values())[-1:]
        (array,) = list(inputs.values())[:1]
        if not array.ndim or not len(array) or not np.size(logits):  # no example, or nothing answered
            return None
        first = array[0] if len(array) == 1 else array[0].copy()  # a view would keep the whole request
        sure, answer = first_answer(np.asarray(logits))
        top1 = seen.confidence if seen.confidence is not None else sure
        example = HardExample(RequestId(seen.request), first, answer, top1, now)
        rng = self._seeds.at(self._buffer.num_offered).rng()
        self._buffer, _ = hard_examples.step(self._buffer, example, rng)
        self._times.append(now)
        self._number += 1
        is_planned = seen.source in AS_PLANNED
        if is_planned:
            self._remember(RequestId(seen.request), Unjudged(self._number, seen.version, int(seen.revision), answer))
        if seen.confidence is None or seen.predicted is None:
            return None
        went_on = is_planned and seen.exit_index not in (None, seen.confidence_exit)
        end = (seen.exit_index, sure, answer) if went_on else None
        under = (seen.version, int(seen.revision), seen.confidence_exit)
        row = (seen.confidence, seen.predicted, self._number, end, covariates(first))
        return self._reported(under, row, now)

    def _remember(self, request: RequestId, answered: Unjudged) -> None:
        self._remembered[request] = answered
        if len(self._remembered) > MAX_REMEMBERED:
            del self._remembered[next(iter(self._remembered))]

    def _reported(self, under: tuple[int, int, int], row: tuple[Any, ...], now: float) -> Confidences | None:
        rows = self._unreported.setdefault(under, [])
        rows.append(row)
        if len(rows) < BATCH:
            return None
        version, revision, exit_index = under
        self._unreported = {
            key: values for key, values in self._unreported.items() if key != under and key[0] == version
        }
        values, predicted, numbers, ends, looks = zip(*rows, strict=True)
        return Confidences(
            self._node, version, values, now, exit_index, predicted, self._model, revision, numbers, ends,
            looks if all(looks) else (),
        )  # fmt: skip

    def collect(self, last: int) -> int:
        """The inputs have changed: forgets what was seen before the last so many requests; returns what is kept."""
        since = self._times[-last] if last <= len(self._times) else float("-inf")
        recent = tuple(pair for pair in self._buffer.kept if pair[1].time >= since)
        self._buffer = replace(self._buffer, kept=recent)
        return len(recent)

    def label(self, labels: Mapping[str, int]) -> int:
        """Takes true labels by request; returns how many of them belong to kept examples."""
        self._judge(labels)
        kept = {e.request for e in self._buffer.examples}
        new = {RequestId(k): v for k, v in labels.items() if k in kept}
        self._answers = {k: v for k, v in self._answers.items() if k in kept} | new
        return len(new)

    def _judge(self, labels: Mapping[str, int]) -> None:
        """Tells what labels say of answers; each answer is judged once."""
        by_plan: dict[tuple[int, int], list[tuple[int, int, bool]]] = {}
        for request, label in labels.items():
            answered = self._remembered.pop(RequestId(request), None)
            if answered is not None and label >= 0:
                rows = by_plan.setdefault((answered.version, answered.revision), [])
                rows.append((answered.number, int(label), answered.predicted != label))
        for (version, revision), rows in by_plan.items():
            numbers, classes, wrong = zip(*rows, strict=True)
            self._on_judged(
                Judged(self._node, version, self._model, revision, numbers, classes, wrong, time.monotonic())
            )

    def judges(self) -> Examples | None:
        """Examples with a true label that models are compared on; None without any.

        They are a fair sample of the requests since the last training: what a version has learned does not judge it.
        """
        fair = hard_examples.fair_sample(self._buffer, self._seeds.at("fair", self._buffer.num_offered).rng())
        fresh = [e for e in fair if e.time > self._trained_until and e.request in self._answers]
        return _as_examples([(e.input, self._answers[e.request]) for e in fresh])

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
        self._trained_until = max((e.time for e in examples), default=self._trained_until)
        labels = asked.label(examples, replace(help or LabelHelp(), answers=self._answers)).labels
        pairs = [(e.input, label) for e, label in zip(examples, labels, strict=True) if label is not None]
        log.info("%s: %d of %d hard examples have a label from %s", self._node, len(pairs), len(examples), asked.spec)
        return _as_examples(pairs)


def _as_examples(pairs: Sequence[tuple[Any, int]]) -> Examples | None:
    if not pairs:
        return None
    return Examples.of(np.stack([x for x, _ in pairs]), np.array([y for _, y in pairs], np.int64))
