"""A version that is worse never serves unasked, policies stay with deployments, plans keep to what devices grant."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgewise.cli.fleet_plan import plan_and_deploy, serve_on_fleet
from edgewise.cli.fleet_plan_request import FleetPlanRequest
from edgewise.cli.output import Output
from edgewise.core.errors import GateRefused, InputError, PlanInfeasible
from edgewise.core.ids import NodeId, Tier
from edgewise.fleet.messages import Deploy, DeployAck, NodeInfo
from edgewise.fleet.serving import fleet_planning
from edgewise.fleet.serving.fleet_planning import Measured
from edgewise.fleet.serving.raw_grants import granted
from edgewise.inference.evidence import run_graph
from edgewise.models.graph.graph import Graph
from edgewise.planning.policy import Policy
from edgewise.planning.profile import Profile
from edgewise.testing import LoopbackFleet
from edgewise.testing.serving_fleet import ServingFleet
from tests.inference.tiny import images, raw_plan, split_plan, two_exit_graph

GOOD, OTHER, THIRD = (two_exit_graph(seed=seed) for seed in (0, 1, 2))
DEVICE, NUM = "device-1", 400
Scene = Callable[[ServingFleet], Awaitable[None]]
NO_DATA = "there is no held-out data for it"


def on_fleet(folder: Path, scene: Scene, **how: Any) -> None:
    async def run() -> None:
        async with ServingFleet(folder, **how) as fleet:
            await scene(fleet)

    asyncio.run(run())


@pytest.fixture
def holdout(tmp_path: Path) -> str:
    """Held-out data on which the good model is always right, and the others are wrong nine times in ten."""
    x = images(NUM)
    y = run_graph(GOOD.whole, {"x": x}, ["end"])[0].argmax(-1)
    np.savez(tmp_path / "holdout.npz", calibration_x=x, calibration_y=y, gate_x=x, gate_y=y)
    return str(tmp_path / "holdout.npz")


async def deploy(fleet: ServingFleet, number: int, graph: Graph = GOOD, **how: Any) -> DeployAck:
    return await fleet.operator.deploy(Deploy(number, (split_plan(graph),), deadline_s=5.0, staged=False, **how))


async def gates(fleet: ServingFleet) -> list[tuple[int, bool] | None]:
    """What each version was compared with, and whether it passed."""
    found = (await fleet.operator.versions()).versions
    return [None if v.gate is None else (v.gate.reference, v.gate.passed) for v in found]


# The version


def test_a_worse_version_serves_by_force_only_and_the_history_says_so(tmp_path: Path, holdout: str) -> None:
    async def scene(fleet: ServingFleet) -> None:
        await fleet.register(GOOD.model_bytes, "digits")
        assert (await deploy(fleet, 1)).note == "version 1 of 'digits' was compared with nothing: it is the first"
        await fleet.register(OTHER.model_bytes, "digits")  # from nothing: no parent
        assert await gates(fleet) == [None, (1, False)]
        refused = await deploy(fleet, 2, OTHER)
        assert refused.reason.startswith(
            "version 2 of 'digits' did not pass its gate (compared with version 1): refused:"
        )
        assert "deploy it with --force, which the history keeps" in refused.reason
        assert not (await deploy(fleet, 2, OTHER, ungated=True)).accepted
        assert fleet.versions(DEVICE) == {"digits": 1}
        forced = await deploy(fleet, 2, OTHER, force=True)
        assert (forced.accepted, fleet.versions(DEVICE)) == (True, {"digits": 2})
        history = (await fleet.operator.versions()).history
        assert [(line.version, line.note) for line in history] == [(1, ""), (2, forced.overridden)]
        assert forced.overridden.startswith("version 2 of 'digits' did not pass its gate (compared with version 1)")
        assert fleet.events[-1][1]["overridden"] == forced.overridden
        assert (await fleet.operator.rollback()).version == 1
        assert (await fleet.operator.versions()).history[-1].note == "rolled back from version 2"
        back = await fleet.operator.rollback()
        assert not back.accepted

    on_fleet(tmp_path, scene, holdout=holdout)


def test_what_counts_is_the_version_that_serves_when_another_is_to_replace_it(tmp_path: Path, holdout: str) -> None:
    async def scene(fleet: ServingFleet) -> None:
        for graph in (OTHER, GOOD):
            await fleet.register(graph.model_bytes, "digits")
        await deploy(fleet, 1, OTHER)
        await fleet.register(THIRD.model_bytes, "digits", parent=2)
        assert await gates(fleet) == [None, (1, True), (1, True)]  # neither is worse than what serves
        assert (await deploy(fleet, 2)).accepted
        refused = await deploy(fleet, 3, THIRD)  # and now it would be
        assert "did not pass its gate (compared with version 2)" in refused.reason
        assert await gates(fleet) == [None, (1, True), (2, False)]
        assert not (await deploy(fleet, 1, OTHER)).accepted  # nor may one that served once
        ack = await fleet.operator.admission(2)
        assert (ack.accepted, ack.serves) == (True, 2)  # what serves may be planned anew

    on_fleet(tmp_path, scene, holdout=holdout)


def test_without_held_out_data_another_version_serves_ungated_only(tmp_path: Path) -> None:
    async def scene(fleet: ServingFleet) -> None:
        for graph in (GOOD, GOOD, OTHER):
            await fleet.register(graph.model_bytes, "digits")
        assert (await deploy(fleet, 1)).note == f"version 1 of 'digits' was compared with nothing: {NO_DATA}"
        assert (await deploy(fleet, 2)).accepted  # the very same model
        refused = await deploy(fleet, 3, OTHER)
        assert refused.reason == (
            f"version 3 was not compared with version 2 of 'digits', which serves: {NO_DATA}. Start the coordinator with "
            "--holdout digits=FILE, or deploy it unseen with --ungated; --version 2 plans the one in force anew."
        )
        assert (await deploy(fleet, 3, OTHER, ungated=True)).accepted
        assert (await fleet.operator.versions()).history[-1].note == (
            f"version 3 was not compared with version 2 of 'digits', which serves: {NO_DATA}"
        )

    on_fleet(tmp_path, scene)


def test_of_versions_that_never_served_the_newest_that_might_is_the_measure(tmp_path: Path, holdout: str) -> None:
    async def scene(fleet: ServingFleet) -> None:
        for graph in (GOOD, OTHER, THIRD):
            await fleet.register(graph.model_bytes, "digits")
        assert await gates(fleet) == [None, (1, False), (1, False)]

    on_fleet(tmp_path, scene, holdout=holdout)


def test_a_run_from_scratch_is_compared_too(tmp_path: Path) -> None:
    async def run() -> None:
        async with LoopbackFleet(
            tmp_path / "fleet", edge_of={"a": "edge-1"}, holdout=str(tmp_path / "tiny.npz")
        ) as fleet:
            for rounds in (1, 2):
                await fleet.train("fed_avg", num_rounds=rounds, register=True)
            first, second = (await fleet.operator.versions()).versions
            assert (first.gate, second.parent) == (None, 0)
            assert second.gate is not None
            assert second.gate.reference == 1

    task = LoopbackFleet(tmp_path, edge_of={"a": "edge-1"}).task
    data = task.data("a")
    x, y = (np.repeat(np.asarray(part), 400 // len(part) + 1, axis=0) for part in (data.inputs, data.targets))
    np.savez(tmp_path / "tiny.npz", calibration_x=x, calibration_y=y, gate_x=x, gate_y=y)
    asyncio.run(run())


# What serves from a user's hand, and its policy

PORTS = {DEVICE: 8000}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is measured in a process of its own, which takes most of the time and is not looked at here."""
    monkeypatch.setattr("edgewise.inference.profiler.measure_memory", lambda _: 0)


PRIVATE = Policy(raw_may_reach=Tier.DEVICE)


def request(**how: Any) -> FleetPlanRequest:
    return FleetPlanRequest("", "", budget="20 ms", **{"deploy": True, **how})


async def plan(fleet: ServingFleet, number: int, policy: Policy | None = None, **how: Any) -> dict[str, Any]:
    version = next(v for v in (await fleet.operator.versions()).versions if v.number == number)
    return await plan_and_deploy(Output(), request(**how), policy, fleet.operator, version)


def test_a_version_that_may_not_serve_is_not_even_measured(
    tmp_path: Path, holdout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(fleet: ServingFleet) -> None:
        for graph in (GOOD, OTHER):
            await fleet.register(graph.model_bytes, "digits")
        await plan(fleet, 1)
        monkeypatch.setattr(type(fleet.operator), "profile", None)
        with pytest.raises(
            GateRefused, match=r"version 2 of 'digits' did not pass its gate \(compared with version 1\)"
        ):
            await plan(fleet, 2)

    on_fleet(tmp_path, scene, holdout=holdout, http_ports=PORTS)


def test_the_policy_and_the_share_stay_with_the_deployment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    near = Policy(features_may_reach=Tier.DEVICE, objective="device_energy")

    async def scene(fleet: ServingFleet) -> None:
        await fleet.register(GOOD.model_bytes, "digits")
        await plan(fleet, 1, near, share=2.0)
        assert (await fleet.operator.versions()).policies == {"digits": near}
        found = await plan(fleet, 1)
        assert found["recommendation"].plan.tiers == (Tier.DEVICE,)
        assert (found["policy"]["asked"], found["policy"]["kept"]) == (
            near,
            msgspec.structs.replace(near, raw_may_reach=Tier.DEVICE),
        )
        assert "policy: the one in force of 'digits', since none is given" in capsys.readouterr().out
        known = await fleet.operator.versions()
        assert (known.policies, known.shares) == ({"digits": near}, {"digits": 2.0})
        in_force = fleet.coordinator.deployments.in_force()["digits"].deploy
        assert in_force.inputs is not None
        assert in_force.inputs.policy.features_may_reach is Tier.DEVICE  # what devices weigh plans by, too
        fleet.coordinator.deployments.models.clear()
        fleet.coordinator.deployments.replay()  # as after a restart
        assert (await fleet.operator.versions()).policies == {"digits": near}
        await plan(fleet, 1, Policy())
        assert (await fleet.operator.versions()).policies == {"digits": Policy()}
        await fleet.operator.rollback()
        assert (await fleet.operator.versions()).policies == {"digits": near}

    on_fleet(tmp_path, scene, http_ports=PORTS)


def test_a_users_own_model_goes_the_same_way(tmp_path: Path, holdout: str) -> None:
    async def scene(fleet: ServingFleet, monkeypatch: pytest.MonkeyPatch) -> None:
        from contextlib import asynccontextmanager

        @asynccontextmanager
        async def operator_of(*_: str) -> Any:
            yield fleet.operator

        monkeypatch.setattr("edgewise.cli.fleet_plan.operator_of", operator_of)
        await serve_on_fleet(Output(), request(), GOOD, "digits")
        with pytest.raises(GateRefused, match="did not pass its gate"):
            await serve_on_fleet(Output(), request(), OTHER, "digits")
        await serve_on_fleet(Output(), request(force=True), THIRD, "digits")
        assert fleet.versions(DEVICE) == {"digits": 3}

    with pytest.MonkeyPatch.context() as patch:
        on_fleet(tmp_path, lambda fleet: scene(fleet, patch), holdout=holdout, http_ports=PORTS)


def test_a_versions_int8_is_planned_on_the_fleet_and_deployed_as_a_version_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Local plans had int8 among their candidates, those of a fleet had not."""
    data, out, held = tmp_path / "real.npz", tmp_path / "int8.onnx", tmp_path / "held.npz"
    logits = run_graph(GOOD.whole, {"x": (x := images(4 * NUM))}, ["end"])[0]
    best, second = np.sort(logits, axis=1)[:, :-3:-1].T
    sure = np.argsort(second - best)[:NUM]  # of these int8 loses none
    x, y = x[sure], logits[sure].argmax(-1)
    np.savez(data, x=x[:60], y=y[:60])
    np.savez(held, calibration_x=x, calibration_y=y, gate_x=x, gate_y=y)
    (narrow := tmp_path / "narrow.onnx").write_bytes(OTHER.model_bytes)

    async def scene(fleet: ServingFleet, monkeypatch: pytest.MonkeyPatch) -> None:
        await fleet.register(GOOD.model_bytes, "digits")
        with pytest.raises(InputError, match="how accurate a variant is cannot be told without inputs"):
            await plan(fleet, 1, has_stand_ins=True, variants=(narrow,))
        found = await plan(fleet, 1, has_stand_ins=True, deploy=False)
        assert (
            "int8 is no candidate: what its activations' ranges are is told by real inputs" in capsys.readouterr().out
        )
        assert [row.name for row in found["one_node"] if row.plan is None] == ["int8 on device"]

        measured = fleet_planning.measure

        async def measure(operator: Any, graph: bytes, *rest: Any, **how: Any) -> Measured:
            """Whatever this machine says: the variants are many times as fast as the model on every node."""
            taken, faster = await measured(operator, graph, *rest, **how), 1.0 if graph == GOOD.model_bytes else 0.01
            return Measured({t: scaled(p, faster) for t, p in taken.profiles.items()}, taken.links)

        monkeypatch.setattr(fleet_planning, "measure", measure)
        here = Policy(features_may_reach=Tier.DEVICE, raw_may_reach=Tier.DEVICE)
        wanted = {"has_stand_ins": True, "data": data, "variants": (narrow,), "int8": out}
        found = await plan(fleet, 1, here, **wanted)
        chosen = found["recommendation"].plan
        assert (chosen.variant, chosen.tiers) == ("int8", (Tier.DEVICE,))
        rows = {row.name: row for row in found["one_node"]}
        assert rows["int8 on device"].allowed
        assert "narrow on device" not in rows  # else it would be recommended, and refused when it is to serve
        said = capsys.readouterr().out
        assert "narrow is no candidate, its gate would refuse it: refused: of" in said
        assert "int8 of version 1 is version 2" in said
        assert Graph.load(out.read_bytes()).digest == chosen.graph
        versions = (await fleet.operator.versions()).versions
        assert [(v.number, v.parent, v.origin) for v in versions[1:]] == [(2, 1, "int8 of version 1")]
        assert versions[1].gate is not None
        assert fleet.versions(DEVICE) == {"digits": 2}
        assert found["deployed"]["ports"] == PORTS  # that of the cloud answers no requests
        assert (await fleet.infer(DEVICE, "digits", {"x": images()})).observation.version == 2
        found = await plan(fleet, 1, here, force=True, **wanted)  # int8 is known already
        assert len((await fleet.operator.versions()).versions) == 2
        rows = {row.name: row for row in found["one_node"]}
        assert rows["narrow on device"].reason.startswith("accuracy would be 0.")

    with pytest.MonkeyPatch.context() as patch:
        on_fleet(tmp_path, lambda fleet: scene(fleet, patch), holdout=str(held), http_ports={**PORTS, "cloud": 9000})


def scaled(profile: Profile, factor: float) -> Profile:
    change = msgspec.structs.replace
    return change(
        profile,
        groups=tuple(change(g, seconds=factor * 1e-3, p95_seconds=factor * 1e-3) for g in profile.groups),
        segments=(),
        call_s=0.0,
    )


# What devices grant


def info(name: str, grant: Tier, tier: Tier = Tier.DEVICE) -> NodeInfo:
    return NodeInfo(NodeId(name), tier, 1, "", NodeId(""), None, raw_may_reach=grant)  # type: ignore[arg-type]


def test_a_policy_is_narrowed_to_what_every_device_grants() -> None:
    open_ = [info("a", Tier.CLOUD), info("edge", Tier.DEVICE, Tier.EDGE)]
    assert granted(Policy(), open_) == (Policy(), "")
    kept, sentence = granted(Policy(), [*open_, info("b", Tier.EDGE)])
    assert kept.raw_may_reach is Tier.EDGE
    assert sentence.startswith("raw inputs may reach edge, not cloud: b grants no more.")
    assert granted(PRIVATE, [*open_, info("b", Tier.EDGE)]) == (PRIVATE, "")
    assert "0, 1, 2 and 5 more grant no more" in granted(Policy(), [info(str(i), Tier.EDGE) for i in range(8)])[1]


def test_no_plan_is_made_that_a_device_will_refuse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    far = Policy(allowed_tiers=(Tier.EDGE,))  # nothing but "all on edge", which takes the raw input there

    async def scene(fleet: ServingFleet) -> None:
        await fleet.register(GOOD.model_bytes, "digits")
        with pytest.raises(PlanInfeasible, match="raw inputs may reach device, not cloud: device-1 grants no more"):
            await plan(fleet, 1, far)
        refused = await fleet.operator.deploy(Deploy(1, (raw_plan(GOOD),)))
        assert refused.reason == (
            "plan 'raw to edge' sends the raw input (x) to edge, and device-1 lets it reach device only. Plan again, which keeps "
            "to that, or start device-1 with --raw-may-reach edge."
        )
        assert not any(handover["carries_raw"] for handover in handovers(await plan(fleet, 1)))
        assert "raw inputs may reach device, not cloud: device-1 grants no more" in capsys.readouterr().out

    on_fleet(tmp_path, scene, http_ports=PORTS)


def handovers(found: dict[str, Any]) -> list[Any]:
    return msgspec.to_builtins(found["recommendation"].plan)["handovers"]  # type: ignore[no-any-return]


def test_what_devices_grant_is_used_and_nodes_says_which_grants_less_since(tmp_path: Path) -> None:
    async def scene(fleet: ServingFleet) -> None:
        await fleet.register(GOOD.model_bytes, "digits")
        far = Policy(allowed_tiers=(Tier.EDGE,))
        assert [h["carries_raw"] for h in handovers(await plan(fleet, 1, far))] == [True]
        assert fleet.versions(DEVICE) == {"digits": 1}
        fleet._settings["raw_may_reach"] = Tier.DEVICE
        await fleet.restart(DEVICE)
        await fleet.until(lambda: bool(fleet.coordinator.deployments.refusals))
        rows = (await fleet.operator.nodes()).nodes
        cause = next(row.cause for row in rows if row.info.node == DEVICE)
        assert cause.startswith("answers digits by itself: plan ")
        assert "device-1 lets it reach device only. Plan again, which keeps to that" in cause
        await plan(fleet, 1, Policy())
        fleet.coordinator.deployments.refusals.clear()
        await fleet.restart(DEVICE)
        await fleet.until(lambda: fleet.versions(DEVICE) == {"digits": 1})
        assert not fleet.coordinator.deployments.refusals

    on_fleet(tmp_path, scene, http_ports=PORTS, raw_may_reach=Tier.EDGE)
