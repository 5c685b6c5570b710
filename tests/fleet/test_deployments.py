"""Who gets which plan of which model when nodes return, and what one model's rollout leaves of the others."""

from __future__ import annotations

import asyncio
import dataclasses
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from edgewise.core.errors import InputError, StoreError, Unreachable
from edgewise.core.ids import Generation, NodeId, Revision, RunId, Tier
from edgewise.fleet.membership.membership import KnownNode, Membership, NodeState
from edgewise.fleet.messages import (
    Ack,
    BlobRef,
    Capability,
    Deploy,
    Health,
    HealthRequest,
    InForce,
    InstallOrder,
    NodeInfo,
    UninstallOrder,
)
from edgewise.fleet.serving import deployments
from edgewise.fleet.serving.deployment import Deployment
from edgewise.fleet.serving.deployment_log import LOG
from edgewise.fleet.serving.deployments import REVISIONS_PER_DEPLOYMENT, Deployments, _stages
from edgewise.models.version import ModelVersion
from edgewise.planning.plan import Plan, Site, Stage
from tests.inference.tiny import split_plan, two_exit_graph

CAPABILITY = Capability(1, 1, 1.0, 1.0, 1.0, "")
CLOUD, EDGE, DEVICE = NodeId("cloud"), NodeId("edge-1"), NodeId("device-1")
PLAN: Plan = split_plan(two_exit_graph())
TASKS = {1: "digits", 2: "digits", 3: "faces", 4: "faces"}


class FakeVersions:
    """A registry of four versions of two models; a version's graph is called after its number."""

    def __init__(self) -> None:
        self.promoted: list[int] = []
        self.notes: list[str] = []
        self.own: dict[int, tuple[str, ...]] = {}

    def get(self, number: int) -> Any:
        own = self.own.get(number, ())
        return ModelVersion(number, f"graph of {number}", "", TASKS[number], own=own)  # type: ignore[arg-type]

    def kept(self, number: int) -> Any:
        return self.get(number)

    def graph_size(self, number: int) -> int:
        return 1

    def codec_gate(self, number: int, plan: Plan, hints: Any) -> None:
        return None

    def comparison(self, number: int, serves: int) -> tuple[None, str]:
        return None, "there is no held-out data for it"

    def promote(self, number: int, *, note: str = "") -> None:
        self.promoted.append(number)
        self.notes.append(note)


class FakeLog:
    """An event log in memory."""

    def __init__(self) -> None:
        self.entries: list[Any] = []

    def compact(self, run: RunId, kind: str, payload: bytes, *, num_events: int) -> None:
        self.entries.clear()
        self.append_many(run, [(kind, payload)])

    def append_many(self, run: RunId, events: list[tuple[str, bytes]]) -> None:
        assert run == LOG
        self.entries += [SimpleNamespace(kind=kind, payload=payload) for kind, payload in events]

    def read(self, run: RunId, damaged: Any = None) -> list[Any]:
        assert run == LOG
        return self.entries


class FakeNode:
    """A coordinator's node before one edge and one device that install whatever they are asked to."""

    name, transport, blobs = CLOUD, None, None
    keys = SimpleNamespace(service=lambda node, service: f"{node}/{service}")

    def __init__(self) -> None:
        self.orders: list[tuple[NodeId, Any]] = []
        self.serves: dict[str, InForce] = {}
        self.requests = 0
        self.slow: dict[str, asyncio.Event] = {}
        self.spare = asyncio.Event()
        self.refuses: dict[NodeId, str] = {}
        self.mute = {"info": 0, "order": 0}

    async def info_of(self, node: NodeId, *, fresh: bool) -> NodeInfo:
        assert fresh
        self._answer("info")
        return info(node, Tier.DEVICE, self.serves)

    def spawn(self, work: Any, name: str) -> Any:
        return asyncio.get_running_loop().create_task(work, name=name)

    async def ask(self, node: NodeId, service: str, message: Any, answer: Any, **_: Any) -> Any:
        if isinstance(message, HealthRequest):
            return Health(node, message.model, message.revision, self.requests, 0, 0.001, 0.0)
        self._answer("order")
        self.orders.append((node, message))
        if node in self.refuses:
            return Ack(False, self.refuses[node])
        if node == DEVICE and isinstance(message, InstallOrder):
            if message.model in self.slow:
                await self.slow[message.model].wait()
            self.serves[message.model] = InForce(message.version, message.revision, message.digest)
        elif node == DEVICE:
            self.serves.pop(message.model, None)
        return Ack()

    def _answer(self, what: str) -> None:
        if self.mute[what]:
            self.mute[what] -= 1
            raise Unreachable("nobody answers on device-1/control.")

    def installed(self, node: NodeId) -> list[tuple[str, int]]:
        return [(o.model, o.version if isinstance(o, InstallOrder) else 0) for n, o in self.orders if n == node]


def info(node: NodeId, tier: Tier, models: dict[str, InForce] | None = None) -> NodeInfo:
    return NodeInfo(node, tier, Generation(1), "", CLOUD, CAPABILITY, models=dict(models or {}))


class Fleet:
    """Deployments over fakes, with a log in memory or on disk."""

    def __init__(self, log: FakeLog | None = None) -> None:
        self.node, self.versions, self.events = FakeNode(), FakeVersions(), []
        known = {
            n: KnownNode(node=n, tier=t, generation=Generation(1), state=NodeState.ALIVE, info=info(n, t))
            for n, t in ((EDGE, Tier.EDGE), (DEVICE, Tier.DEVICE))
        }
        node: Any = self.node
        versions: Any = self.versions
        watch: Any = SimpleNamespace(members=Membership(known))
        events: Any = log or FakeLog()
        self.here: list[Any] = []
        self.made = Deployments(node, versions, watch, events, self._host_here, lambda k, f: self.events.append((k, f)))

    async def _host_here(self, order: InstallOrder | UninstallOrder) -> Ack:
        self.here.append(order)
        return Ack()

    async def deploy(self, number: int, **how: Any) -> Ack:
        return await self.made.deploy(Deploy(number, (PLAN,), **{"ungated": True, **how}))

    async def until(self, holds: Any) -> None:
        for _ in range(500):
            if holds():
                return
            await asyncio.sleep(0.01)
        raise AssertionError("it did not come about")


def test_each_model_has_its_own_version_in_force_and_its_own_way_back() -> None:
    async def run() -> None:
        fleet = Fleet()
        for number in (1, 3, 2, 4):
            assert (await fleet.deploy(number)).accepted
        assert {n: d.deploy.version for n, d in fleet.made.in_force().items()} == {"digits": 2, "faces": 4}
        ack = await fleet.made.rollback("digits")
        assert (ack.version, ack.taken_back) == (1, 2)
        assert {n: d.deploy.version for n, d in fleet.made.in_force().items()} == {"digits": 1, "faces": 4}
        assert fleet.versions.promoted == [1, 3, 2, 4, 1]
        assert fleet.node.installed(DEVICE)[-1] == ("digits", 1)

    asyncio.run(run())


def test_a_version_without_its_clients_own_tensors_is_served_only_where_that_is_asked_for() -> None:
    async def run() -> None:
        fleet = Fleet()
        fleet.versions.own = {1: ("head.*",)}
        refused = await fleet.deploy(1)
        assert not refused.accepted
        assert refused.reason.startswith("version 1 is the part that its clients share; head.* have their first values")
        assert refused.reason.endswith("To serve it as it is, deploy it with --force.")
        assert (fleet.node.orders, fleet.made.in_force()) == ([], {})
        assert (await fleet.deploy(1, force=True)).accepted
        assert fleet.node.installed(DEVICE) == [("digits", 1)]

    asyncio.run(run())


def test_revisions_count_over_all_models() -> None:
    async def run() -> None:
        fleet = Fleet()
        await asyncio.gather(fleet.deploy(1), fleet.deploy(3))
        revisions = [int(d.revision) for d in fleet.made.in_force().values()]
        assert sorted(revisions) == [REVISIONS_PER_DEPLOYMENT, 2 * REVISIONS_PER_DEPLOYMENT]

    asyncio.run(run())


def test_two_models_roll_out_at_once_and_one_is_taken_back_while_the_other_goes_on() -> None:
    async def run() -> None:
        fleet = Fleet()
        await fleet.deploy(1)
        digits = asyncio.create_task(fleet.deploy(2, min_requests=5))
        faces = asyncio.create_task(fleet.deploy(3, min_requests=5))
        await fleet.until(lambda: {("digits", 2), ("faces", 3)} <= set(fleet.node.installed(DEVICE)))
        assert not digits.done()
        assert not faces.done()
        assert fleet.made.changing() == ("digits", "faces")
        ack = await fleet.made.rollback("digits")
        assert (ack.version, ack.taken_back) == (1, 2)
        assert "an operator asked for the former version" in (await digits).reason
        assert not faces.done()
        assert fleet.made.changing() == ("faces",)
        fleet.node.requests = 5
        assert (await faces).accepted
        assert {n: of.version for n, of in fleet.node.serves.items()} == {"digits": 1, "faces": 3}

    asyncio.run(run())


def test_the_same_version_along_other_plans_can_be_taken_back_too() -> None:
    async def run() -> None:
        fleet = Fleet()
        await fleet.deploy(1)
        again = asyncio.create_task(fleet.deploy(1, min_requests=5))
        await fleet.until(lambda: len(fleet.node.installed(DEVICE)) == 2)
        assert (await fleet.made.rollback()).accepted
        assert not (await again).accepted
        assert fleet.node.serves["digits"].revision == REVISIONS_PER_DEPLOYMENT

    asyncio.run(run())


def test_a_first_rollout_that_is_taken_back_leaves_nothing_behind() -> None:
    async def run() -> None:
        fleet = Fleet()
        first = asyncio.create_task(fleet.deploy(1, min_requests=5))
        await fleet.until(lambda: "digits" in fleet.node.serves)
        ack = await fleet.made.rollback("digits")
        assert (ack.version, (await first).accepted, fleet.node.serves) == (0, False, {})
        assert isinstance(fleet.here[-1], UninstallOrder)
        assert fleet.node.installed(EDGE) == [("digits", 1), ("digits", 0)]

    asyncio.run(run())


def test_a_device_that_returns_in_mid_rollout_is_installed_again() -> None:
    async def run() -> None:
        fleet = Fleet()
        await fleet.deploy(1)
        rollout = asyncio.create_task(fleet.deploy(2, min_requests=5))
        await fleet.until(lambda: fleet.node.installed(DEVICE)[-1] == ("digits", 2))
        fleet.made.lost(DEVICE)
        back = asyncio.create_task(fleet.made.returned(info(DEVICE, Tier.DEVICE)))
        await fleet.until(lambda: len(fleet.node.installed(DEVICE)) == 3)
        fleet.node.requests = 5
        assert (await rollout).accepted
        await back
        assert fleet.node.installed(DEVICE) == [("digits", 1), ("digits", 2), ("digits", 2)]

    asyncio.run(run())


def test_devices_are_updated_by_shares_where_the_operator_says_so() -> None:
    devices = [NodeId(f"device-{i}") for i in range(10)]
    for deploy, sizes in (
        (Deploy(1, (PLAN,)), [1] * 10),
        (Deploy(1, (PLAN,), shares=(0.1, 0.5, 1.0)), [1, 4, 5]),
        (Deploy(1, (PLAN,), staged=False), [10]),
    ):
        assert [len(stage) for stage in _stages(deploy, devices)] == sizes


def test_each_node_is_told_who_stands_at_which_site() -> None:
    """A pipeline of two edges: a device asks its own edge first, an edge the one that follows it."""
    fleet, other = Fleet(), NodeId("edge-2")
    members = dict(fleet.made.watch.members.members)
    members[other] = KnownNode(
        node=other, tier=Tier.EDGE, generation=Generation(1), state=NodeState.ALIVE, info=info(other, Tier.EDGE)
    )
    fleet.made.watch.members = Membership(members)  # type: ignore[misc]
    further = Stage("further", PLAN.graph, ("b",), ("end",), Site(Tier.EDGE, 1))
    plan = msgspec.structs.replace(PLAN, stages=(*PLAN.stages, further))
    what = Deployment("digits", Deploy(1, (plan,)), Revision(64))

    def asked(node: NodeId, tier: Tier) -> dict[str, tuple[str, ...]]:
        return {str(at.site): at.nodes for at in fleet.made._order(what, node, tier).nodes_at}

    assert asked(EDGE, Tier.EDGE) == {"edge": (EDGE, other), "edge:1": (other, EDGE)}
    assert asked(other, Tier.EDGE)["edge:1"] == (EDGE, other)
    device = KnownNode(
        node=DEVICE, tier=Tier.DEVICE, generation=Generation(1), state=NodeState.ALIVE,
        info=msgspec.structs.replace(info(DEVICE, Tier.DEVICE), parent=other),
    )  # fmt: skip
    fleet.made.watch.members = Membership({**members, DEVICE: device})  # type: ignore[misc]
    assert asked(DEVICE, Tier.DEVICE)["edge"] == (other, EDGE)


def test_health_counts_each_request_once() -> None:
    async def run() -> None:
        fleet = Fleet()
        rollout = asyncio.create_task(fleet.deploy(1, min_requests=5))
        fleet.node.requests = 4
        await asyncio.sleep(0.5)  # asked five times
        assert not rollout.done()
        fleet.node.requests = 5
        assert (await rollout).accepted

    asyncio.run(run())


@pytest.mark.parametrize("tier", [Tier.DEVICE, Tier.EDGE])
def test_who_returns_gets_all_that_is_in_force_and_gives_up_what_is_not(tier: Tier) -> None:
    async def run() -> None:
        fleet = Fleet()
        await fleet.deploy(1)
        await fleet.deploy(3)
        node = {Tier.DEVICE: DEVICE, Tier.EDGE: EDGE}[tier]
        fleet.node.orders.clear()
        fleet.node.serves = {"digits": fleet.node.serves["digits"], "gone": InForce(9, Revision(640), "x")}
        await fleet.made.returned(info(node, tier, fleet.node.serves))
        assert sorted(fleet.node.installed(node)) == [("faces", 3), ("gone", 0)]

    asyncio.run(run())


def test_what_was_damaged_at_the_coordinator_comes_back_from_who_serves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        fleet = Fleet()
        await fleet.deploy(1)
        whole, asked = fleet.made.host_here, []

        async def damaged(_: Any) -> Ack:
            raise StoreError("the graph of 'digits' was damaged on the disk of cloud.")

        async def fetched(_: Any, key: str, digest: str, __: Any) -> None:
            asked.append((key, digest))
            fleet.made.host_here = whole

        monkeypatch.setattr(deployments, "fetch_unsized", fetched)
        fleet.made.host_here = damaged
        await fleet.made.resume()
        fleet.here.clear()
        await fleet.made.returned(info(EDGE, Tier.EDGE, {"digits": InForce(9, Revision(0), "another version")}))
        assert (asked, fleet.here) == ([], [])
        for _ in range(2):  # once is enough
            await fleet.made.returned(info(EDGE, Tier.EDGE, fleet.node.serves))
        assert (asked, [order.version for order in fleet.here]) == ([("edge-1/blob", "graph of 1")], [1])

    asyncio.run(run())


@pytest.mark.parametrize("what", ["info", "order"])
@pytest.mark.parametrize("model", ["digits", "gone"])
def test_who_is_here_but_gives_no_answer_yet_is_asked_again(
    what: str, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        fleet = Fleet()
        await fleet.deploy(1)
        fleet.node.serves = {} if model == "digits" else {**fleet.node.serves, "gone": InForce(9, Revision(640), "x")}
        fleet.node.orders.clear()
        fleet.node.mute[what] = 4
        await fleet.made.returned(info(DEVICE, Tier.DEVICE, fleet.node.serves))
        await fleet.until(lambda: fleet.node.installed(DEVICE) == [(model, 1 if model == "digits" else 0)])

    monkeypatch.setattr(deployments, "AGAIN_S", dict.fromkeys(deployments.AGAIN_S, 0.01))
    asyncio.run(run())


def test_an_edge_that_returns_before_a_rollout_begins_has_its_version_when_it_is_over() -> None:
    async def run() -> None:
        fleet, go_on = Fleet(), asyncio.Event()
        await fleet.deploy(1)
        known, former = fleet.made.watch.members.members, info(EDGE, Tier.EDGE, fleet.node.serves)

        async def slowly(order: Any) -> Ack:
            await go_on.wait()
            return Ack()

        async def as_it_was(node: NodeId, *, fresh: bool) -> NodeInfo:
            return former

        def here_again(number: int, *, note: str) -> None:
            known[EDGE] = dataclasses.replace(known[EDGE], state=NodeState.ALIVE)

        fleet.made.host_here, fleet.node.info_of = slowly, as_it_was  # type: ignore[method-assign]
        fleet.made.versions.promote = here_again  # type: ignore[method-assign]
        known[EDGE] = dataclasses.replace(known[EDGE], state=NodeState.GONE)
        deploying = asyncio.create_task(fleet.deploy(2))
        await fleet.until(lambda: fleet.made.changing() == ("digits",))
        await fleet.made.returned(former)  # the hosts are chosen without it
        go_on.set()
        assert (await deploying).accepted
        await fleet.until(lambda: fleet.node.installed(EDGE) == [("digits", 1), ("digits", 2)])

    asyncio.run(run())


def test_who_says_that_it_serves_something_else_gets_what_is_in_force() -> None:
    async def run() -> None:
        fleet = Fleet()
        await fleet.deploy(1)
        await fleet.made.returned(info(DEVICE, Tier.DEVICE, fleet.node.serves))
        fleet.node.orders.clear()
        fleet.made.proved(info(DEVICE, Tier.DEVICE, fleet.node.serves))
        fleet.node.serves = {"digits": InForce(2, Revision(7), "of an order from before a crash")}  # type: ignore[dict-item]
        fleet.made.proved(info(DEVICE, Tier.DEVICE, fleet.node.serves))
        await fleet.until(lambda: fleet.node.installed(DEVICE) == [("digits", 1)])
        assert fleet.node.serves["digits"].version == 1

    asyncio.run(run())


def test_a_device_that_is_back_before_a_question_to_it_fails_is_not_taken_for_away() -> None:
    async def run() -> None:
        fleet = Fleet()
        await fleet.deploy(1)
        asked, answer = [], fleet.node.ask

        async def ask(node: NodeId, service: str, message: Any, answer_type: Any, **how: Any) -> Any:
            if isinstance(message, HealthRequest) and not asked:
                fleet.made.lost(DEVICE)
                asked.append(asyncio.create_task(fleet.made.returned(info(DEVICE, Tier.DEVICE, fleet.node.serves))))
                await asyncio.sleep(0.01)
                asyncio.get_running_loop().call_later(0.1, setattr, fleet.node, "requests", 9)
                raise Unreachable("nobody answers on device-1/control.")
            return await answer(node, service, message, answer_type, **how)

        fleet.node.ask = ask  # type: ignore[method-assign]
        async with asyncio.timeout(10.0):
            assert (await fleet.deploy(2, min_requests=5)).accepted
            await asked[0]

    asyncio.run(run())


def test_another_model_of_the_same_number_is_replaced() -> None:
    async def run() -> None:
        fleet = Fleet()
        await fleet.deploy(1)
        ref = BlobRef("graph of another fleet", 1, EDGE)  # type: ignore[arg-type]
        other = InstallOrder("digits", 1, ref, (PLAN,), Revision(REVISIONS_PER_DEPLOYMENT)).digest
        fleet.node.serves = {"digits": InForce(1, Revision(REVISIONS_PER_DEPLOYMENT), other)}
        await fleet.made.returned(info(DEVICE, Tier.DEVICE, fleet.node.serves))
        assert fleet.node.installed(DEVICE) == [("digits", 1), ("digits", 1)]

    asyncio.run(run())


def test_an_edge_that_returns_during_a_rollout_is_not_kept_waiting() -> None:
    async def run() -> None:
        fleet = Fleet()
        await fleet.deploy(1)
        async with fleet.made.models["digits"].busy:
            await fleet.made.returned(info(EDGE, Tier.EDGE))
        assert fleet.node.installed(EDGE) == [("digits", 1), ("digits", 1)]

    asyncio.run(run())


def test_an_edge_that_returns_in_mid_rollout_gets_what_comes_too() -> None:
    async def run() -> None:
        fleet = Fleet()
        await fleet.deploy(1)
        rollout = asyncio.create_task(fleet.deploy(2, min_requests=5))
        await fleet.until(lambda: fleet.node.installed(DEVICE)[-1] == ("digits", 2))
        fleet.node.orders.clear()
        await fleet.made.returned(info(EDGE, Tier.EDGE))
        assert fleet.node.installed(EDGE) == [("digits", 1), ("digits", 2)]
        await fleet.made.rollback()
        assert not (await rollout).accepted
        assert fleet.node.installed(EDGE)[-1] == ("digits", 1)  # what it says it serves is what is in force
        assert fleet.here[-1].version == 1

    asyncio.run(run())


def test_an_edge_without_room_stops_the_deployment_before_any_device_is_touched() -> None:
    async def run() -> None:
        fleet = Fleet()
        fleet.node.refuses[EDGE] = "edge-1 serves 8 models and takes no more"
        ack = await fleet.deploy(1)
        assert (ack.accepted, ack.reason) == (False, "edge-1 serves 8 models and takes no more")
        assert fleet.node.installed(DEVICE) == []

    asyncio.run(run())


def test_nothing_is_installed_before_the_first_deployment() -> None:
    async def run() -> None:
        fleet = Fleet()
        await fleet.made.returned(info(DEVICE, Tier.DEVICE))
        assert fleet.node.orders == []

    asyncio.run(run())


def test_which_model_to_roll_back_must_be_said_where_there_are_several() -> None:
    async def run() -> None:
        fleet = Fleet()
        with pytest.raises(InputError, match="no model is in force on this fleet"):
            await fleet.made.rollback()
        await fleet.deploy(1)
        ack = await fleet.made.rollback()
        assert "there is no former deployment of 'digits'" in ack.reason
        await fleet.deploy(3)
        with pytest.raises(
            InputError, match=r"several models are in force: digits, faces\. Say which, with --model NAME"
        ):
            await fleet.made.rollback()
        with pytest.raises(InputError, match=r"no model 'digit' is in force here\. Did you mean 'digits'"):
            await fleet.made.rollback("digit")

    asyncio.run(run())


def test_what_is_in_force_and_the_revisions_given_survive_the_coordinator() -> None:
    async def run() -> None:
        log = FakeLog()
        fleet = Fleet(log)
        for number in (1, 3, 2):
            await fleet.deploy(number)
        await fleet.made.rollback("digits")
        again = Fleet(log)
        again.made.replay()
        assert again.made.in_force() == fleet.made.in_force()
        assert {n: d.deploy.version for n, d in again.made.in_force().items()} == {"digits": 1, "faces": 3}
        await again.deploy(4)
        assert again.made.in_force()["faces"].revision == 5 * REVISIONS_PER_DEPLOYMENT
        await again.made.resume()
        assert [o.model for o in again.here[-2:]] == ["digits", "faces"]

    asyncio.run(run())


def test_a_model_that_the_coordinator_cannot_load_again_is_named_and_the_others_are_served(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def run() -> None:
        log = FakeLog()
        fleet = Fleet(log)
        for number in (1, 3):
            await fleet.deploy(number)
        again, served = Fleet(log), list[str]()

        async def host_here(order: Any) -> Ack:
            if order.model == "digits":
                raise StoreError("blob is damaged.")
            served.append(order.model)
            return Ack()

        again.made.host_here = host_here
        again.made.replay()
        await again.made.resume()
        assert served == ["faces"]
        assert "cloud cannot serve version 1 of digits: blob is damaged." in caplog.text

    asyncio.run(run())


def test_a_deployment_is_written_as_what_it_is() -> None:
    log = FakeLog()
    fleet = Fleet(log)
    asyncio.run(fleet.deploy(3))
    assert [entry.kind for entry in log.entries] == ["begun", "deployed"]
    wanted = Deploy(3, (PLAN,), ungated=True)
    assert fleet.made.in_force()["faces"] == Deployment("faces", wanted, Revision(REVISIONS_PER_DEPLOYMENT))
