"""Drift of the fleet's inputs, watched at the coordinator over all devices together: one detector, sooner and surer than many.

Devices send the confidences of their answers, a few numbers at a time; inputs stay where they are. At an alarm each device
is told how many of its last examples are of the new kind, so that its buffer begins anew there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from math import ceil
from typing import Any

from edgewise.core.errors import InputError
from edgewise.core.ids import NodeId
from edgewise.fleet.messages import Ack, Message, NodeInfo
from edgewise.lifecycle import drift
from edgewise.transport.frame import Frame

ALARM = 10_000.0
"""Mean number of undrifted requests between false alarms is at least this."""
SLACK = 2
"""Examples a device keeps beyond its share of those since the change."""


class Confidences(Message, frozen=True):
    """Confidences of a device's last answers.

    Attributes:
        node: Who answered.
        version: Under which version.
        values: Top-1 softmax of one exit, in order.
        time: Of the last one, seconds on the device's clock.
        exit: Index of that exit in the model: the first of the plan that answered.
    """

    node: NodeId
    version: int
    values: tuple[float, ...]
    time: float
    exit: int = 0


class CollectOrder(Message, frozen=True):
    """The inputs have changed: keep hard examples among the last so many requests only."""

    last: int


class DriftWatch:
    """The coordinator's detector, one state per version in force.

    Attributes:
        sentence: What was found of the version in force; "" while its inputs look as they should.

    Args:
        reference: Calibration confidences of a version, by exit; {} if there is no held-out data.
        devices: Names of the devices that are there.
        order: Sends an order to a device.
        told: Told `drift_detected`.
    """

    def __init__(
        self,
        reference: Callable[[int], Mapping[int, Sequence[float]]],
        devices: Callable[[], Sequence[NodeId]],
        order: Callable[[NodeId, CollectOrder], Awaitable[None]],
        told: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self._reference = reference
        self._devices = devices
        self._order = order
        self._told = told
        self.sentence = ""
        self._version = 0
        self._state: drift.DriftState | None = None

    async def arrived(self, report: Confidences, _: Frame, sender: NodeInfo) -> Ack:
        """Takes a device's confidences.

        Raises:
            InputError: If it speaks for another device.
        """
        if sender.node != report.node:
            raise InputError(
                f"{sender.node} reports confidences in the name of {report.node}; each node reports its own."
            )
        if report.version < self._version:
            return Ack(False, "an older version")
        if report.version != self._version or self._state is None:
            reference = self._reference(report.version)
            if not reference:
                return Ack(False, "no held-out data to compare with")
            self.sentence = ""
            self._version, self._state = report.version, drift.drift_detector(reference, threshold=ALARM)
        for value in report.values:
            seen = drift.ConfidenceObserved(report.node, value, report.exit, report.time)
            self._state, alarms = drift.step(self._state, seen)
            for alarm in alarms:
                await self._alarm(alarm)
        return Ack()

    async def _alarm(self, alarm: drift.DriftDetected) -> None:
        self.sentence = (
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
