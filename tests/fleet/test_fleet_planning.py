"""Whom to measure, which version, and what a deployment is made of."""

from __future__ import annotations

import msgspec
import pytest

from edgewise.cli.fleet_plan import show_plan
from edgewise.cli.output import Output
from edgewise.core.errors import InputError
from edgewise.core.ids import Digest, Generation, NodeId, Tier
from edgewise.fleet.messages import Capability, NodeInfo, NodeRow
from edgewise.fleet.serving.fleet_planning import (
    LEAST_DEADLINE_S,
    Measured,
    alternatives,
    choose_chain,
    choose_version,
    deployment,
    search_of,
)
from edgewise.models.version import GateResult, ModelVersion
from edgewise.planning.levels import recommend
from edgewise.planning.policy import Policy
from tests.planning.scenario import FAST, WAN, evidence, graph, profiles


def row(name: str, tier: Tier, parent: str = "", flops: float = 1e9, port: int = 0, state: str = "alive") -> NodeRow:
    can = Capability(1, 2**30, flops, 1.0, 3.0, "3.11")
    return NodeRow(NodeInfo(NodeId(name), tier, Generation(1), "PEM", NodeId(parent), can, http_port=port), state)


FLEET = [
    row("cloud", Tier.CLOUD),
    row("edge-1", Tier.EDGE, "cloud"),
    row("slow", Tier.DEVICE, "edge-1", 1e9, 8001),
    row("fast", Tier.DEVICE, "cloud", 9e9, 8002),
    row("mute", Tier.DEVICE, "edge-1", 1e8),
    row("gone", Tier.DEVICE, "edge-1", 1e7, 8003, "gone"),
]
PASSED = GateResult(True, 400, 1, 1, 0.5, 2.0, "passed")
REFUSED = GateResult(False, 400, 30, 1, 9.0, 2.0, "refused")


@pytest.mark.parametrize(
    ("device", "names"),
    [("", ["slow", "edge-1", "cloud"]), ("fast", ["fast", "cloud"])],
)
def test_a_chain_leads_from_a_device_with_a_door_to_the_root(device: str, names: list[str]) -> None:
    assert [info.node for info in choose_chain(FLEET, device)] == names


def test_a_device_that_cannot_be_asked_is_refused_with_those_that_can() -> None:
    with pytest.raises(InputError, match="'mute' is no live device with an inference endpoint; those are: slow, fast"):
        choose_chain(FLEET, "mute")
    with pytest.raises(InputError, match="no live device of the fleet has an inference endpoint"):
        choose_chain(FLEET[:2])


def version(number: int, gate: GateResult | None = None) -> ModelVersion:
    return ModelVersion(number, Digest(""), Digest(""), "tiny", gate=gate, evidence=evidence())


def test_the_newest_version_that_may_serve_is_chosen() -> None:
    versions = [version(1), version(2, PASSED), version(3, REFUSED)]
    assert choose_version(versions).number == 2
    assert choose_version(versions, 3).number == 3
    with pytest.raises(InputError, match=r"there is no model version 7\. Known: 1, 2, 3"):
        choose_version(versions, 7)
    with pytest.raises(InputError, match=r"no model version that may serve\. Known: none; train one first"):
        choose_version([])


def test_a_deployment_keeps_alternatives_and_gives_three_times_the_p95() -> None:
    search = search_of(graph(), Measured(profiles(), (FAST, WAN)), Policy(), evidence(), "federated")
    plan = recommend(search).plan
    order = deployment(version(2), search, plan)
    assert order.plans[0] == plan
    assert len({p.name for p in order.plans}) == len(order.plans) > 1
    assert order.deadline_s == max(LEAST_DEADLINE_S, 3.0 * plan.predicted.latency_p95_s)
    assert deployment(version(2), search, plan, 0.5).deadline_s == 0.5
    assert order.inputs is not None
    assert len(order.inputs.profiles) == 3


def test_a_limit_on_latency_leaves_the_plan_map_out() -> None:
    search = search_of(graph(), Measured(profiles(), (FAST, WAN)), Policy(max_latency_s=10.0), (), "federated")
    plans = alternatives(search, recommend(search).plan)
    assert {p.tiers for p in plans[1:]} <= {(tier,) for tier in Tier}
    assert search.codecs == ("none",)  # without evidence nobody knows what a codec costs in accuracy


def test_a_plan_says_what_its_version_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    search = search_of(graph(), Measured(profiles(), (FAST, WAN)), Policy(), evidence(), "federated")
    part = msgspec.structs.replace(version(2), own=("head.*",))
    found = show_plan(Output(), part, search, recommend(search), (), "unknown")
    assert found["caution"] == part.caution
    assert f"caution: {part.caution}\n" in capsys.readouterr().out
