"""Drift of the fleet's inputs, watched at the coordinator over all devices together: one detector, sooner and surer than many.

Devices send the confidences and classes of their answers, a few numbers at a time; inputs stay where they are. At an alarm each device
is told how many of its last examples are of the new kind, so that its buffer begins anew there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from math import ceil
from typing import Any

from edgewise.core.errors import InputError
from edgewise.core.ids import NodeId
from edgewise.core.seeds import Seeds
from edgewise.fleet.messages import Ack, Message, NodeInfo
from edgewise.lifecycle import drift
from edgewise.transport.frame import Frame

ALARM = 1_000_000.0
"""Mean number of undrifted requests between false alarms is at least this."""
NUM_WATCHED = 60
"""Answers of one exit that a version's own new inputs are known by."""
SLACK = 2
"""Examples a device keeps beyond its share of those since the change."""


class Confidences(Message, frozen=True):
    """How sure a device was of its last answers, and what they were: whatever the plan, at the exit each request reaches.

    Attributes:
        node: Who answered.
        version: Under which version.
        values: Top-1 softmax of one exit, in order.
        time: Of the last one, seconds on the device's clock.
        exit: Index of that exit in the model: the first of the plan that answered.
        predicted: The class with the highest score there, one for each value; () from a device that does not tell.
        model: Of which model.
    """

    node: NodeId
    version: int
    values: tuple[float, ...]
    time: float
    exit: int = 0
    predicted: tuple[int, ...] = ()
    model: str = ""

    @property
    def answers(self) -> list[drift.DriftAnswer]:
        """Both together, in order."""
        known: Sequence[int | None] = self.predicted or (None,) * len(self.values)
        return [drift.DriftAnswer(*pair) for pair in zip(self.values, known, strict=True)]


class CollectOrder(Message, frozen=True):
    """The inputs have changed: keep hard examples among the last so many requests of a model only."""

    last: int
    model: str = ""


class DriftWatch:
    """The coordinator's detector of the version in force.

    A version is compared with its calibration data, except one that was trained because inputs had changed: what it answers
    to the first inputs it sees is what it will answer, and only another change is a drift.

    Args:
        in_force: The version in force; 0 if none.
        answers_drift: Whether a version was trained because inputs had changed.
        reference: Calibration answers of a version, by exit; {} if there is no held-out data.
        devices: Names of the devices that are there.
        order: Sends an order to a device.
        told: Told `drift_detected`.
    """

    def __init__(
        self,
        in_force: Callable[[], int],
        answers_drift: Callable[[int], bool],
        reference: Callable[[int], Mapping[int, Sequence[drift.DriftAnswer]]],
        devices: Callable[[], Sequence[NodeId]],
        order: Callable[[NodeId, CollectOrder], Awaitable[None]],
        told: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self._in_force = in_force
        self._answers_drift = answers_drift
        self._reference = reference
        self._devices = devices
        self._order = order
        self._told = told
        self._found = ""
        self._version = 0
        self._state: drift.DriftState | None = None
        self._watched: dict[int, list[drift.DriftAnswer]] | None = None
        self._rng = Seeds(0).at("drift").rng()

    @property
    def sentence(self) -> str:
        """What was found of the version in force; "" while its inputs look as they should."""
        return self._found if self._version == self._in_force() else ""

    async def arrived(self, report: Confidences, _: Frame, sender: NodeInfo) -> Ack:
        """Takes a device's confidences.

        Raises:
            InputError: If it speaks for another device, or does not name a class for each confidence.
        """
        if sender.node != report.node:
            raise InputError(
                f"{sender.node} reports confidences in the name of {report.node}; each node reports its own."
            )
        if len(report.predicted) not in (0, len(report.values)):
            raise InputError(
                f"{report.node} reports {len(report.values)} confidences and {len(report.predicted)} classes, needed is a "
                "class for each, or none."
            )
        if report.version != self._in_force():
            return Ack(False, f"version {report.version} is not in force")
        if report.version != self._version:
            self._begin(report.version)
        if self._watched is not None and (self._state is None or not self._state.knows(report.exit)):
            self._watch(self._watched, report)
            return Ack()
        if self._state is None:
            return Ack(False, "no held-out data to compare with")
        for confidence, predicted in report.answers:
            seen = drift.AnswerObserved(report.node, confidence, report.exit, report.time, predicted)
            self._state, alarms = drift.step(self._state, seen, self._rng)
            for alarm in alarms:
                await self._alarm(alarm)
        return Ack()

    def _begin(self, version: int) -> None:
        self._version, self._found, self._state = version, "", None
        self._watched = {} if self._answers_drift(version) else None
        if self._watched is None and (reference := self._reference(version)):
            self._state = drift.drift_detector(reference, rng=self._rng, threshold=ALARM)

    def _watch(self, watched: dict[int, list[drift.DriftAnswer]], report: Confidences) -> None:
        answers = watched.setdefault(report.exit, [])
        answers.extend(report.answers)
        if len(answers) >= NUM_WATCHED:
            fresh = drift.drift_detector({report.exit: answers}, rng=self._rng, threshold=ALARM)
            self._state = fresh if self._state is None else drift.with_references(self._state, fresh)

    async def _alarm(self, alarm: drift.DriftDetected) -> None:
        self._found = (
            f"drift: for {alarm.num_since} requests before the alarm the inputs of version {self._version} did not look "
            "like those it was calibrated on. Give feedback, and train with --collected."
        )
        devices = self._devices()
        share = ceil(alarm.num_since / max(len(devices), 1)) + SLACK
        self._told(
            "drift_detected",
            {
                "version": self._version,
                "statistic": alarm.statistic,
                "threshold": alarm.threshold,
                "num_since": alarm.num_since,
            },
        )
        for device in devices:
            await self._order(device, CollectOrder(share))
