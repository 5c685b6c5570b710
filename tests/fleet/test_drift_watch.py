"""Confidences of devices, weighed together at the coordinator, each against its own exit's calibration."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import numpy as np
import pytest

from edgewise.core.errors import InputError
from edgewise.core.ids import Generation, NodeId, RequestId, Tier
from edgewise.fleet.messages import Capability, NodeInfo
from edgewise.fleet.serving.drift_watch import Confidences, DriftWatch
from edgewise.fleet.serving.example_collector import BATCH, ExampleCollector
from edgewise.inference.observation import Observation
from edgewise.inference.request_driver import Served
from edgewise.inference.session import AnswerSource
from edgewise.lifecycle.drift import DriftAnswer

NODE = NodeId("device-1")
RNG = np.random.default_rng(0)
REFERENCE = {
    index: [DriftAnswer(float(sure), int(RNG.integers(10))) for sure in RNG.uniform(*range_, 300)]
    for index, range_ in enumerate([(0.3, 0.6), (0.8, 1.0)])
}


def info(node: str = NODE) -> NodeInfo:
    return NodeInfo(NodeId(node), Tier.DEVICE, Generation(1), "", NodeId("edge-1"), Capability(1, 1, 1.0, 1.0, 1.0, ""))


def watched(*reports: Confidences, sender: str = NODE, sentences: list[str] | None = None) -> list[dict[str, Any]]:
    """The alarms that reports give; what the watch says after each report is added to `sentences`."""
    alarms: list[dict[str, Any]] = []

    async def order(*_: Any) -> None:
        return None

    async def run() -> None:
        force = [1]
        watch = DriftWatch(
            lambda: force[-1],
            lambda version: version == 2,
            lambda version: REFERENCE,
            lambda: (NODE,),
            order,
            lambda _, said: alarms.append(said),
        )
        for report in reports:
            force.append(max(report.version, 1) if report.version < 10 else force[-1])
            await watch.arrived(report, None, info(sender))  # type: ignore[arg-type]
            if sentences is not None:
                sentences.append(watch.sentence)

    asyncio.run(run())
    return alarms


def told(low: float, high: float, exit_index: int, classes: int = 10) -> Confidences:
    rng = np.random.default_rng(1)
    values, predicted = rng.uniform(low, high, 100), rng.integers(classes, size=100)
    return Confidences(NODE, 1, tuple(values.tolist()), 1.0, exit_index, tuple(predicted.tolist()))


@pytest.mark.parametrize("exit_index", [0, 1])
def test_an_exit_is_compared_with_its_own_calibration(exit_index: int) -> None:
    usual = (0.3, 0.6) if exit_index == 0 else (0.8, 1.0)
    assert watched(told(*usual, exit_index)) == []
    assert len(watched(told(0.0, 0.2, exit_index))) == 1


def test_a_plan_that_asks_the_last_exit_only_is_watched_too() -> None:
    assert len(watched(told(0.3, 0.6, 1))) == 1  # usual for exit 0, far below what exit 1 gives


def test_another_mix_of_classes_is_noticed_where_confidences_are_as_ever() -> None:
    assert len(watched(told(0.3, 0.6, 0, classes=3))) == 1


def test_a_device_that_tells_no_classes_is_watched_by_its_confidences() -> None:
    usual, unsure = (msgspec.structs.replace(told(*range_, 0), predicted=()) for range_ in ((0.3, 0.6), (0.0, 0.2)))
    assert watched(usual) == []
    assert len(watched(usual, unsure)) == 1
    assert len(watched(under(2, usual), under(2, unsure))) == 1  # a version that is known by its first inputs, too


def test_classes_that_do_not_go_with_the_confidences_are_refused() -> None:
    with pytest.raises(InputError, match="reports 100 confidences and 1 classes, needed is a class for each, or none"):
        watched(msgspec.structs.replace(told(0.3, 0.6, 0), predicted=(3,)))


def test_what_was_found_is_said_until_another_version_serves() -> None:
    said: list[str] = []
    later = Confidences(NODE, 2, (0.5,), 2.0)
    watched(told(0.3, 0.6, 0), told(0.0, 0.2, 0), later, sentences=said)
    assert (said[0], said[2]) == ("", "")
    assert "requests before the alarm the inputs of version 1 did not look like those it was calibrated on" in said[1]


def under(version: int, report: Confidences) -> Confidences:
    return msgspec.structs.replace(report, version=version)


def test_a_version_that_answers_a_drift_is_known_by_what_it_gives_on_the_new_inputs() -> None:
    drifted, answer = told(0.0, 0.2, 0), under(2, told(0.1, 0.3, 0))
    assert len(watched(drifted, answer, answer, answer)) == 1  # far below calibration, and as sure as it ever was
    assert len(watched(drifted, answer, answer, under(2, told(0.0, 0.02, 0)))) == 2  # another change is a drift
    assert watched(answer, answer) == []  # also after a restart, when nobody remembers the drift


def test_an_exit_that_is_seen_later_is_watched_before_it_is_weighed() -> None:
    first, later = under(2, told(0.1, 0.3, 0)), under(2, told(0.2, 0.4, 1))
    assert watched(first, later, later) == []
    assert len(watched(first, later, later, under(2, told(0.0, 0.02, 1)))) == 1


def test_after_a_rollback_the_former_version_is_compared_with_its_calibration() -> None:
    drifted, answer = told(0.0, 0.2, 0), under(2, told(0.1, 0.3, 0))
    assert len(watched(drifted, answer, drifted)) == 2


def test_what_is_told_of_a_version_that_is_not_in_force_is_left_out() -> None:
    assert watched(under(10, told(0.0, 0.2, 0))) == []


def test_a_device_speaks_for_itself_only() -> None:
    with pytest.raises(InputError, match="device-2 reports confidences in the name of device-1"):
        watched(told(0.0, 0.2, 0), sender="device-2")


def served(version: int, exit_index: int) -> Served:
    seen = Observation(
        RequestId("r"), Generation(1), version, "", AnswerSource.PLAN, 1, "", 0.0, 0.0, 1.0, confidence=0.5,  # type: ignore[arg-type]
        confidence_exit=exit_index, predicted=3,
    )  # fmt: skip
    return Served({"end": np.zeros((1, 10), np.float32)}, seen)


def test_what_is_told_at_once_is_of_one_version_and_one_exit() -> None:
    good, inputs = ExampleCollector(NODE, "tiny", 1_000_000), {"x": np.zeros((1, 1, 8, 8), np.float32)}
    for under in [(1, 0)] * (BATCH - 1) + [(2, 0)] * (BATCH - 1) + [(2, 1)] * (BATCH - 1):
        assert good.served(inputs, served(*under)) is None
    report = good.served(inputs, served(2, 1))
    assert report is not None
    assert (report.model, report.version, report.exit, len(report.values)) == ("tiny", 2, 1, BATCH)
    assert (report.version, report.exit, report.values, report.predicted) == (2, 1, (0.5,) * BATCH, (3,) * BATCH)
