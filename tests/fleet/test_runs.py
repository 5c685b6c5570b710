"""Runs at a coordinator over a loopback fleet: what cannot start, who is left out and why, late and repeated updates."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgewise.codecs.bundle import bundle_to_bytes, encode_bundle
from edgewise.core.errors import InputError, RemoteError, StoreDamaged, StoreError
from edgewise.core.files import storing
from edgewise.core.ids import ClientId, NodeId, RoundNumber, RunId, Tier, digest_of
from edgewise.fleet.messages import INLINE_BYTES, LetterAck, RunLetter, RunStatus
from edgewise.fleet.store.events import EventLog
from edgewise.fleet.training import presence
from edgewise.fleet.training.node_training import NodeTraining
from edgewise.fleet.training.presence import Presence
from edgewise.fleet.training.runs import Runs
from edgewise.ledger.entry import Purpose
from edgewise.simulation.simulate import SimulationOptions, simulate_rounds
from edgewise.testing import LoopbackFleet, TinyTask
from edgewise.training.algorithms import make_algorithm
from edgewise.training.protocols.letters import Address, BlobName, UpdateReport
from edgewise.training.protocols.messages import Refusal

EDGE_OF = {"a": "edge-1", "b": "edge-1", "c": "edge-1"}
WORDS = {"name": "fed_avg"}
PROTOCOLS = ("synchronous", "hierarchical")
ONE_IS_EMPTY = '''"""b holds nothing."""

from edgewise.testing import tiny_task


class Task(tiny_task.TinyTask):
    def data(self, client):
        held = super().data(client)
        return type(held).of(held.inputs[:0], held.targets[:0]) if client == "b" else held
'''


def in_a_fleet(folder: Path, scene: Callable[[LoopbackFleet], Awaitable[Any]], **fleet: Any) -> Any:
    async def run() -> Any:
        async with LoopbackFleet(folder, edge_of=EDGE_OF, **fleet) as made:
            return await scene(made)

    return asyncio.run(run())


async def report(fleet: LoopbackFleet, to: str, run: RunId, number: int) -> LetterAck:
    """What `a` hears of an update of zeros."""
    device = fleet.nodes[NodeId("device-a")]
    coded, _ = encode_bundle({}, {"model": np.zeros(67, np.float32)}, None, np.random.default_rng(0))
    data = bundle_to_bytes(coded)
    blob = BlobName(digest_of(data), len(data))
    letter = UpdateReport(run=run, round=RoundNumber(number), client=ClientId("a"), update=blob, num_examples=20)
    role = "edge" if to.startswith("edge") else "coordinator"
    message, tensors = RunLetter(Address(role, to), letter), {"0": np.frombuffer(data, np.uint8)}
    return await device.ask(NodeId(to), "report", message, LetterAck, tensors, purpose=Purpose.TRAINING)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"protocol": "chain_letter"}, "protocols has no 'chain_letter'"),
        ({"algorithm": "fed_nothing"}, "algorithms has no 'fed_nothing'"),
        ({"quorum": 4}, "a quorum of 4 is asked, .* chooses 3 of 3 clients"),
        ({"start_version": 3}, "there is no model version 3"),
        ({"task": "cats"}, "no node of the fleet holds data of task 'cats'"),
        ({"model": np.zeros(3, np.float32)}, "the start has 3 entries, the task's model 67. The task does not match"),
    ],
)
def test_what_cannot_start_is_refused_with_its_cause(fields: Any, text: str, tmp_path: Path, monkeypatch: Any) -> None:
    async def scene(fleet: LoopbackFleet) -> None:
        monkeypatch.setattr(fleet.task, "name", fields.pop("task", "tiny"))
        with pytest.raises(RemoteError, match=text):
            await fleet.submit(**{"algorithm": WORDS, "num_rounds": 1, **fields})

    in_a_fleet(tmp_path, scene)


def test_a_name_is_given_once_and_an_unknown_run_is_said(tmp_path: Path) -> None:
    async def scene(fleet: LoopbackFleet) -> None:
        await fleet.submit(WORDS, num_rounds=1, name="one")
        with pytest.raises(RemoteError, match="there is a run 'one' already"):
            await fleet.submit(WORDS, num_rounds=1, name="one")
        with pytest.raises(RemoteError, match=r"there is no run 'two'\. Known: one"):
            await fleet.operator.status(RunId("two"))

    in_a_fleet(tmp_path, scene)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_client_without_examples_is_left_out_with_the_reason(protocol: str, tmp_path: Path) -> None:
    file = tmp_path / "task.py"
    file.write_text(ONE_IS_EMPTY)

    async def scene(fleet: LoopbackFleet) -> Any:
        return await fleet.train(WORDS, num_rounds=2, protocol=protocol, quorum=2)

    status = in_a_fleet(tmp_path, scene, task_file=file)
    assert [r.num_updates for r in status.rounds] == [2, 2]
    assert status.rounds[1].missing == {"b": "device-b holds no examples of client 'b'; it is left out."}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_node_with_another_model_says_so(protocol: str, tmp_path: Path) -> None:
    async def scene(fleet: LoopbackFleet) -> Any:
        other = fleet.workers[ClientId("b")]
        other.task_settings = {"hidden": 16}
        await other.load()
        return await fleet.train(WORDS, num_rounds=1, protocol=protocol, quorum=2)

    cause = in_a_fleet(tmp_path, scene).rounds[0].missing["b"]
    assert cause.startswith(
        "task 'tiny' on device-b has another model than run 'tiny-1' (131 entries here, 67 received)"
    )


def test_two_runs_at_once_end_as_they_would_alone(tmp_path: Path) -> None:
    async def scene(fleet: LoopbackFleet) -> Any:
        return await asyncio.gather(
            *(
                fleet.train(WORDS, num_rounds=3, seed=seed, protocol=protocol, name=f"{protocol}-{seed}")
                for seed, protocol in enumerate(PROTOCOLS * 2)
            )
        )

    for seed, status in enumerate(in_a_fleet(tmp_path, scene)):
        alone = simulate_rounds(
            TinyTask(), make_algorithm(WORDS), rounds=3, seed=seed, options=SimulationOptions("sequential")
        )
        assert status.model == digest_of(alone.vector.tobytes())


@pytest.mark.parametrize(("number", "accepted", "refusal"), [(2, True, Refusal.DUPLICATE), (1, False, Refusal.LATE)])
def test_after_the_end_a_repeated_update_is_acknowledged_and_a_late_one_not(
    number: int, accepted: bool, refusal: Refusal, tmp_path: Path
) -> None:
    async def scene(fleet: LoopbackFleet) -> LetterAck:
        status = await fleet.train(WORDS, num_rounds=2, protocol="synchronous")
        return await report(fleet, "cloud", status.run, number)

    ack = in_a_fleet(tmp_path, scene)
    assert (ack.accepted, ack.refusal) == (accepted, refusal)


def test_an_update_for_a_run_an_edge_has_no_part_in_is_not_kept(tmp_path: Path) -> None:
    ack = in_a_fleet(tmp_path, lambda fleet: report(fleet, "edge-1", RunId("old"), 1))
    assert (ack.accepted, ack.refusal) == (False, Refusal.WRONG_RUN)
    assert ack.text == "edge-1 has no part in run old; 'update/a/1/0' does not count."


def test_a_run_that_is_cancelled_ends_so_and_stays_so(tmp_path: Path) -> None:
    async def scene(fleet: LoopbackFleet) -> Any:
        for device in ("device-a", "device-b", "device-c"):
            fleet.fabric.cut(device)
        run = await fleet.submit(WORDS, num_rounds=1, name="stopped", clients=("a", "b", "c"), protocol="synchronous")
        waiting = await fleet.operator.status(run)
        assert (waiting.state, "quorum is 3" in waiting.cause) == ("running", True)
        await fleet.operator.cancel(run)
        return [status async for status in fleet.operator.watch(run)][-1]

    status = in_a_fleet(tmp_path, scene)
    assert status.state == "cancelled"
    assert "cancelled in round 1: cancelled by an operator" in status.cause


def test_a_complete_run_that_makes_no_version_has_failed_and_says_why(tmp_path: Path, monkeypatch: Any) -> None:
    async def scene(fleet: LoopbackFleet) -> Any:
        def full(*_: Any, **__: Any) -> Any:
            raise InputError("the disk is full.")

        monkeypatch.setattr(type(fleet.coordinator.versions), "register_vector", full)
        run = await fleet.submit(WORDS, num_rounds=1, register=True)
        return [status async for status in fleet.operator.watch(run)][-1]

    status = in_a_fleet(tmp_path, scene)
    assert (status.state, status.cause) == ("failed", "the run is complete but makes no version: the disk is full.")


def test_an_edge_that_was_away_is_told_which_runs_are_over(tmp_path: Path) -> None:
    async def scene(fleet: LoopbackFleet) -> None:
        roles, cloud = fleet.training[NodeId("edge-1")].roles, fleet.coordinator.runs.roles

        def cut_once_it_is_done(_: Any) -> None:
            driver = cloud.driver("coordinator", RunId("tiny-1"))
            if driver is not None and driver.is_over:
                fleet.fabric.cut("edge-1")

        status = await fleet.train(WORDS, num_rounds=2, protocol="hierarchical", on_status=cut_once_it_is_done)
        fleet.fabric.heal("edge-1")
        await fleet.until(lambda: roles.driver("edge", status.run) is None)
        await fleet.until(lambda: fleet.training[NodeId("edge-1")].events.runs() == ("ended",))

    in_a_fleet(tmp_path, scene)


def test_what_devices_and_edges_keep_of_a_run_goes_with_it(tmp_path: Path) -> None:
    async def scene(fleet: LoopbackFleet) -> list[int]:
        for seed in range(2):
            run = (await fleet.train("scaffold", num_rounds=3, seed=seed, protocol="hierarchical")).run
        roles = [fleet.training[NodeId(n)].roles for n in ("edge-1", "device-a", "device-b", "device-c")]
        await fleet.until(lambda: not any(r.driver(name, run) for r in roles for name in ("edge", "client")))
        await asyncio.sleep(0.1)  # blobs are dropped beside
        folders = [tmp_path / "state" / f"device-{c}" / kind for c in "abc" for kind in ("blobs", "kept")]
        return [len(list(folder.iterdir())) for folder in (*folders, tmp_path / "state" / "edge-1" / "blobs")]

    # Of each client's two runs the last control variate stays, for whoever uses what was kept; an edge keeps nothing.
    assert in_a_fleet(tmp_path, scene) == [0, 1, 0, 1, 0, 1, 0]


def test_an_order_an_edge_refuses_is_what_the_run_waits_for(tmp_path: Path) -> None:
    async def scene(fleet: LoopbackFleet) -> str:
        async def refuse(*_: Any) -> LetterAck:
            return LetterAck(False, None, "its disk is full")

        fleet.nodes[NodeId("edge-1")].route("control", RunLetter, refuse)
        run = await fleet.submit(WORDS, num_rounds=1, protocol="hierarchical")
        async with asyncio.timeout(10.0):
            async for status in fleet.operator.watch(run):
                if "its disk is full" in status.cause:
                    return status.cause
        raise AssertionError(status)

    assert "waits for edge edge-1 (it refuses the order: its disk is full)" in in_a_fleet(tmp_path, scene)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_was_told_of_closed_rounds_outlives_the_coordinator(protocol: str, tmp_path: Path) -> None:
    async def scene(fleet: LoopbackFleet) -> Any:
        before = await fleet.train(WORDS, num_rounds=2, protocol=protocol, name="told")
        here = fleet.coordinator
        restarted = Runs(here.node, here.events, here.versions, here.watch, lambda *_: None)
        restarted.replay()
        return before.rounds, restarted.status(RunId("told")).rounds

    before, after = in_a_fleet(tmp_path, scene)
    assert [(r.uplink_bytes > 0, r.downlink_bytes > 0, r.seconds > 0) for r in before] == [(True,) * 3] * 2
    assert repr(after) == repr(before)  # accuracies without held-out data are NaN, equal in print only


def test_a_round_whose_model_cannot_be_judged_is_told_all_the_same(tmp_path: Path) -> None:
    async def scene(fleet: LoopbackFleet) -> Any:
        def damaged(*_: Any) -> Any:
            raise StoreDamaged("the template is damaged.")

        fleet.coordinator.versions.calibration_scores = damaged  # type: ignore[method-assign]
        status = await fleet.train(WORDS, num_rounds=3, register=True)
        return [(record.round, np.isnan(record.accuracy)) for record in status.rounds]

    assert in_a_fleet(tmp_path, scene) == [(1, True), (2, True), (3, True)]


def test_a_run_that_is_over_keeps_little_in_memory_and_tells_all(tmp_path: Path) -> None:
    async def scene(fleet: LoopbackFleet) -> None:
        told: list[RunStatus] = []
        status = await fleet.train(WORDS, num_rounds=3, protocol="hierarchical", on_status=told.append)
        (live,) = fleet.coordinator.runs.all()
        await fleet.until(lambda: bool(live.packed))
        assert live.rounds == []
        assert live.view is not None
        assert len(live.view.rounds) == 1
        again = await fleet.operator.status(status.run)
        assert repr(again.rounds) == repr(live.status.rounds)  # an accuracy that nobody measured is nan
        assert [r.round for r in again.rounds] == [1, 2, 3]
        assert repr(again.rounds) == repr(told[-1].rounds)
        assert (live.done, live.row.rounds_done) == (3, 3)
        await fleet.kill("cloud")
        await fleet.restart("cloud")
        (live,) = fleet.coordinator.runs.all()
        assert live.packed
        assert repr(live.status.rounds) == repr(again.rounds)

    in_a_fleet(tmp_path, scene)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_who_is_lost_while_a_run_is_being_added_is_not_waited_for(
    protocol: str, tmp_path: Path, monkeypatch: Any
) -> None:
    async def scene(fleet: LoopbackFleet) -> Any:
        loop, append = asyncio.get_running_loop(), fleet.coordinator.events.append

        def lost_meanwhile(name: str, kind: str, data: bytes) -> None:
            if kind == "submitted":
                loop.call_soon_threadsafe(fleet.fabric.cut, "device-b")
            append(name, kind, data)

        monkeypatch.setattr(fleet.coordinator.events, "append", lost_meanwhile)
        async with asyncio.timeout(30.0):
            return await fleet.train(WORDS, num_rounds=2, protocol=protocol, quorum=2)

    status = in_a_fleet(tmp_path, scene)
    assert [r.num_updates for r in status.rounds] == [2, 2]


def test_a_run_hears_of_comings_and_goings_in_the_order_they_were_seen() -> None:
    events: list[str] = []

    async def dispatch(event: Any) -> tuple[()]:
        await asyncio.sleep(0.01 if type(event).__name__ == "ClientReturned" else 0)
        events.append(type(event).__name__)
        return ()

    async def run() -> None:
        driver: Any = SimpleNamespace(dispatch=dispatch, role_name="edge", state=None)
        info: Any = SimpleNamespace(
            node="device-b", client="b", tier=Tier.DEVICE, parent="edge-2", generation=1, num_examples=3
        )
        node: Any = SimpleNamespace(name="edge-2")
        watch: Any = None
        seen = Presence(node, watch, lambda: [driver])
        await asyncio.gather(seen.is_here(info), seen.is_lost(info, "cut"))

    asyncio.run(run())
    assert events == ["ClientReturned", "ClientLost"]


def test_who_comes_back_while_the_absent_are_given_up_is_not_given_up(monkeypatch: Any) -> None:
    monkeypatch.setattr(presence, "RETURN_GRACE_S", 0.0)
    there: list[Any] = []
    given_up: list[str] = []

    async def dispatch(event: Any) -> None:
        given_up.append(event.client)
        there.append(
            SimpleNamespace(node="device-b", info=SimpleNamespace(client="b", parent="", generation=1, num_examples=3))
        )

    driver: Any = SimpleNamespace(seen={"a", "b"}, dispatch=dispatch, role_name="edge", state=None)
    node: Any = SimpleNamespace(name="edge-1")
    watch: Any = SimpleNamespace(members=SimpleNamespace(alive=lambda *_: there))
    asyncio.run(Presence(node, watch, lambda: [driver]).miss_absent([driver]))
    assert given_up == ["a"]


def test_a_model_an_edge_has_no_room_for_is_what_the_run_waits_for(tmp_path: Path) -> None:
    async def scene(fleet: LoopbackFleet) -> str:
        blobs = fleet.nodes[NodeId("edge-1")].blobs

        def no_room(*_: Any) -> None:
            with storing(blobs.folder):
                raise OSError(28, "No space left on device")

        blobs.write_at = no_room  # type: ignore[method-assign]
        run = await fleet.submit(WORDS, num_rounds=1, protocol="hierarchical")
        async with asyncio.timeout(10.0):
            async for status in fleet.operator.watch(run):
                if "No space left" in status.cause:
                    return status.cause
        raise AssertionError(status)

    settings = {"hidden": INLINE_BYTES // 32}
    said = in_a_fleet(tmp_path, scene, settings=settings)
    assert re.search(r"edge-1 waits: the store '.*/edge-1/blobs' is full \(No space left on device\)", said), said


def test_an_edges_state_folder_of_0_1_0_is_refused(tmp_path: Path) -> None:
    (tmp_path / "edge.db").touch()
    nobody: Any = None
    with pytest.raises(StoreError, match=r"is of Edgewise 0\.1\.0, .* Give this node a new state folder"):
        NodeTraining(nobody, tmp_path, is_edge=True)


def test_who_was_there_all_the_time_is_not_said_to_be_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: list[str] = []
    append = EventLog.append_many

    def noted(log: EventLog, run: str, events: Any, **how: Any) -> int:
        listed = list(events)
        kinds.extend(kind for kind, _ in listed)
        return append(log, run, listed, **how)

    async def scene(fleet: LoopbackFleet) -> None:
        monkeypatch.setattr(EventLog, "append_many", noted)
        await fleet.train(WORDS, num_rounds=3, protocol="hierarchical")
        assert "Received" in kinds
        assert "ClientReturned" not in kinds

    in_a_fleet(tmp_path, scene)
