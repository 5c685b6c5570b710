"""Drift of the fleet's inputs, watched at the coordinator over all devices together: one watch, sooner and surer than many.

Devices tell how sure answers were, their classes, four numbers of how each input looks, and of a label that came its class and
whether the answer was wrong; inputs stay where they are. When a drift begins each device is told how many of its last
examples are of the new kind, so that its buffer begins anew there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from math import ceil
from typing import Any

import msgspec

from edgewise.core.errors import InputError
from edgewise.core.ids import NodeId
from edgewise.core.seeds import Seeds
from edgewise.fleet.messages import Ack, DriftStatus, Message, NodeInfo
from edgewise.fleet.serving.drift_reference import Exits
from edgewise.lifecycle import change, drift, harm
from edgewise.lifecycle.change import DriftAnswer, Seen
from edgewise.lifecycle.drift import DriftReference, DriftState
from edgewise.lifecycle.harm import LabelArrived
from edgewise.transport.frame import Frame

NUM_WATCHED = 60
"""Requests, and labels, that a version which answers a drift is known by: its own new ones."""
PATIENCE = 400
"""Requests of the fleet after which a label is not waited for any more."""
MAX_CLASSES = 65_536
"""A label above is none; counts are kept by class."""
SLACK = 2
"""Examples a device keeps beyond its share of those since the change."""


class Confidences(Message, frozen=True):
    """What a device's last requests looked like and how sure it was, whatever the plan: at the exit each request reaches.

    Attributes:
        node: Who answered.
        version: Under which version.
        values: Top-1 softmax of one exit, in order.
        time: Of the last one, seconds on the device's clock.
        exit: Index of that exit in the model: the first of the plan that answered.
        predicted: The class with the highest score there, one for each value; () from a device that does not tell.
        model: Of which model.
        revision: Of the plan.
        numbers: The device's number of each request, ascending; () if their labels are not told.
        ends: Of each request that went on: the exit where it ended, confidence and class there; None of the others.
        covariates: Of each request's input; () from a device that does not tell.
    """

    node: NodeId
    version: int
    values: tuple[float, ...]
    time: float
    exit: int = 0
    predicted: tuple[int, ...] = ()
    model: str = ""
    revision: int = 0
    numbers: tuple[int, ...] = ()
    ends: tuple[tuple[int, float, int] | None, ...] = ()
    covariates: tuple[tuple[float, ...], ...] = ()

    @property
    def seen(self) -> list[Seen]:
        """The requests, in order."""
        num = len(self.values)
        known: Sequence[int | None] = self.predicted or (None,) * num
        rows = zip(self.values, known, self.ends or (None,) * num, self.covariates or ((),) * num, strict=True)
        found = []
        for value, predicted, end, looks in rows:
            answers = {self.exit: DriftAnswer(value, predicted)}
            if end is not None:
                answers[end[0]] = DriftAnswer(*end[1:])
            found.append(Seen(answers, looks))
        return found


class Judged(Message, frozen=True):
    """What true labels say of answers.

    Attributes:
        node: Who answered.
        version: Under which version.
        model: Of which model.
        revision: Of the plan.
        numbers: The device's number of each request.
        labels: The true class of each.
        wrong: Whether another was answered.
        time: Seconds on the device's clock.
    """

    node: NodeId
    version: int
    model: str
    revision: int
    numbers: tuple[int, ...]
    labels: tuple[int, ...]
    wrong: tuple[bool, ...]
    time: float


class CollectOrder(Message, frozen=True):
    """The inputs have changed: keep hard examples among the last so many requests of a model only."""

    last: int
    model: str = ""


class DriftWatch:
    """The coordinator's monitors of the version in force, one pair for each way of leaving that its plans have.

    A version is compared with held-out data, except one that was trained because inputs had changed: what it answers
    to the first inputs it sees is what it will answer, and only another change is a drift.

    Args:
        in_force: The version in force; 0 if none.
        answers_drift: Whether a version was trained because inputs had changed.
        reference: What a version is known by along a plan's exits; empty if there is no held-out data.
        exits: Of the plan of a revision; () of an unknown one.
        devices: Names of the devices that are there.
        order: Sends an order to a device.
        told: Told `drift_detected`.
    """

    def __init__(
        self,
        in_force: Callable[[], int],
        answers_drift: Callable[[int], bool],
        reference: Callable[[int, Exits], DriftReference],
        exits: Callable[[int], Exits],
        devices: Callable[[], Sequence[NodeId]],
        order: Callable[[NodeId, CollectOrder], Awaitable[None]],
        told: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self._in_force = in_force
        self._answers_drift = answers_drift
        self._reference, self._exits = reference, exits
        self._devices = devices
        self._order = order
        self._told = told
        self._version = 0
        self._states: dict[Exits, DriftState] = {}
        self._watched: dict[Exits, DriftReference] = {}
        self._open: dict[tuple[NodeId, int], tuple[Exits, float, int]] = {}
        self._num_requests = 0
        self._early: set[tuple[NodeId, int]] = set()
        self._last: dict[NodeId, int] = {}
        self._rng = Seeds(0).at("drift").rng()

    @property
    def status(self) -> DriftStatus | None:
        """What is known of the version in force; None before its first request, or without anything to compare with."""
        if self._version != self._in_force() or not self._states:
            return None
        findings = [state.finding for state in self._states.values()]
        most = max(findings, key=lambda f: (f.calls_for_training, bool(f.sentence), f.num_requests))
        return DriftStatus(version=self._version, **msgspec.structs.asdict(most))

    @property
    def sentence(self) -> str:
        """What was found of the version in force; "" while its inputs look as they should."""
        status = self.status
        return "" if status is None else status.sentence

    async def arrived(self, report: Confidences, _: Frame, sender: NodeInfo) -> Ack:
        """Takes what a device's last requests looked like.

        Raises:
            InputError: If it speaks for another device, or does not name a class for each confidence.
        """
        self._check(report, sender)
        if len(report.predicted) not in (0, len(report.values)):
            raise InputError(
                f"{report.node} reports {len(report.values)} confidences and {len(report.predicted)} classes, needed is a "
                "class for each, or none."
            )
        for name, rows in (("numbers", report.numbers), ("ends", report.ends), ("covariates", report.covariates)):
            if len(rows) not in (0, len(report.values)):
                raise InputError(f"{report.node} reports {len(report.values)} confidences and {len(rows)} {name}.")
        exits = self._begun(report.version, self._exits(report.revision) or ((report.exit, 0.0),))
        if exits is None:
            return Ack(False, f"version {report.version} is not in force")
        for index, seen in enumerate(report.seen):
            self._answered(exits, seen, report.time)
            if report.numbers:
                self._wait_for(report.node, report.numbers[index], exits, report.values[index])
            await self._act(exits)
        state = self._states[exits]
        is_known = state.change is not None or exits in self._watched
        return Ack() if is_known else Ack(False, "no held-out data to compare with")

    async def judged(self, report: Judged, _: Frame, sender: NodeInfo) -> Ack:
        """Takes what labels say of answers; one that came after it was given up is left out.

        Raises:
            InputError: If it speaks for another device, or the rows are not of one length.
        """
        self._check(report, sender)
        if not len(report.numbers) == len(report.labels) == len(report.wrong) or not all(
            0 <= label < MAX_CLASSES for label in report.labels
        ):
            raise InputError(
                f"{report.node} reports labels that are no classes, or not one for each request. Needed is a class from 0 to "
                f"{MAX_CLASSES - 1} and right or wrong for each of {len(report.numbers)} requests."
            )
        exits = self._begun(report.version, self._exits(report.revision) or ((0, 0.0),))
        if exits is None:
            return Ack(False, f"version {report.version} is not in force")
        for number, label, is_wrong in zip(report.numbers, report.labels, report.wrong, strict=True):
            request = self._num_requests
            if number > self._last.get(report.node, -1):
                if len(self._early) >= PATIENCE or (report.node, number) in self._early:
                    continue
                self._early.add((report.node, number))
            elif (waited := self._open.pop((report.node, number), None)) is None:
                continue
            else:
                request = waited[2]
            self._judged(exits, LabelArrived(label, is_wrong, report.time, request))
            await self._act(exits)
        return Ack()

    def _check(self, report: Confidences | Judged, sender: NodeInfo) -> None:
        if sender.node != report.node:
            what = "confidences" if isinstance(report, Confidences) else "labels"
            raise InputError(f"{sender.node} reports {what} in the name of {report.node}; each node reports its own.")

    def _begun(self, version: int, exits: Exits) -> Exits | None:
        if version != self._in_force():
            return None
        if version != self._version:
            self._version = version
            for known in (self._states, self._watched, self._open, self._early):
                known.clear()
        if exits not in self._states:
            reference = DriftReference((), ())
            if self._answers_drift(version):
                self._watched[exits] = DriftReference([], [])
            else:
                reference = self._reference(version, exits)
            self._states[exits] = drift.drift_state(reference, rng=self._rng)
        return exits

    def _answered(self, exits: Exits, seen: Seen, time: float) -> None:
        state, watched = self._states[exits], self._watched.get(exits)
        if watched is None or state.change is not None:
            self._states[exits] = drift.answered(state, seen, time, self._rng)
            return
        rows = (*watched.seen, seen)
        self._watched[exits] = watched._replace(seen=rows)
        if len(rows) >= NUM_WATCHED:
            begun = change.change_monitor(rows, rng=self._rng)
            self._states[exits] = replace(state, change=begun, reference=rows)

    def _judged(self, exits: Exits, event: LabelArrived) -> None:
        state, watched = self._states[exits], self._watched.get(exits)
        if watched is None or state.harm is not None:
            self._states[exits] = drift.judged(state, event, self._rng)
            return
        rows = (*watched.judged, (event.label, event.is_wrong))
        self._watched[exits] = watched._replace(judged=rows)
        if len(rows) >= NUM_WATCHED:
            self._states[exits] = replace(state, harm=harm.harm_monitor(rows))

    def _wait_for(self, node: NodeId, number: int, exits: Exits, confidence: float) -> None:
        self._last[node] = max(number, self._last.get(node, -1))
        self._num_requests += 1
        if (node, number) in self._early:
            self._early.discard((node, number))
            return
        self._open[node, number] = exits, confidence, self._num_requests
        if len(self._open) > PATIENCE:
            of, sure, _ = self._open.pop(next(iter(self._open)))
            self._states[of] = drift.settled(self._states[of], sure)

    async def _act(self, exits: Exits) -> None:
        """Tells what is new, and where a drift begins lets each device collect from there."""
        state = self._states[exits]
        if not state.news:
            return
        self._states[exits] = replace(state, news=())
        for alarm in state.news:
            is_harm = isinstance(alarm, harm.HarmDetected)
            self._told(
                "drift_detected",
                {
                    "version": self._version,
                    "monitor": "harm" if is_harm else "change",
                    "what": "" if state.shift is None else str(state.shift.kind),
                    "statistic": alarm.statistic,
                    "threshold": alarm.threshold,
                    "num_since": state.num_since,
                    "text": self.sentence,
                },
            )
        if state.has_begun:
            self._states[exits] = replace(self._states[exits], has_begun=False)
            devices = self._devices()
            share = ceil(state.num_since / max(len(devices), 1)) + SLACK
            for device in devices:
                await self._order(device, CollectOrder(share))
