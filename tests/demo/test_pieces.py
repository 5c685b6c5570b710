"""The demo's own small functions; the demo as a whole is `make demo`."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgewise.core.ids import NodeId, Tier
from edgewise.core.provenance import origins_of
from edgewise.demo.scenario import Demo, DemoSettings, fleet_file
from edgewise.demo.serve_requests import alternatives, edge_users
from edgewise.demo.streaming import Sent, otherwise, revisions_changed, take
from edgewise.fleet.messages import LedgerAnswer
from edgewise.ledger.entry import Direction, LedgerEntry, Purpose
from edgewise.models.graph.graph import Graph
from edgewise.planning.choose import best_plan, make_search
from edgewise.planning.plan import ENTRY
from edgewise.planning.policy import Policy
from edgewise.service.client import Reply
from edgewise.testing.spoiled_graph import BAD_NOISE, spoiled
from tests.inference.tiny import two_exit_graph
from tests.planning.scenario import FAST, WAN, evidence, graph, profiles

PRIVATE = Policy(raw_may_reach=Tier.DEVICE)


def demo(**fields: Any) -> Demo:
    nothing: Any = None
    made = Demo(DemoSettings.short(), nothing, Path(), nothing, nothing)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def weights(data: bytes) -> dict[str, np.ndarray[Any, Any]]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load_from_string(data).graph.initializer}


def test_a_spoiled_graph_has_the_same_shape_and_half_a_deviation_of_noise_on_every_weight():
    whole = two_exit_graph(width=64).whole
    clean, noisy = weights(whole), weights(spoiled(whole, 0))
    assert Graph.load(spoiled(whole, 0)).outputs == Graph.load(whole).outputs
    large = clean["c.w"]
    noise = (noisy["c.w"] - large).std() / large.std()
    # The deviation of n normal numbers is off by about 1/sqrt(2n) of itself; four of those are allowed.
    assert noise == pytest.approx(BAD_NOISE, rel=4 / np.sqrt(2 * large.size))
    assert all((noisy[name] != array).any() for name, array in clean.items() if array.size > 1)
    assert spoiled(whole, 0) == spoiled(whole, 0) != spoiled(whole, 1)


def test_the_plan_comes_first_among_the_alternatives_and_one_needs_no_link():
    search = make_search(graph(), profiles(), [FAST, WAN], PRIVATE, evidence())
    plan = best_plan(search)
    found = alternatives(demo(search=search, plan=plan))
    assert found[0] == plan
    assert len({p.name for p in found}) == len(found)
    assert any(p.tiers == (Tier.DEVICE,) for p in found)
    assert all(p.stages[0].site == ENTRY for p in found), "under this policy every plan computes on the device first"


def test_whether_a_device_uses_an_edge_is_told_by_its_plans_revision():
    search = make_search(graph(), profiles(), [FAST, WAN], PRIVATE, evidence())
    plans = alternatives(demo(search=search, plan=best_plan(search)))
    places = [plans.index(next(p for p in plans if (Tier.EDGE in p.tiers) is uses)) for uses in (True, False)]
    found = edge_users(plans, {"uses": 128 + places[0], "does not": 128 + places[1]})
    assert found == {"uses"}


def reply(revision: int | None) -> Reply:
    return Reply(parameters={} if revision is None else {"plan_revision": revision})


def sent(*answers: tuple[str, int | None]) -> Sent:
    return Sent("phase", [d for d, _ in answers], [reply(e) for _, e in answers], np.zeros(len(answers)))


def test_plan_switches_are_counted_per_device_over_phases_and_unanswered_requests_are_no_switch():
    first = sent(("a", 64), ("b", 64), ("a", None), ("a", 65), ("b", 64))  # a: 64 → 65
    second = sent(("b", 65), ("a", 65), ("a", 64))  # b: 64 → 65, a: 65 → 64
    assert revisions_changed([first]) == 1
    assert revisions_changed([first, second]) == 3


def test_what_was_not_answered_along_the_plan_is_counted_by_its_cause():
    late, plan = {"source": "device_exit", "cause": "edge-1: is on trial"}, {"source": "plan", "cause": ""}
    replies = [Reply(parameters=late), Reply(parameters=plan), Reply(parameters=late), Reply(error="gone")]
    assert otherwise(replies) == {"edge-1: is on trial": 2}


def test_taking_more_than_there_is_goes_round_and_the_inputs_are_raw():
    inputs, targets = take(np.arange(5.0), np.arange(5), 7, first=3)
    assert targets.tolist() == [3, 4, 0, 1, 2, 3, 4]
    assert inputs.tolist() == targets.tolist()
    assert origins_of(inputs) == {"raw"}


def entry(num_frames: int, size_bytes: int, direction: Direction = Direction.SENT) -> LedgerEntry:
    return LedgerEntry(
        node=NodeId("a"),
        kind="stage_request",
        purpose=Purpose.SERVING,
        direction=direction,
        run="version-1",
        num_frames=num_frames,
        size_bytes=size_bytes,
    )


def counted(*entries: LedgerEntry) -> dict[NodeId, LedgerAnswer]:
    return {NodeId("a"): LedgerAnswer(entries, 0.0, 0)}


def test_what_was_counted_between_two_readings_is_their_difference():
    before = counted(entry(10, 1000), entry(3, 30, Direction.RECEIVED))
    after = counted(entry(12, 1500), entry(3, 30, Direction.RECEIVED))
    assert [(e.num_frames, e.size_bytes) for e in demo().entries(before, after)] == [(2, 500), (0, 0)]


@pytest.mark.parametrize("before", [counted(entry(10, 1000)), {}], ids=["restarted", "new"])
def test_a_node_that_was_restarted_or_is_new_counts_from_its_start(before):
    found = demo().entries(before, counted(entry(4, 400)))
    assert [(e.num_frames, e.size_bytes) for e in found] == [(4, 400)]


def test_the_share_answered_rightly_counts_an_unanswered_request_as_wrong():
    made = sent(("a", 1), ("a", 1), ("b", None), ("b", 1))
    made.rows = [SimpleNamespace(right=right) for right in (True, True, None, False)]  # type: ignore[misc]
    assert made.accuracy == 0.5


def test_the_demos_fleet_has_a_device_that_only_infers_under_each_edge():
    file = fleet_file(DemoSettings.short(seed=3))
    assert (file.edges.count, file.devices.per_edge, file.devices.trainers_per_edge) == (2, 4, 3)
    assert file.raw_may_reach is Tier.DEVICE
    assert file.task_settings["seed"] == 3
