"""What stays on the disks of a fleet and what goes: judged alone, over runs, over deployments, killed at every step."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from edgewise.cli import state
from edgewise.cli.output import Output
from edgewise.core.errors import InputError, RemoteError, StoreError
from edgewise.core.ids import Digest, NodeId, digest_of
from edgewise.fleet.messages import Deploy, StateRequest
from edgewise.fleet.node import upkeep
from edgewise.fleet.node.upkeep import Upkeep
from edgewise.fleet.operator import operator
from edgewise.fleet.store.backup import restore, write_backup
from edgewise.fleet.store.retention import Hold, Stored, judge
from edgewise.testing import LoopbackFleet, ServingFleet
from edgewise.transport.bulk.blobs import FolderBlobs
from tests.inference.tiny import images, split_plan, two_exit_graph

EDGE_OF = {"a": "edge-1", "b": "edge-1", "c": "edge-1"}
CLOUD, EDGE, DEVICE = NodeId("cloud"), NodeId("edge-1"), NodeId("device-a")
LEAST = 1
"""A budget in which only what is needed fits."""
PRUNE = StateRequest(prune=True, keep_bytes=LEAST)


def digests(*names: str) -> frozenset[Digest]:
    return frozenset(Digest(name) for name in names)


def test_what_is_needed_stays_whatever_it_takes_and_what_is_wanted_newest_first_while_it_fits() -> None:
    stored = {Digest(name): Stored(10, time) for time, name in enumerate("abcdef")}
    holds = [
        Hold("old", digests("a", "b"), is_needed=False),
        Hold("new", digests("b", "e"), is_needed=False),
        Hold("run", digests("c", "not here")),
    ]
    assert sorted(judge(stored, holds, 0).goes) == ["a", "b", "d", "e", "f"]
    assert sorted(judge(stored, holds, 30).goes) == ["a", "d", "f"]
    verdict = judge(stored, holds, 40)
    assert (sorted(verdict.goes), verdict.size_bytes) == (["d", "f"], 20)
    assert [(s.hold.what, s.size_bytes, s.stays) for s in verdict.shares] == [
        ("run", 10, True),
        ("new", 20, True),
        ("old", 10, True),
    ]


def test_what_was_just_asked_for_or_is_being_fetched_stays_a_while(tmp_path: Path) -> None:
    async def scene() -> None:
        blobs = FolderBlobs(tmp_path)
        digest = blobs.put(b"model")
        assert not blobs.let_go(digest, 60.0)
        again = FolderBlobs(tmp_path)  # of the next process, in which nobody has asked for it
        async with again.transfers.one(digest):
            assert not again.let_go(digest, 60.0)
        assert digest not in again.transfers
        assert again.claim(digest)
        assert not again.let_go(digest, 60.0)
        assert FolderBlobs(tmp_path).let_go(digest, 60.0)
        assert not again.claim(digest)

    asyncio.run(scene())


def on_disk(fleet: Any, node: NodeId) -> set[Digest]:
    return {digest for store in fleet.nodes[node].stores for digest, _, _ in store.stored()}


@contextmanager
def forgetful(looking: Upkeep) -> Iterator[Upkeep]:
    """Nothing is under way: what was claimed a moment ago may go."""
    grace_s, looking._grace_s = looking._grace_s, 0.0
    yield looking
    looking._grace_s = grace_s


def has_ended(fleet: LoopbackFleet, node: NodeId) -> bool:
    """Whether a node has forgotten the runs so far, but for what it keeps of them."""
    return not fleet.training[node].roles._drivers and not fleet.training[node].events.runs()[1:]


async def pruned(fleet: Any) -> dict[str, Any]:
    found = {}
    for node in (node for node in fleet.upkeep if node != "operator"):
        with forgetful(fleet.upkeep[node]) as looking:
            found[node] = await looking.look(PRUNE)
    return found


def test_after_runs_only_what_clients_keep_and_what_can_be_asked_for_is_there(tmp_path: Path) -> None:
    async def scene() -> None:
        async with LoopbackFleet(tmp_path, edge_of=EDGE_OF) as fleet:
            for seed in range(3):
                last = await fleet.train("scaffold", num_rounds=4, seed=seed, protocol="hierarchical")
                assert fleet.model(last).size
            await fleet.until(lambda: all(has_ended(fleet, node) for node in fleet.training))
            everything = await fleet.upkeep[CLOUD].look(StateRequest())
            wanted = [row.what for row in everything.rows if not row.is_needed]
            assert [what.partition(" run ")[0] for what in wanted] == ["model of"] * 3
            await pruned(fleet)
            kept = {node: len(on_disk(fleet, node)) for node in (CLOUD, EDGE, DEVICE)}
            assert kept == {CLOUD: 0, EDGE: 0, DEVICE: 1}  # a device: its control variate
            with pytest.raises(RemoteError, match="is not here any more"):
                await fleet.operator.trained(last.run)
            again = await fleet.train("scaffold", num_rounds=2, protocol="hierarchical")
            assert len(again.rounds) == 2

    asyncio.run(scene())


def test_a_run_ends_as_undisturbed_where_all_that_can_goes_all_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "SETTLE_S", 0.02)
    monkeypatch.setattr(upkeep, "EVERY_S", 0.05)

    async def run(folder: Path, **least: Any) -> tuple[Any, int]:
        async with LoopbackFleet(folder, edge_of=EDGE_OF, settings={"hidden": 1000}, **least) as fleet:
            status = await fleet.train("scaffold", num_rounds=4, protocol="hierarchical")
            return status.model, sum(len(on_disk(fleet, node)) for node in (CLOUD, EDGE))

    model, _ = asyncio.run(run(tmp_path / "undisturbed"))
    assert asyncio.run(run(tmp_path / "least", keep_bytes=LEAST, grace_s=0.2))[0] == model


class Killed(BaseException):
    """The process would be gone here."""


async def killed_at(looking: Upkeep, step: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Ends pruning at a step: a note that something goes, or a blob that does; False if it has fewer."""
    left = step

    def counted(whole: Any) -> Any:
        def one(*arguments: Any) -> Any:
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            return whole(*arguments)

        return one

    with monkeypatch.context() as patched:
        from edgewise.fleet.store.registry import Registry
        from edgewise.fleet.training.role_driver import RoleDriver

        for kind, name in ((FolderBlobs, "drop"), (Registry, "prune"), (RoleDriver, "let_go")):
            patched.setattr(kind, name, counted(getattr(kind, name)))
        with forgetful(looking):
            try:
                await looking.look(PRUNE)
            except Killed:
                return True
    return False


def test_a_coordinator_killed_at_any_step_of_pruning_finds_all_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, before = tmp_path / "state" / "cloud", tmp_path / "before"

    async def restarted(fleet: LoopbackFleet) -> None:
        await fleet.kill("cloud")
        if before.exists():
            shutil.rmtree(folder)
            shutil.copytree(before, folder)
        await fleet.restart("cloud")

    def finds_all(fleet: LoopbackFleet, newest: int) -> None:
        versions, runs = fleet.coordinator.versions, fleet.coordinator.runs
        assert [live.status.state for live in runs.all()] == ["completed", "completed", "cancelled"]
        for version in versions.registry.versions():
            is_here = all(map(versions.blobs.has, (version.graph, version.weights)))
            assert is_here or (version.number < newest and version.number in versions.registry.pruned())

    async def scene() -> int:
        async with LoopbackFleet(tmp_path, edge_of=EDGE_OF) as fleet:
            for seed in range(2):
                done = await fleet.train("fed_avg", num_rounds=2, seed=seed, protocol="synchronous", register=True)
            run = await fleet.submit("fed_avg", num_rounds=1000, protocol="synchronous")
            await fleet.operator.cancel(run)
            await fleet.until(lambda: fleet.coordinator.runs.status(run).state == "cancelled")
            fleet.nodes[CLOUD].blobs.put(b"nobody names it")
            await fleet.kill("cloud")
            shutil.copytree(folder, before)
            for step in range(100):
                await restarted(fleet)
                finds_all(fleet, done.version)
                is_killed = await killed_at(fleet.upkeep[CLOUD], step, monkeypatch)
                await fleet.kill("cloud")
                await fleet.restart("cloud")
                finds_all(fleet, done.version)
                if not is_killed:
                    assert not fleet.coordinator.versions.blobs.has(digest_of(b"nobody names it"))
                    return step
        raise AssertionError("pruning without an end")

    assert asyncio.run(scene()) >= 8


def graph(seed: int) -> Any:
    return two_exit_graph(seed=seed)


async def deployed(fleet: ServingFleet, seed: int) -> int:
    number = await fleet.register(graph(seed).model_bytes, "digits")
    ack = await fleet.operator.deploy(Deploy(number, (split_plan(graph(seed)),), ungated=True))
    assert ack.accepted, ack.reason
    return number


def test_versions_that_serve_and_the_way_back_stay_and_an_older_one_says_it_went(tmp_path: Path) -> None:
    async def scene() -> None:
        async with ServingFleet(tmp_path) as fleet:
            first, second, third = [await deployed(fleet, seed) for seed in range(3)]
            for node, answer in (await pruned(fleet)).items():
                assert (answer.cause, answer.num_gone > 0) == ("", True), node
            assert fleet.versions("device-1") == {"digits": third}
            await fleet.restart("device-1")
            assert fleet.versions("device-1") == {"digits": third}  # from its own disk
            with pytest.raises(RemoteError, match=r"version 1 of 'digits' was pruned.*--keep-bytes.*edgewise export"):
                await fleet.operator.graph(first)
            with pytest.raises(RemoteError, match="version 1 of 'digits' was pruned"):
                await fleet.operator.deploy(Deploy(first, (split_plan(graph(0)),)))
            write_backup(tmp_path / "state" / "cloud", tmp_path / "backup")
            assert restore(tmp_path / "backup", tmp_path / "again").versions == 3
            assert (await fleet.operator.rollback("digits")).version == second
            await fleet.until(lambda: fleet.versions("device-1") == {"digits": second})
            served = await fleet.infer("device-1", "digits", {"x": images(1)})
            assert str(served.observation.source) == "plan"

    asyncio.run(scene())


def test_nothing_goes_where_a_part_that_knows_does_not_run(tmp_path: Path) -> None:
    async def scene() -> None:
        async with LoopbackFleet(tmp_path, edge_of=EDGE_OF) as fleet:
            await fleet.train("scaffold", num_rounds=2, protocol="hierarchical")
            await fleet.until(lambda: has_ended(fleet, DEVICE))
            node, before = fleet.nodes[DEVICE], on_disk(fleet, DEVICE)
            assert before
            node.holders.clear()
            fleet.upkeep[DEVICE]._grace_s = 0.0
            answer = await fleet.upkeep[DEVICE].look(PRUNE)
            assert (answer.num_gone, on_disk(fleet, DEVICE)) == (0, before)
            assert "events.db in the state folder of device-a names blobs" in answer.cause

            def cannot_tell() -> Any:
                raise StoreError("the log is locked")

            node.holders["events.db"] = cannot_tell
            assert (await fleet.upkeep[DEVICE].look(PRUNE)).cause == "the log is locked"

    asyncio.run(scene())


def test_what_a_killed_process_had_begun_to_write_goes_at_the_start(tmp_path: Path) -> None:
    async def scene() -> None:
        async with LoopbackFleet(tmp_path, edge_of=EDGE_OF) as fleet:
            await fleet.kill("edge-1")
            folder = tmp_path / "state" / "edge-1"
            left = [folder / ".generation.7.0", folder / "blobs" / f".{'a' * 64}.7.12"]
            for path in (*left, folder / ".bashrc"):
                path.touch()
            await fleet.restart("edge-1")
            await fleet.until(lambda: not any(path.exists() for path in left))
            assert (folder / ".bashrc").exists()

    asyncio.run(scene())


def test_a_deployment_goes_back_far_enough_and_its_log_stays_short(tmp_path: Path) -> None:
    from edgewise.fleet.serving.deployment import Deployment, ModelDeployments
    from edgewise.fleet.serving.deployment_log import HISTORY, LOG, MOST_ENTRIES, DeploymentLog
    from edgewise.fleet.store.events import EventLog

    events = EventLog.open(tmp_path / "events.db")
    log, models = DeploymentLog(events), {"digits": ModelDeployments()}
    for number in range(1, 2 * MOST_ENTRIES):
        now = Deployment("digits", Deploy(number, (split_plan(graph(0)),)), log.begin(64 * number))
        log.deployed(now)
        models["digits"].history.append(now)
        log.forget_old(64 * number, models)
    assert len(events.read(LOG)) <= MOST_ENTRIES
    last, found = DeploymentLog(events).read()
    assert (last, found["digits"]) == (64 * number, models["digits"].history)
    assert len(found["digits"]) >= HISTORY
    events.close()


def test_an_operator_sees_who_holds_what_and_has_the_rest_let_go_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def scene() -> list[dict[str, Any]]:
        async with LoopbackFleet(tmp_path, edge_of=EDGE_OF) as fleet:
            await fleet.train("fed_avg", num_rounds=2, protocol="synchronous", register=True, name="first")
            told = []
            with forgetful(fleet.upkeep[CLOUD]):
                for prune in (False, True, False):
                    await state.show(Output(True), fleet.operator, prune=prune, keep_bytes=LEAST)
                    told.append(json.loads(capsys.readouterr().out))
                    await state.show(Output(False), fleet.operator, prune=False, keep_bytes=LEAST)
                    told[-1]["text"] = capsys.readouterr().out
            return told

    before, while_it_goes, after = asyncio.run(scene())
    assert before["node"] == "cloud"
    assert {row["what"]: row["stays"] for row in before["rows"]} == {"version 1 of tiny": True}
    assert before["num_going"] == while_it_goes["num_gone"] > 0 == before["num_gone"] == after["num_going"]
    assert "can go: `edgewise state --prune`" in before["text"]
    assert "nothing is there that could go" in after["text"]


def test_what_an_operator_offered_long_ago_goes_but_not_what_a_node_keeps(tmp_path: Path) -> None:
    for is_node in (False, True):
        folder = tmp_path / str(is_node)
        blobs = FolderBlobs(folder / "blobs")
        old, new = blobs.put(b"old"), blobs.put(b"new")
        os.utime(blobs.path(old), (0, 0))
        if is_node:
            (folder / "events.db").touch()
        operator._forget_offered(blobs, folder)
        assert [blobs.has(old), blobs.has(new)] == [is_node, True]


def test_an_unknown_version_is_still_unknown(tmp_path: Path) -> None:
    async def scene() -> None:
        async with LoopbackFleet(tmp_path, edge_of=EDGE_OF) as fleet:
            with pytest.raises(InputError, match="there is no model version 7"):
                fleet.coordinator.versions.kept(7)

    asyncio.run(scene())
