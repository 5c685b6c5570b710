"""A model on a device follows its link: what requests and probes show, and when it switches. Time is the test's own."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from edgewise.core.errors import Unreachable
from edgewise.core.ids import Digest, NodeId, RequestId, Revision, Tier
from edgewise.fleet.messages import BlobRef, InstallOrder, PlanInputs
from edgewise.fleet.node.probe import Crossing
from edgewise.fleet.serving import replanner as module
from edgewise.fleet.serving.fleet_planning import alternatives
from edgewise.fleet.serving.replanner import PROBE_BYTES, Replanner
from edgewise.inference.observation import Observation
from edgewise.inference.session import AnswerSource
from edgewise.planning.choose import best_plan, make_search
from edgewise.planning.plan import Plan
from edgewise.planning.policy import Policy
from tests.planning.scenario import FAST, WAN, evidence, graph, profiles

PRIVATE = Policy(raw_may_reach=Tier.DEVICE)
SEARCH = make_search(graph(), profiles(), (FAST, WAN), PRIVATE, evidence(), codecs=("none", "int8"))
PLANS = alternatives(SEARCH, best_plan(SEARCH))
INPUTS = PlanInputs(tuple(profiles().values()), (FAST, WAN), PRIVATE, evidence(), ("none", "int8"))
FIRST = 64


class Device:
    """A model with warm plans, a link whose rate the test sets, and a clock."""

    revisions = tuple(Revision(FIRST + index) for index in range(len(PLANS)))

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s, self.rate = 0.0, FAST.bytes_per_s
        self.active: list[int] = [FIRST]
        self.kept: list[tuple[int, ...]] = []
        self.said: list[tuple[int, str]] = []
        self.probed: list[int] = []
        self.is_away = False
        ref = BlobRef(Digest("g"), 1, NodeId("cloud"))
        order = InstallOrder("digits", 3, ref, PLANS, Revision(FIRST), inputs=INPUTS)
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now_s))
        monkeypatch.setattr(module, "PROBE_EVERY_S", 0.0)
        served: Any = self
        self.replanner = Replanner(
            served, order, INPUTS, graph(), self._probe, lambda revision, why: self.said.append((revision, why))
        )

    @property
    def plan(self) -> Plan:
        return PLANS[self.active[-1] - FIRST]

    def activate(self, revision: Revision, *, keep: Any) -> None:
        self.active.append(int(revision))
        self.kept.append(tuple(keep))

    def transfer_s(self, size_bytes: int) -> float:
        return FAST.rtt_s + (size_bytes + FAST.frame_overhead_bytes + FAST.answer_overhead_bytes) / self.rate

    async def _probe(self, size_bytes: int) -> Crossing:
        self.now_s += 1.0
        self.probed.append(size_bytes)
        if self.is_away:
            raise Unreachable("nobody is there.")
        return Crossing(FAST.rtt_s + (size_bytes + 300) / self.rate, size_bytes + 300)

    def serve(self, number: int, *, answered: bool = True) -> None:
        """Requests that crossed the link, one every tenth of a second."""
        for _ in range(number):
            self.now_s += 0.1
            took = self.transfer_s(2000)
            stages = (("device compute", 0.01), ("device→edge", took)) if answered else (("device compute", 0.01),)
            self.replanner.observed(seen(stages, (("device→edge", 2000),), latency_s=took))


def seen(
    stages: tuple[tuple[str, float], ...], payload_bytes: tuple[tuple[str, int], ...], latency_s: float = 0.0
) -> Observation:
    return Observation(
        RequestId("r"), Revision(FIRST), 3, Digest(""), AnswerSource.PLAN, 1, "", 0.0, latency_s, 1.0,
        stages=stages, payload_bytes=payload_bytes,
    )  # fmt: skip


def test_a_link_as_planned_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    assert device.plan.handovers
    device.serve(50)
    assert device.said == []


def test_over_a_link_that_became_slow_it_switches_and_the_others_stay_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    device.rate = 2e3
    device.serve(20)
    assert not device.plan.handovers
    (revision, why), *_ = device.said
    assert (revision, device.replanner.num_switches) == (device.active[1], len(device.said))
    assert why
    assert device.kept[0] == Device.revisions


def test_a_request_that_was_not_answered_says_that_the_link_took_at_least_its_life(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = Device(monkeypatch)
    device.rate = 2e3
    device.serve(20, answered=False)
    assert not device.plan.handovers


def test_a_request_that_sent_nothing_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    before = device.replanner._state
    device.replanner.observed(seen((("device compute", 9.0),), (), latency_s=9.0))
    assert device.replanner._state is before


def test_a_faster_link_than_can_be_measured_is_no_miracle(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    for _ in range(20):
        device.now_s += 0.1
        device.replanner.observed(seen((("device→edge", 0.0),), (("device→edge", 2000),)))
    assert device.said == []


def probed_for(device: Device, number: int) -> None:
    async def run() -> None:
        task = asyncio.create_task(device.replanner.keep_probing())
        for _ in range(10_000):
            if len(device.probed) >= number:
                break
            await asyncio.sleep(0)
        task.cancel()

    asyncio.run(run())


def test_a_link_that_the_plan_does_not_use_is_probed_and_its_recovery_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    device.rate = 2e3
    device.serve(20)
    assert not device.plan.handovers
    device.rate = FAST.bytes_per_s
    device.now_s += 10.0
    probed_for(device, 10)
    assert set(device.probed) == {PROBE_BYTES}
    assert device.plan == PLANS[0]


def test_a_rate_is_read_from_all_bytes_on_the_wire(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 64 kbit/s the frames of a small hand-over are half of what crosses: without them a link looked half as fast."""
    device = Device(monkeypatch)
    handover, end = PLANS[0].handovers[0], PLANS[0].exits[-1]
    table = SEARCH.table
    size = 200 + sum(table.header_bytes(handover.codec, t) for t in handover.tensors)
    size += table.answered_bytes(end.tensors) + FAST.frame_overhead_bytes + FAST.answer_overhead_bytes
    for _ in range(3):
        device.now_s += 0.1
        took = FAST.rtt_s + size / 8e3
        device.replanner.observed(
            msgspec.structs.replace(seen((("device→edge", took),), (("device→edge", 200),)), exit_index=end.index)
        )
    assert device.replanner._state.rates[0].value == pytest.approx(8e3)


def test_a_link_in_use_is_not_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    probed_for(device, 1)
    assert device.probed == []


def test_a_probe_without_an_answer_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    device.rate = 2e3
    device.serve(20)
    now, device.is_away = device.active[-1], True
    probed_for(device, 5)
    assert device.active[-1] == now
