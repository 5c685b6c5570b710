"""Runs at a coordinator over a loopback fleet: what cannot start, who is left out and why, late and repeated updates."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgewise.core.errors import InputError, RemoteError
from edgewise.core.ids import ClientId, NodeId, RoundNumber, RunId, Tier, digest_of
from edgewise.core.seeds import Seeds
from edgewise.fleet.messages import INLINE_BYTES, Ack, DismissOrder, FoldOrder, SubmitRun, UpdateReport
from edgewise.fleet.operator.operator import encode_layout
from edgewise.fleet.training import run_presence
from edgewise.fleet.training.run_presence import Presence
from edgewise.fleet.training.runs import Runs
from edgewise.ledger.entry import Purpose
from edgewise.models.export import export_template
from edgewise.models.flat import initial_vector
from edgewise.simulation.simulate import SimulationOptions, simulate_rounds
from edgewise.testing import LoopbackFleet, TinyTask
from edgewise.training.algorithms import make_algorithm
from edgewise.training.protocols.regions import ClientHomed

HOMES = {"a": "edge-1", "b": "edge-1", "c": "edge-1"}
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
        async with LoopbackFleet(folder, homes=HOMES, **fleet) as made:
            return await scene(made)

    return asyncio.run(run())


def wish(**fields: Any) -> tuple[SubmitRun, dict[str, Any]]:
    """A run of the tiny task, and what travels with it."""
    graph, layout = export_template(TinyTask())
    model = fields.pop("model", initial_vector(TinyTask(), Seeds(0)))
    given = {"task": "tiny", "algorithm": WORDS, "num_rounds": 1, "seed": 0, "layout": encode_layout(layout), **fields}
    return SubmitRun(**given), {"graph": np.frombuffer(graph, np.uint8), "model": model}


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"protocol": "gossip"}, "there is no protocol 'gossip'"),
        ({"task": "cats"}, "no node of the fleet holds data of task 'cats'"),
        ({"model": np.zeros(3, np.float32)}, "the start has 3 entries, the task's model 67. The task does not match"),
    ],
)
def test_what_cannot_start_is_refused_with_its_cause(fields: Any, text: str, tmp_path: Path) -> None:
    async def scene(fleet: LoopbackFleet) -> None:
        with pytest.raises(RemoteError, match=text):
            await fleet.operator.submit(*wish(**fields))

    in_a_fleet(tmp_path, scene)


def test_a_name_is_given_once_and_an_unknown_run_is_said(tmp_path: Path) -> None:
    async def scene(fleet: LoopbackFleet) -> None:
        await fleet.operator.submit(*wish(name="one", register=False))
        with pytest.raises(RemoteError, match="there is a run 'one' already"):
            await fleet.operator.submit(*wish(name="one"))
        with pytest.raises(RemoteError, match=r"there is no run 'two'\. Known: one"):
            await fleet.operator.status(RunId("two"))

    in_a_fleet(tmp_path, scene)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_client_without_examples_is_left_out_with_the_reason(protocol: str, tmp_path: Path) -> None:
    file = tmp_path / "task.py"
    file.write_text(ONE_IS_EMPTY)

    async def scene(fleet: LoopbackFleet) -> Any:
        return await fleet.train(WORDS, num_rounds=2, protocol=protocol, quorum_fraction=0.6)

    status = in_a_fleet(tmp_path, scene, task_file=file)
    assert [r.num_updates for r in status.rounds] == [2, 2]
    assert status.rounds[1].missing == {"b": "device-b holds no examples of client 'b'; it is left out."}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_node_with_another_model_says_so(protocol: str, tmp_path: Path) -> None:
    async def scene(fleet: LoopbackFleet) -> Any:
        other = fleet._trainers[1]
        other.task_settings = {"hidden": 16}
        await other.load()
        return await fleet.train(WORDS, num_rounds=1, protocol=protocol, quorum_fraction=0.6)

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


@pytest.mark.parametrize(("number", "accepted", "reason"), [(2, True, "duplicate"), (1, False, "late")])
def test_after_the_end_a_repeated_update_is_acknowledged_and_a_late_one_not(
    number: int, accepted: bool, reason: str, tmp_path: Path
) -> None:
    async def scene(fleet: LoopbackFleet) -> Ack:
        status = await fleet.train(WORDS, num_rounds=2, protocol="synchronous")
        report = UpdateReport(status.run, RoundNumber(number), ClientId("a"), 20.0, {}, (67,))
        device = fleet.nodes[NodeId("device-a")]
        return await device.ask(
            NodeId("cloud"), "report", report, Ack, {"values": np.zeros(67, np.float32)}, purpose=Purpose.TRAINING
        )

    ack = in_a_fleet(tmp_path, scene)
    assert (ack.accepted, ack.details["reason"]) == (accepted, reason)


def test_an_update_for_a_run_an_edge_has_no_part_in_is_not_kept(tmp_path: Path) -> None:
    async def scene(fleet: LoopbackFleet) -> Ack:
        report = UpdateReport(RunId("old"), RoundNumber(1), ClientId("a"), 20.0, {}, (67,))
        device = fleet.nodes[NodeId("device-a")]
        return await device.ask(NodeId("edge-1"), "report", report, Ack, purpose=Purpose.TRAINING)

    ack = in_a_fleet(tmp_path, scene)
    assert ack == Ack(False, "edge-1 has no part in run old; the update does not count")


def test_a_run_that_is_cancelled_ends_so_and_stays_so(tmp_path: Path) -> None:
    async def scene(fleet: LoopbackFleet) -> Any:
        for device in ("device-a", "device-b", "device-c"):
            fleet.fabric.cut(device)
        run = await fleet.operator.submit(*wish(name="stopped", clients=("a", "b", "c")))
        waiting = await fleet.operator.status(run)
        assert (waiting.state, "quorum is 2" in waiting.cause) == ("running", True)
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
        run = await fleet.operator.submit(*wish(register=True))
        return [status async for status in fleet.operator.watch(run)][-1]

    status = in_a_fleet(tmp_path, scene)
    assert (status.state, status.cause) == ("failed", "the run is complete but makes no version: the disk is full.")


def test_an_edge_that_was_away_is_told_which_runs_are_over(tmp_path: Path) -> None:
    async def scene(fleet: LoopbackFleet) -> tuple[RunId, ...]:
        status = await fleet.train(WORDS, num_rounds=1, protocol="hierarchical")
        heard: asyncio.Future[tuple[RunId, ...]] = asyncio.get_running_loop().create_future()

        async def hear(order: DismissOrder, *_: Any) -> Ack:
            heard.set_result(order.runs)
            return Ack()

        fleet.nodes[NodeId("edge-1")].route("control", DismissOrder, hear)
        fleet.fabric.cut("edge-1")
        fleet.fabric.heal("edge-1")
        assert status.run == "tiny-1"
        return await asyncio.wait_for(heard, 10.0)

    assert in_a_fleet(tmp_path, scene) == ("tiny-1",)


def test_an_order_an_edge_refuses_is_what_the_run_waits_for(tmp_path: Path) -> None:
    async def scene(fleet: LoopbackFleet) -> str:
        async def refuse(*_: Any) -> Ack:
            return Ack(False, "its disk is full")

        fleet.nodes[NodeId("edge-1")].route("control", FoldOrder, refuse)
        run = await fleet.operator.submit(*wish(register=False, protocol="hierarchical"))
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
            return await fleet.train(WORDS, num_rounds=2, protocol=protocol, quorum_fraction=0.6)

    status = in_a_fleet(tmp_path, scene)
    assert [r.num_updates for r in status.rounds] == [2, 2]


def test_a_run_hears_of_comings_and_goings_in_the_order_they_were_seen() -> None:
    told: list[str] = []

    async def dispatch(event: Any) -> tuple[()]:
        await asyncio.sleep(0.01 if isinstance(event, ClientHomed) else 0)
        told.append(type(event).__name__)
        return ()

    async def run() -> None:
        submitted = SimpleNamespace(config=SimpleNamespace(clients=("b",)))
        driver = SimpleNamespace(dispatch=dispatch, state=SimpleNamespace(homes={"b": "edge-1"}))
        gathering = SimpleNamespace(round=1)
        live: Any = SimpleNamespace(
            hierarchical=True, submitted=submitted, driver=driver, state=SimpleNamespace(gathering=gathering)
        )
        info: Any = SimpleNamespace(node="device-b", client="b", tier=Tier.DEVICE, parent="edge-2", epoch=1)
        nobody: Any = None
        presence = Presence(nobody, nobody, nobody)
        await asyncio.gather(presence.is_here([live], info), presence.is_lost([live], info, "cut"))

    asyncio.run(run())
    assert told == ["ClientHomed", "ClientReturned", "ClientLost"]


def test_who_comes_back_while_the_absent_are_given_up_is_not_given_up(monkeypatch: Any) -> None:
    monkeypatch.setattr(run_presence, "RETURN_GRACE_S", 0.0)
    there: list[Any] = []
    told: list[str] = []

    async def dispatch(event: Any) -> None:
        told.append(event.client)
        there.append(SimpleNamespace(node="device-b", info=SimpleNamespace(client="b")))

    known = SimpleNamespace(absence="")
    state = SimpleNamespace(gathering=SimpleNamespace(members={"a": known, "b": known}))
    live: Any = SimpleNamespace(
        is_open=True, hierarchical=False, state=state, driver=SimpleNamespace(dispatch=dispatch)
    )
    node: Any = SimpleNamespace(name="cloud")
    watch: Any = SimpleNamespace(members=SimpleNamespace(alive=lambda: there))
    asyncio.run(Presence(node, watch, dispatch).miss_absent([live]))  # type: ignore[arg-type]
    assert told == ["a"]


def test_a_model_an_edge_has_no_room_for_is_what_the_run_waits_for(tmp_path: Path) -> None:
    async def scene(fleet: LoopbackFleet) -> str:
        def no_room(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        fleet.nodes[NodeId("edge-1")].blobs.write_at = no_room  # type: ignore[method-assign]
        graph, layout = export_template(fleet.task)
        order = SubmitRun("tiny", WORDS, 1, 0, encode_layout(layout), register=False, protocol="hierarchical")
        model = initial_vector(fleet.task, Seeds(0))
        run = await fleet.operator.submit(order, {"graph": np.frombuffer(graph, np.uint8), "model": model})
        async with asyncio.timeout(10.0):
            async for status in fleet.operator.watch(run):
                if "No space left" in status.cause:
                    return status.cause
        raise AssertionError(status)

    settings = {"hidden": INLINE_BYTES // 32}
    assert "waits for edge edge-1 (it refuses the order" in in_a_fleet(tmp_path, scene, settings=settings)
