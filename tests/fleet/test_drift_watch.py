"""Confidences of devices, weighed together at the coordinator, each against its own exit's calibration."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import numpy as np
import pytest

from edgewise.core.errors import InputError
from edgewise.core.ids import Generation, NodeId, RequestId, Tier
from edgewise.core.provenance import RAW, origins_of, traced
from edgewise.fleet.messages import Capability, NodeInfo
from edgewise.fleet.serving.drift_watch import PATIENCE, CollectOrder, Confidences, DriftWatch, Judged
from edgewise.fleet.serving.example_collector import BATCH, ExampleCollector
from edgewise.inference.observation import Observation
from edgewise.inference.request_driver import Served
from edgewise.inference.session import AnswerSource
from edgewise.lifecycle.change import DriftAnswer, Seen
from edgewise.lifecycle.drift import DriftReference

NODE = NodeId("device-1")
RNG = np.random.default_rng(0)
USUAL = [(0.3, 0.6), (0.8, 1.0)]
"""Confidences that the held-out data have at each exit."""


def reference(_: int, exits: Any) -> DriftReference:
    seen = [
        Seen({index: DriftAnswer(float(RNG.uniform(*USUAL[index])), int(RNG.integers(10))) for index, _ in exits})
        for _ in range(300)
    ]
    return DriftReference(seen, [(index % 10, index % 20 == 0) for index in range(400)])


def info(node: str = NODE) -> NodeInfo:
    return NodeInfo(NodeId(node), Tier.DEVICE, Generation(1), "", NodeId("edge-1"), Capability(1, 1, 1.0, 1.0, 1.0, ""))


def watched(*reports: Confidences | Judged, sender: str = NODE, seen: list[Any] | None = None) -> list[dict[str, Any]]:
    """The alarms that reports give; the status after each report is added to `seen`, and each order to collect."""
    alarms: list[dict[str, Any]] = []

    async def order(_: NodeId, wanted: CollectOrder) -> None:
        if seen is not None:
            seen.append(wanted.last)

    async def run() -> None:
        force = [1]
        watch = DriftWatch(
            lambda: force[-1],
            lambda version: version == 2,
            reference,
            lambda revision: ((0, 0.5), (1, 0.0)) if revision else (),
            lambda: (NODE,),
            order,
            lambda _, said: alarms.append(said),
        )
        for report in reports:
            force.append(max(report.version, 1) if report.version < 10 else force[-1])
            take: Any = watch.judged if isinstance(report, Judged) else watch.arrived
            await take(report, None, info(sender))
            if seen is not None:
                seen.append(watch.status)

    asyncio.run(run())
    return alarms


def told(low: float, high: float, exit_index: int, classes: int = 10, seed: int = 1) -> Confidences:
    rng = np.random.default_rng(seed)
    values, predicted = rng.uniform(low, high, 104), rng.integers(classes, size=104)
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
    with pytest.raises(InputError, match="reports 104 confidences and 1 classes, needed is a class for each, or none"):
        watched(msgspec.structs.replace(told(0.3, 0.6, 0), predicted=(3,)))


def test_what_was_found_is_said_until_another_version_serves() -> None:
    seen: list[Any] = []
    later = Confidences(NODE, 2, (0.5,), 2.0)
    alarms = watched(told(0.3, 0.6, 0), told(0.0, 0.2, 0), later, seen=seen)
    usual, collected, found, other = seen
    assert (usual.sentence, other.sentence, usual.waits_for) == ("", "", found.waits_for)
    assert "requests before the alarm the inputs did not look like those of the held-out data" in found.sentence
    assert (alarms[0]["monitor"], alarms[0]["what"], alarms[0]["text"]) == ("change", "answers", found.sentence)
    assert collected >= alarms[0]["num_since"]


def judged(numbers: range, risk: float, **other: Any) -> Judged:
    rng = np.random.default_rng(2)
    labels, wrong = rng.integers(10, size=len(numbers)).tolist(), (rng.random(len(numbers)) < risk).tolist()
    return Judged(NODE, 1, "", 0, tuple(numbers), tuple(labels), tuple(wrong), 1.0, **other)


def numbered(first: int, number: int = 104) -> Confidences:
    report = told(0.3, 0.6, 0, seed=first)
    return msgspec.structs.replace(
        report,
        values=report.values[:number],
        predicted=report.predicted[:number],
        numbers=tuple(range(first, first + number)),
    )


def test_labels_prove_harm_before_and_after_their_requests_are_told() -> None:
    seen: list[Any] = []
    alarms = watched(numbered(0), judged(range(208), 0.5), numbered(104), seen=seen)
    assert [alarm["monitor"] for alarm in alarms] == ["harm"]
    assert (seen[-1].calls_for_training, seen[-1].kind, seen[-1].num_labels) == (True, "concept", 208)
    assert watched(numbered(0), judged(range(104), 0.04)) == []


def test_a_label_that_is_not_waited_for_any_more_or_comes_twice_is_left_out() -> None:
    seen: list[Any] = []
    requests = [numbered(104 * index) for index in range(6)]
    watched(*requests, judged(range(624), 0.05), judged(range(624), 0.05), seen=seen)
    assert seen[-2].num_labels == seen[-1].num_labels == PATIENCE


def test_the_end_of_a_request_that_went_on_is_looked_at_too() -> None:
    first = msgspec.structs.replace(told(0.3, 0.6, 0), revision=7)
    ends = [tuple((1, sure, index % 10) for index in range(104)) for sure in (0.9, 0.1)]
    usual, unlike = (msgspec.structs.replace(first, ends=rows) for rows in ends)
    assert len(watched(first, unlike)) == 1
    assert len(watched(usual, usual)) == 1  # always the same confidence is not what held-out data have


def test_rows_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(InputError, match="reports 104 confidences and 1 numbers"):
        watched(msgspec.structs.replace(told(0.3, 0.6, 0), numbers=(1,)))
    with pytest.raises(InputError, match="labels that are no classes, or not one for each request"):
        watched(msgspec.structs.replace(judged(range(3), 0.0), labels=(1, -1, 2)))
    with pytest.raises(InputError, match="Needed is a class from 0 to 65535 and right or wrong for each of 3 requests"):
        watched(msgspec.structs.replace(judged(range(3), 0.0), labels=(1, 2**31, 2)))
    with pytest.raises(InputError, match="device-2 reports labels in the name of device-1"):
        watched(judged(range(3), 0.0), sender="device-2")


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


def test_what_was_trained_on_judges_no_version() -> None:
    good, inputs = ExampleCollector(NODE, "tiny", 1_000_000), {"x": np.zeros((1, 1, 8, 8), np.float32)}

    def labelled(name: str) -> None:
        one = served(1, 0)
        good.served(inputs, Served(one.outputs, msgspec.structs.replace(one.observation, request=RequestId(name))))
        good.label({name: 3})

    labelled("before")
    judges = good.judges()
    assert judges is not None
    assert len(judges.targets) == 1
    assert good.labelled() is not None  # a run trains on it
    assert good.judges() is None
    labelled("after")
    judges, trained = good.judges(), good.labelled()
    assert judges is not None
    assert trained is not None
    assert (len(judges.targets), len(trained.targets)) == (1, 2)


def test_an_example_of_a_batch_is_kept_without_the_batch_and_of_an_empty_one_none() -> None:
    good = ExampleCollector(NODE, "tiny", 1_000_000)
    answered = served(1, 0)
    assert good.served({"x": np.zeros((0, 1, 8, 8), np.float32)}, answered) is None
    assert good.num_hard == 0
    batch = traced(np.ones((1000, 1, 8, 8), np.float32), RAW)
    good.served({"x": batch}, answered)
    (kept,) = good._buffer.examples
    assert not np.shares_memory(kept.input, batch)
    assert RAW in origins_of(kept.input)
