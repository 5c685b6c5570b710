"""Ways measured beside each other, classes of a declared speed, evidence of the host, and the table of many demos."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np
import pytest

from benchmarks import demos
from benchmarks.demos import DemoRow, bars_of, concluded
from edgewise.core.errors import InputError, RemoteError
from edgewise.core.ids import Tier
from edgewise.core.units import parse_speed
from edgewise.demo import ways as measuring
from edgewise.demo.candidates import did_not_wait, merged
from edgewise.demo.comparing import others_to_measure
from edgewise.demo.host_watch import HostSample, HostWatch
from edgewise.demo.planning import ALONE_MARGIN, QUESTIONS, ask, deadline_of
from edgewise.demo.scenario import DemoSettings, fleet_file
from edgewise.demo.ways import Way, ask_in_turn, gain_of, way_rows
from edgewise.planning.choose import make_search
from edgewise.planning.plan import Plan
from edgewise.planning.policy import Policy
from edgewise.planning.search import Search
from edgewise.service.client import Reply
from edgewise.service.report import PlanSection
from edgewise.simulation.emulated.class_speeds import MachineSpeed, speed_lines, with_speeds
from edgewise.simulation.emulated.fleet_file import DeviceClass, FleetFile
from tests.planning.scenario import FAST, WAN, evidence, graph, profiles
from tests.service.made_up import made_up_report

PRIVATE = Policy(raw_may_reach=Tier.DEVICE)


def search(speed: float = 1.0, variant: str = "float32") -> Search:
    tiers = profiles(30.0 / speed, 2.0 / speed, 1.0 / speed)
    return make_search(graph(), tiers, [FAST, WAN], PRIVATE, evidence(), codecs=("none", "int8"), variant=variant)


class Endpoint:
    """Stands for a device: it answers class 0, model `slow` ten times later, and never input 3 of model `lossy`."""

    asked: ClassVar[list[tuple[int, str, int]]] = []

    def __init__(self, host: str, port: int) -> None:
        self.port = port

    async def __aenter__(self) -> Endpoint:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def infer(self, model: str, inputs: dict[str, Any], *, request_id: str = "") -> Reply:
        (image,) = inputs.values()
        Endpoint.asked.append((self.port, model, int(image[0])))
        if model == "lossy" and image[0] == 3:
            raise RemoteError("gone")
        await asyncio.sleep(0.05 if model == "slow" else 0.005)
        return Reply({"end": np.eye(10, dtype=np.float32)[:1]})


def plan_of(name: str) -> Plan:
    return msgspec.structs.replace(ask(search(), [])[0].plan, name=name)


def test_all_ways_answer_every_input_at_one_device_and_a_lost_answer_is_no_pair(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measuring, "InferenceClient", Endpoint)
    Endpoint.asked = []
    inputs, targets = np.arange(12.0, dtype=np.float32), np.array([0, 1] * 6)
    ways = [Way("quick", plan_of("quick")), Way("slow", plan_of("slow")), Way("lossy", plan_of("lossy"))]
    asyncio.run(ask_in_turn([1, 2], ways, inputs, targets, gap_s=0.002))
    counted = Endpoint.asked[6:]  # the first block warms up
    assert sorted({(model, i) for _, model, i in counted}) == sorted((w.model, i) for w in ways for i in range(12))
    assert all(port == 1 + i % 2 for port, _, i in counted)
    firsts = [model for _, model, i in counted if i % 2 == 0][::3]
    assert set(firsts) == {"quick", "slow", "lossy"}, "none always comes first"
    assert ways[0].right == [True, False] * 6
    assert np.flatnonzero(np.isnan(ways[2].latencies_s)).tolist() == [3]
    gain, fewer = gain_of(ways[0], ways[1]), gain_of(ways[0], ways[2])
    assert gain is not None
    assert gain.mean.is_certain
    assert fewer is not None
    assert fewer.num_pairs == 11
    assert gain_of(Way("a", ways[0].plan, [1.0] * 7), Way("b", ways[0].plan, [1.0] * 7)) is None
    rows = way_rows(ways, ways[0].plan, PRIVATE, lambda _: search().table)
    assert rows[0].gain is None
    assert rows[1].gain is not None
    assert rows[1].gain[2] < 0, "ten times slower: its gain over the recommended way is a certain loss"
    assert [(row.answered, row.requests) for row in rows] == [(12, 12), (12, 12), (11, 12)]
    assert rows[0].mean_ms == pytest.approx(1e3 * np.mean(ways[0].latencies_s))


def test_a_plan_that_sends_raw_inputs_is_not_allowed_to_one_who_keeps_them() -> None:
    private, free, _ = ask(search(), [])
    raw = next(p for p in (free.plan, *free.others) if any(h.carries_raw for h in p.handovers))
    rows = way_rows([Way("a", private.plan), Way("b", raw)], private.plan, PRIVATE, lambda _: search().table)
    assert [(row.allowed, row.recommended) for row in rows] == [(True, True), (False, False)]
    assert all(row.mean_ms is None and row.predicted_mean_ms for row in rows)


def test_the_three_questions_are_asked_of_every_variant_and_the_slow_link_is_priced() -> None:
    answers = ask(search(), [search(2.0, "int8")])
    assert len(answers) == len(QUESTIONS)
    assert answers[0].collaborate
    assert (answers[2].plan.variant, answers[2].plan.tiers) == ("int8", (Tier.DEVICE,))
    first = others_to_measure(answers[0])[0]
    assert not first.collaborates, "beside a shared plan the best on one node is measured first"
    assert others_to_measure(answers[2])[0].collaborates


def test_a_device_can_still_answer_alone_by_the_deadline_after_it_waited_for_the_others() -> None:
    shared = ask(search(), [])[0].plan
    slow = search(0.02)  # alone it takes a second and a half
    alone_s = 30e-3 / 0.02
    assert deadline_of(slow, shared) >= shared.predicted.latency_p95_s + ALONE_MARGIN * alone_s
    device = ask(search(100.0), [])[0].plan
    assert not device.collaborates
    assert deadline_of(search(100.0), device) == 0.1, "below that a deadline would measure the operating system"


@pytest.mark.parametrize("machine", [MachineSpeed(1e-4, 1e7), MachineSpeed(4e-4, 1e7)])
def test_a_class_of_declared_speed_is_as_fast_on_every_machine(machine: MachineSpeed) -> None:
    file = with_speeds(fleet_file(DemoSettings()), machine)
    whole_s = {"device": file.devices.dilation * machine.seconds, "edge": file.edges.dilation * machine.seconds}
    assert whole_s == pytest.approx({"device": 1e7 / 60e6, "edge": 1e7 / 10e9})
    assert file.cloud.dilation == 1.0
    assert speed_lines(file, machine)[0].startswith("device: 60 MFLOP/s, declared; the whole model takes 167 ms")


def test_a_class_is_not_sped_up_and_one_without_speed_keeps_its_dilation() -> None:
    machine = MachineSpeed(1e-3, 1e7)
    file = with_speeds(FleetFile(devices=DeviceClass(speed="1000 GFLOP/s")), machine)
    assert (file.devices.dilation, file.edges.dilation) == (1.0, FleetFile().edges.dilation)
    assert "as fast as this machine can" in speed_lines(file, machine)[0]
    for text in ("fast", "0 GFLOP/s", "3 GB/s"):
        with pytest.raises(InputError, match="is not a speed"):
            parse_speed(text)


def test_several_links_of_a_class_stand_for_one_by_their_medians() -> None:
    change = msgspec.structs.replace
    links = [
        change(FAST, rtt_s=r, rtt_p95_s=2 * r, bytes_per_s=b) for r, b in ((0.005, 1e6), (0.009, 3e6), (0.006, 2e6))
    ]
    found = merged(links)
    assert (found.rtt_s, found.rtt_p95_s, found.bytes_per_s) == (0.006, 0.012, 2e6)


def test_what_a_request_takes_beside_computing_is_measured_where_none_waits_for_another() -> None:
    """A device that answers more slowly than requests come let 80 ms of waiting count as handling, in every plan."""
    quick, slow = (Reply(scheduled_s=t, latency_s=0.1) for t in (0.0, 0.03)), [0.3, 0.36, 0.42, 0.48]
    replies = [*quick]
    for turn in range(1, 5):
        due = 0.24 * turn
        replies += [Reply(scheduled_s=due, latency_s=0.1), Reply(scheduled_s=due + 0.03, latency_s=slow[turn - 1])]
    kept = did_not_wait(replies, 2)
    assert [r.latency_s for r in kept] == [0.1, 0.1, 0.1]
    assert did_not_wait(replies[:3], 2) == []


def test_a_late_request_is_explained_by_what_was_seen_of_the_machine() -> None:
    watch = HostWatch()
    assert watch.between(0.0, 1.0) == "this client itself did not run meanwhile"
    watch.samples = [HostSample(0.1, 0.001, 10, 100), HostSample(0.5, 0.041, 60, 200), HostSample(9.0, 0.9, 99, 900)]
    assert "woke up to 41 ms late meanwhile, the host took 50% of the processors" in watch.between(0.0, 1.0)

    async def blocked() -> HostWatch:
        async with HostWatch() as seen:
            await asyncio.sleep(0.05)
            time.sleep(0.2)  # noqa: ASYNC251 -- as if the host had taken this process away
            await asyncio.sleep(0.05)
        return seen

    assert max(sample.late_s for sample in asyncio.run(blocked()).samples) > 0.1


def test_the_table_of_demos_counts_what_is_promised() -> None:
    report, change = made_up_report(), msgspec.structs.replace
    good = change(
        report,
        plan=change(
            report.plan, mean_error_fraction=0.1, p50_error_fraction=0.1, p95_error_fraction=0.2, share_error_points=4.0,
            gain_mean=(0.3, 0.2, 0.4),
        ),
        answers=tuple(change(a, is_measured_best=True) for a in report.answers),
    )  # fmt: skip
    rows = [concluded(good, seed, False, 1.0) for seed in range(10)]
    assert all(bar.holds for bar in bars_of(rows))
    shares = change(good, plan=change(good.plan, share_error_points=6.0))
    late = change(good, faults=change(good.faults, answered_by_deadline=119))
    small = change(good, plan=PlanSection())
    one, two = concluded(shares, 0, True, 1.0), concluded(small, 1, True, 1.0)
    assert [bar.holds for bar in bars_of([one, *rows[1:]])] == [True, True, True, True], "nine of ten are enough"
    assert [bar.holds for bar in bars_of([one, two, *rows[2:]])] == [False, True, True, True]
    assert [bar.holds for bar in bars_of([concluded(late, 0, True, 1.0), *rows[1:]])] == [True, True, True, False]


def test_many_demos_go_on_after_those_that_are_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[int] = []

    def run_once(seed: int, busy: bool, short: bool, folder: Path) -> DemoRow:
        ran.append(seed)
        failed = "the machine was switched off" if len(ran) == 2 else ""
        row = concluded(made_up_report(), seed, busy, 1.0)
        return msgspec.structs.replace(row, is_short=short, failed=failed)

    monkeypatch.setattr(demos, "run_once", run_once)
    monkeypatch.setattr("sys.argv", ["demos", "--short", "--keep", str(tmp_path)])
    for _ in range(2):
        with pytest.raises(SystemExit):
            demos.main()
    assert ran == [0, 1, 1]
    said = capsys.readouterr().out
    assert "demo 1 of 2, seed 0, a calm core: finished before" in said
    assert "failed: the machine was switched off" in said
    assert "near enough of 1 with a busy core: mean " in said
