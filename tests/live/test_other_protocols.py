"""What clients keep, over kills; protocols out of lockstep, over kills and freezes; what is a client's own, in no frame.

Four devices under one edge; their model has a batch norm. Every frame that a node sends is in `World.capture`.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from edgewise.cli.nodes import list_nodes
from edgewise.cli.output import Output
from edgewise.core.ids import digest_of
from edgewise.core.seeds import Seeds
from edgewise.fleet.messages import Deploy, RunLetter, kind_of
from edgewise.fleet.store.events import EventLog
from edgewise.inference.serving_node import device_only_plan
from edgewise.models.flat import initial_vector
from edgewise.models.graph.graph import Graph
from edgewise.simulation.emulated.emulated_fleet import CLOUD, OPERATOR
from edgewise.testing.quadratics import run_rounds
from edgewise.training.algorithms import make_algorithm
from edgewise.training.local import make_engine
from edgewise.training.protocols.event_log import decode_event
from edgewise.training.protocols.letters import GossipReport, UpdateReport
from edgewise.training.protocols.messages import Received
from edgewise.transport.frame import Frame, decode_frame
from tests.fleet.test_own_entries import runs_of
from tests.live.small_fleet import EDGE, World

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(200)]
LOCAL = {"name": "sgd", "learning_rate": 0.1, "epochs": 1, "batch_size": 4}
FED_AVG = {"name": "fed_avg", "local": LOCAL}
FEEDBACK = {"name": "error_feedback", "codec": {"name": "top_k", "fraction": 0.25}}
SCAFFOLD = {"name": "scaffold", "local": LOCAL, "uplink": FEEDBACK}
PERSONAL = {
    "fed_bn": {"name": "fed_bn", "local": LOCAL},
    "fed_per": {"name": "fed_per", "own": ["3.*"], "local": LOCAL},
}


class CapturedWorld(World):
    """A world whose nodes keep a copy of every frame they send."""

    def make_fleet(self, folder: Any) -> Any:
        self.capture = folder / "capture"
        return super().make_fleet(folder)

    def sizes(self) -> dict[str, int]:
        """How much each node has sent so far."""
        assert self.capture is not None
        return {file.name: file.stat().st_size for file in self.capture.iterdir()}

    def sent(self, since: dict[str, int]) -> bytes:
        """What was sent since then."""
        assert self.capture is not None
        return b"".join(file.read_bytes()[since.get(file.name, 0) :] for file in sorted(self.capture.iterdir()))

    def frames(self, since: dict[str, int]) -> Iterator[Frame]:
        """The same, frame by frame; one that is being written is left out."""
        assert self.capture is not None
        for file in self.capture.iterdir():
            data, at = file.read_bytes(), since.get(file.name, 0)
            while at + 4 <= len(data):
                size = int.from_bytes(data[at : at + 4], "little")
                if at + 4 + size > len(data):
                    break
                yield decode_frame(data[at + 4 : at + 4 + size])
                at += 4 + size

    def reported(self, run: str, since: dict[str, int]) -> dict[str, np.ndarray]:
        """Models that clients came to by gossip, as they report them."""
        found = {}
        for frame in self.frames(since):
            if frame.kind == kind_of(RunLetter) and frame.run == run:
                letter = frame.read(RunLetter).letter
                if isinstance(letter, GossipReport):
                    found[letter.client] = frame.array("0").view("<f4")
        return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CapturedWorld]:
    with CapturedWorld(tmp_path_factory.mktemp("protocols"), devices=4, batch_norm=True) as made:
        yield made


@pytest.fixture(autouse=True)
def restored(world: CapturedWorld) -> Iterator[None]:
    """Whatever a test broke is whole again after it."""
    yield
    world.go()
    world.fleet.children["device-2"].send_signal(signal.SIGCONT)
    for node in (CLOUD, *world.fleet.devices):
        if not world.fleet.children[node].running:
            world.run(world.restart(node))


def test_what_a_client_keeps_outlives_kills_in_a_round_and_between_two(world: CapturedWorld) -> None:
    """SCAFFOLD with error feedback: controls and residuals are on the device's disk, under `--state`."""
    model = digest_of(world.simulated("hierarchical", 3, algorithm=SCAFFOLD))

    async def counts(run: str, number: int) -> bool | None:
        """Whether the edge has taken client-1's update of a round."""
        reader = EventLog.open(world.folder / "state" / EDGE / "events.db", read_only=True)
        try:
            events = [decode_event(e.payload) for e in reader.read(f"edge/{run}") if e.kind == "Received"]
        finally:
            reader.close()
        letters = [event.letter for event in events if isinstance(event, Received)]
        return any(isinstance(a, UpdateReport) and (a.client, a.round) == ("client-1", number) for a in letters) or None

    async def scene() -> list[Any]:
        await world.all_here()
        await world.submit("whole", num_rounds=3, algorithm=SCAFFOLD)
        statuses = [await world.end_of("whole")]
        world.stop("client-0", "client-1")
        await world.submit("killed", num_rounds=3, algorithm=SCAFFOLD)
        await world.stand("client-0", "client-1")
        await world.restart("device-2")  # while it trains
        world.go("client-1")
        await world.eventually(lambda: counts("killed", 1))
        await world.restart("device-2")  # its update counts, the round waits for another's
        world.go()
        return [*statuses, await world.end_of("killed")]

    for status in world.run(scene()):
        assert [(r.num_updates, r.missing) for r in status.rounds] == [(4, {})] * 3
        assert status.model == model


def test_buffered_goes_on_without_a_frozen_device_which_takes_part_again(world: CapturedWorld) -> None:
    protocol, rounds = {"name": "buffered", "concurrency": 4, "buffer_size": 2}, 40

    async def scene() -> Any:
        await world.all_here()
        world.stop("client-0", "client-1", "client-2")
        await world.submit("frozen", num_rounds=rounds, protocol=protocol, algorithm=FED_AVG)
        await world.stand("client-0", "client-1", "client-2")  # client-3 alone does not fill a buffer
        world.fleet.children["device-2"].send_signal(signal.SIGSTOP)
        world.go("client-1")
        await world.rows(lambda rows: rows["device-2"].state == "gone")
        world.go("client-2")
        before = await world.rounds_of("frozen", 2)
        assert (before.state, {r.num_updates for r in before.rounds}) == ("running", {2})
        world.stop("client-2")
        await world.stand("client-2")
        stands = len((await world.operator.status("frozen")).rounds)  # type: ignore[arg-type]
        world.fleet.children["device-2"].send_signal(signal.SIGCONT)
        after = await world.rounds_of("frozen", stands + 1)
        world.go()
        return stands, after, await world.end_of("frozen")

    stands, after, status = world.run(scene())
    assert len(after.rounds) > stands < rounds
    assert (status.state, len(status.rounds)) == ("completed", rounds)
    assert not any("client-1" in r.missing for r in status.rounds[stands:])


def spread(values: dict[str, np.ndarray]) -> float:
    """Largest distance of an entry over clients."""
    return float(np.ptp(np.stack(list(values.values())), axis=0).max())


def test_gossip_ends_without_its_coordinator(world: CapturedWorld) -> None:
    since = world.sizes()

    async def all_reported() -> dict[str, np.ndarray] | None:
        found = world.reported("alone", since)
        return found if len(found) == 4 else None

    async def scene() -> tuple[Any, Any]:
        await world.all_here()
        world.stop(*world.clients)
        await world.submit("alone", protocol="gossip", algorithm=FED_AVG)
        await world.stand(*world.clients)
        await world.fleet.children[CLOUD].kill()
        world.go()
        values = await world.eventually(all_reported)
        assert not world.fleet.children[CLOUD].running
        await world.restart(CLOUD)
        return values, await world.end_of("alone")

    values, status = world.run(scene())
    assert spread(values) <= 1e-5
    assert (status.state, status.rounds[-1].num_updates) == ("completed", 4)
    assert "all the mass is there" in status.cause


def test_gossip_ends_without_an_agent_and_says_what_went_with_it(world: CapturedWorld) -> None:
    since, protocol = world.sizes(), {"name": "gossip", "mixing": 25}

    async def scene() -> Any:
        await world.all_here()
        world.stop(*world.clients)
        await world.submit("three", protocol=protocol, algorithm=FED_AVG, quorum=3, round_deadline_s=1.0)
        await world.stand(*world.clients)
        await world.fleet.children["device-4"].kill()
        world.go()
        return await world.end_of("three")

    status = world.run(scene())
    assert status.state == "completed", status.cause
    assert (status.rounds[-1].num_updates, list(status.rounds[-1].missing)) == (3, ["client-3"])
    values = world.reported("three", since)
    assert sorted(values) == ["client-0", "client-1", "client-2"]
    assert spread(values) <= 1e-5
    lost = re.search(r"lost with client-3 .*: ([\d.]+)% of the mass", status.cause)
    assert lost is not None, status.cause
    assert 10.0 < float(lost[1]) < 60.0  # its own quarter, and what was on its way to it


@pytest.mark.parametrize("name", PERSONAL)
def test_what_is_a_clients_own_is_in_no_frame(world: CapturedWorld, name: str) -> None:
    since, algorithm = world.sizes(), make_algorithm(PERSONAL[name])

    async def scene() -> Any:
        await world.all_here()
        await world.submit(name, seed=5, algorithm=PERSONAL[name], register=name == "fed_bn")
        return await world.end_of(name)

    status = world.run(scene())
    sent = world.sent(since)
    clients, start = {c: world.task.data(c) for c in world.clients}, initial_vector(world.task, Seeds(5))
    for num_rounds in (1, 2):
        ran = run_rounds(algorithm, make_engine("sequential", world.task), clients, start, num_rounds, seed=5)
        for client, kept in ran.kept.items():
            secrets = runs_of(kept["own"]).difference(*(runs_of(model) for model in (start, *ran.models)))
            assert len(secrets) > 5
            assert not [run for run in secrets if run in sent], f"{client} in round {num_rounds}"
    assert status.model == digest_of(ran.model.tobytes())
    assert all(run in sent for run in runs_of(ran.models[0]))  # what is shared is there to be found


def test_a_personal_version_is_deployed_by_force_only_and_nodes_says_what_it_lacks(
    world: CapturedWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    async def scene() -> tuple[Any, Any]:
        await world.all_here()
        await world.submit("cautious", num_rounds=1, seed=6, algorithm=PERSONAL["fed_bn"], register=True)
        version = (await world.end_of("cautious")).version
        plan = device_only_plan(Graph.load(await world.operator.graph(version)))
        refused = await world.operator.deploy(Deploy(version, (plan,)))
        assert (await world.operator.deploy(Deploy(version, (plan,), force=True))).accepted
        cloud, identity = world.fleet.endpoint(CLOUD), str(world.fleet.identity(OPERATOR))
        await list_nodes(Output(True), cloud, identity, "small", False)
        return version, refused

    version, refused = world.run(scene())
    caution = f"version {version} is the part that its clients share; "
    assert (refused.accepted, caution in refused.reason) == (False, True)
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed["caution"]["stoppable"].startswith(caution)
    assert printed["caution"]["stoppable"] in refused.reason
