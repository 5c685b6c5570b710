"""A loopback fleet whose nodes are processes of a `VirtualLoop`: each a lane, with a disk and a wall clock of its own.

Faults act on it through the methods here, and come at a *moment* of a node: the n-th thing it did, be it a callback, a frame it
sent or an act of its disk.
"""

from __future__ import annotations

import asyncio
import contextvars
import datetime as dt
import hashlib
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from edgewise.chaos.faulty_links import LEASE_S, FaultyLinks
from edgewise.chaos.fixed_identities import BEGINNING, fixed_identity
from edgewise.chaos.virtual_disk import Flipped, VirtualDisk
from edgewise.chaos.virtual_loop import LANE, Died, Lane, VirtualLoop
from edgewise.chaos.witness import RememberingWorker, Witness, WitnessedNode
from edgewise.core.files import watch_disk
from edgewise.core.ids import ClientId, Digest, NodeId, RunId, Tier, digest_of
from edgewise.fleet.coordinator import Coordinator
from edgewise.fleet.messages.fleet_events import AnyEvent
from edgewise.fleet.messages.message import INLINE_BYTES
from edgewise.fleet.node.node import Node
from edgewise.fleet.node.settings import AgentSettings
from edgewise.fleet.operator.operator import Operator
from edgewise.fleet.training.live_run import LiveRun
from edgewise.fleet.training.node_training import NodeTraining
from edgewise.fleet.training.role_driver import MOST_SPARE
from edgewise.ledger.entry import Direction
from edgewise.security.verifier import Verifier
from edgewise.testing.fleet import CLOUD, NOBODY, OPERATOR, LoopbackFleet
from edgewise.training.protocols.run_spec import RunSpec
from edgewise.training.protocols.run_state import Phase
from edgewise.transport.loopback import LoopbackTransport, Parcel

MALLORY = ClientId("m")
"""A client that takes part in no run: the crafted peer's."""
_PUBLISHED = frozenset(event.__struct_config__.tag for event in AnyEvent.__args__)
"""Kinds of frames that are counted once and go to whoever listens."""
START_AGAIN_S = 1.0
"""A node that cannot start, as on a full disk, is tried again after so long."""
MOST_STARTS = 60
FEW_SPARE = 3
"""Where blobs are pulled, what falls free goes at once, also in the middle of a run."""


class VirtualFleet(LoopbackFleet):
    """The fleet.

    Args:
        folder: In memory; wiped by whoever made it.
        loop: Its time and order.
        rng: Draws what happens on links and disks.
        edge_of: As of `LoopbackFleet`.
        inline_bytes: As of `Node`.
        long_work: Whether local work counts as long, so that its results are kept over a crash.
        **settings: As of `LoopbackFleet`.

    Attributes:
        lanes: The process of each node.
        moments: How many things each node has done.
        witness: What really happened.
        links: Their frames.
        quorum: Updates that a round needs; 0 for all.
        leases_end_s: When the last connection of a node that lost its power is given up.
        torn: Nodes whose disk may hold torn files: their power was lost.
        away: Nodes that left and come back when the run is over.
        flipped: Blobs that were flipped on disk.
        is_cancelled: Whether the run was told to end.
        unable: Why a node could not start again, as it was told.
    """

    def __init__(
        self,
        folder: Path,
        loop: VirtualLoop,
        rng: random.Random,
        *,
        edge_of: Mapping[str, str],
        inline_bytes: int,
        long_work: bool = False,
        **settings: Any,
    ) -> None:
        self.links = FaultyLinks(rng, self._on_parcel)
        super().__init__(folder, edge_of=edge_of, link=self.links, **settings)
        self.loop, self.rng = loop, rng
        self.lanes: dict[str, Lane] = {}
        self.disks: dict[str, VirtualDisk] = {}
        self.moments: Counter[str] = Counter()
        self.witness = Witness(loop.time)
        self.flipped: list[Flipped] = []
        self.is_cancelled = False
        self.unable: list[str] = []
        self.wall_jump_s: dict[str, float] = {}
        self.valid_s: dict[str, float] = {}
        self.down: set[str] = set()
        self.quorum = 0
        self.leases_end_s = 0.0
        self.torn: set[str] = set()
        self.away: set[str] = set()
        self.on_moment: Callable[[str], None] = lambda _: None
        self.trace = hashlib.blake2b(digest_size=16)
        self.taken: list[str] = []
        self.run = RunId("")
        self.counted: list[tuple[NodeId, int, int]] = []
        self._inline_bytes = inline_bytes
        self._long_work = long_work
        self._most_spare = MOST_SPARE if inline_bytes >= INLINE_BYTES else FEW_SPARE
        self._deaths: dict[str, asyncio.Event] = {}
        self._buried: list[Any] = []
        self._counted_nodes: list[Node] = []
        self._beside: set[asyncio.Task[None]] = set()
        loop.on_step = self._on_step

    async def __aenter__(self) -> VirtualFleet:
        await self._begin(CLOUD, super()._start_coordinator)
        for edge in dict.fromkeys(edge for edge in self._edge_of.values() if edge):
            await self._begin(edge, partial(super()._start_edge, edge))
        for client in self._edge_of:
            await self._begin(f"device-{client}", partial(super()._start_device, client))
        await self._begin(OPERATOR, self._start_operator)
        await self._all_known()
        return self

    async def close(self) -> None:
        """Stops every node that runs, each in its own process, the devices first."""
        for name in (*reversed(self.lanes), CLOUD):
            if name in self.nodes and not self.lanes[name].is_dead and name not in self.down:
                await self._within(name, partial(self._leave, name))
                self.disks[name].close()
                self.down.add(name)

    @property
    def clients(self) -> tuple[str, ...]:
        """Who takes part in the run."""
        return tuple(str(client) for client in self._edge_of if client != MALLORY)

    @property
    def live(self) -> LiveRun | None:
        """The run as its coordinator has it; None while there is none."""
        return None if CLOUD in self.down else self.coordinator.runs._runs.get(self.run)

    @property
    def round(self) -> int:
        """The run's current round; 0 where nobody could say."""
        view = None if self.live is None else self.live.view
        return 0 if view is None else int(view.round)

    @property
    def spec(self) -> RunSpec:
        """The run's spec, as far as it is known."""
        return self.live.submitted.config.spec if self.live is not None else RunSpec(run=self.run, algorithm={})

    def can_spare(self, device: str) -> bool:
        """Whether the run can do without a device for good: with others alone, an open round finds its quorum."""
        state = None if self.live is None else self.live.driver.state
        if not self.quorum or state is None:
            return False
        run = getattr(state, "run", state)  # an edge's tasks are beside the run
        others = [client for client in run.collection.cohort if f"device-{client}" != device]
        return run.phase is not Phase.OPEN or len(others) >= self.quorum

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Does something beside, in no node's process."""
        task = self.loop.create_task(work, name=name, context=contextvars.Context())
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)
        return task

    def tell(self, what: str) -> None:
        """Notes a word in the trace, which two runs of a campaign have in common."""
        self.trace.update(f"{what}@{self.loop.time():.6f}\n".encode())

    def crash(self, name: str, *, power: bool) -> None:
        """Ends a node's process at once, wherever it is; the others hear of it as of such an end.

        Args:
            name: The node.
            power: Whether its power is gone, and with it what no sync had made last.
        """
        lane = self.lanes[name]
        if lane.is_dead:
            return
        self.tell(f"crash {name} {power}")
        self.loop.kill(lane)
        self.down.add(name)
        self._deaths[name].set()
        self.loop.call_soon(self._bury, name, lane, power, context=contextvars.Context())

    async def start_again(self, name: str) -> None:
        """Starts a node from its disk as a new incarnation; tried for a while where it cannot."""
        for attempt in range(MOST_STARTS):
            try:
                await self._begin(name, self._starting(name))
                return
            except Exception as error:
                self.tell(f"cannot start {name}")
                self.crash(name, power=False)
                if attempt == MOST_STARTS - 1:
                    self.unable.append(f"{name} cannot be started again: {type(error).__name__}: {error}")
                await asyncio.sleep(START_AGAIN_S)

    def freeze(self, name: str) -> None:
        """Holds a node's process; its links are given up when their lease has run out."""
        lane = self.lanes[name]
        lane.frozen += 1
        self._cut_later(name, lambda: lane.frozen > 0 and not lane.is_dead)

    def thaw(self, name: str, lane: Lane) -> None:
        """Lets a process go on; the links that were given up are back, also if another process uses them by now."""
        lane.frozen -= 1
        self.fabric.heal(name)

    def flip_blob(self, name: str) -> bool:
        """Has bits of one of a node's blobs flip on its disk; returns whether it has any."""
        path = self.disks[name].flip_blob()
        if path is not None:
            self.tell(f"flip {name} {path.name}")
            self.flipped.append(flipped := Flipped(name, path.parent.name, Digest(path.name)))
            if flipped.folder == "kept":  # of nobody else: its client says so, and begins anew
                self.witness.have_lost.add(name.removeprefix("device-"))
        return path is not None

    def hush(self, name: str, *, deaf: bool) -> None:
        """Makes a link half-open: nothing arrives, or nothing leaves; it is given up when its lease has run out."""
        weather = self.links.of(name)
        weather.deaf, weather.mute = weather.deaf or deaf, weather.mute or not deaf
        self._cut_later(name, lambda: weather.deaf or weather.mute)

    def wall(self, name: str) -> dt.datetime:
        """A node's wall clock."""
        return BEGINNING + dt.timedelta(seconds=self.loop.time() + self.wall_jump_s.get(name, 0.0))

    def _cut_later(self, name: str, still: Callable[[], bool]) -> None:
        def cut() -> None:
            if still():
                self.fabric.cut(name)

        self.loop.call_later(LEASE_S, cut, context=contextvars.Context())

    def _bury(self, name: str, lane: Lane, power: bool) -> None:
        node = self.nodes.get(NodeId(name))
        for task in self.loop.tasks_of(lane):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            self._buried.append(task)
        lasting = self._whole(name, self.witness.must_last(name))
        self.disks[name].crash(power=power)
        if lost := lasting - self._whole(name, lasting):
            self.witness.wrongs.append(f"{name} has lost blob {min(lost)[:12]} with its power, which a run of it names")
        if power:
            self.torn.add(name)
        elif name not in self.torn:
            files = (self.disks[name].root / "blobs").glob("[0-9a-f]*")
            named = {Digest(file.name) for file in files if not file.suffix}
            if torn := named - self._whole(name, named) - {each.digest for each in self.flipped if each.node == name}:
                self.witness.wrongs.append(f"{name} was killed and left blob {min(torn)[:12]} in part under its name")
        training, worker = self.training.pop(NodeId(name), None), None
        self._buried.append((node, training, self.coordinator if name == CLOUD else None, worker))
        if node is None:
            return
        self._count(node)
        for transport in node.uplinks:
            assert isinstance(transport, LoopbackTransport)
            transport._is_open = False
            if power:  # nobody closes its connections: they are given up when their lease has run out
                self.leases_end_s = self.loop.time() + LEASE_S + 0.1
                self.loop.call_later(LEASE_S, self.fabric.withdraw_all, transport, context=contextvars.Context())
            else:  # its connections end after what was under way on them
                end_s = self.links.last_due_s(node.name)
                self.loop.call_at(end_s, self.fabric.withdraw_all, transport, context=contextvars.Context())

    def _whole(self, name: str, digests: set[Digest]) -> set[Digest]:
        """Those of some blobs that are on a node's disk as their names say."""
        files = {digest: self.disks[name].root / "blobs" / digest for digest in digests}
        return {d for d, file in files.items() if file.exists() and digest_of(file.read_bytes()) == d}

    def _count(self, node: Node) -> None:
        if any(node is other for other in self._counted_nodes):
            return
        self._counted_nodes.append(node)
        rows = [row for row in node.counter.entries() if row.kind not in _PUBLISHED]
        sent = sum(row.size_bytes for row in rows if row.direction is Direction.SENT)
        self.counted.append((node.name, sent, sum(row.size_bytes for row in rows) - sent))

    def _starting(self, name: str) -> Callable[[], Coroutine[Any, Any, None]]:
        if name == CLOUD:
            return super()._start_coordinator
        if name == OPERATOR:
            return self._start_operator
        if name in self._edge_of.values():
            return partial(super()._start_edge, NodeId(name))
        return partial(super()._start_device, ClientId(name.removeprefix("device-")))

    async def _begin(self, name: str, start: Callable[[], Coroutine[Any, Any, None]]) -> None:
        lane = self.lanes[name] = Lane(name)
        disk = self.disks.setdefault(
            name, VirtualDisk(self._state(NodeId(name)), self.rng, partial(self._on_act, name))
        )
        disk.begin(lane)
        self._deaths[name] = asyncio.Event()
        await self._within(name, start)
        if not lane.is_dead:
            self.down.discard(name)

    async def _within(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Does work in a node's process; returns also when that dies of it."""
        context = contextvars.Context()
        context.run(LANE.set, self.lanes[name])
        context.run(watch_disk, self.disks[name])
        task = self.loop.create_task(work(), name=f"begin {name}", context=context)
        death = self.loop.create_task(self._deaths[name].wait())
        await asyncio.wait({task, death}, return_when=asyncio.FIRST_COMPLETED)
        death.cancel()
        if task.done() and not self.lanes[name].is_dead:
            task.result()

    async def _leave(self, name: str) -> None:
        node = self.nodes[NodeId(name)]
        await node.close()
        if node.name in self.upkeep:
            await self.upkeep[node.name].close()
        worker = self.workers.get(ClientId(name.removeprefix("device-")))
        if worker is not None:
            worker.close()
        if node.name in self.training:
            await self.training[node.name].close()
        elif name == CLOUD:
            await self.coordinator.close()
        self._count(node)

    async def _start_operator(self) -> None:
        self.operator = Operator(self._node(OPERATOR, Tier.CLOUD), CLOUD)
        await self.operator.node.attach(0)

    def _node(self, name: NodeId, tier: Tier, parent: NodeId = NOBODY) -> Node:
        identity = fixed_identity(name, tier, valid_s=self.valid_s.get(name))
        verifier = Verifier(identity.ca_pem, now=lambda: self.wall(name))
        node = self._node_with(identity, verifier, identity.sign, parent)
        node.inline_bytes = self._inline_bytes
        node.make_nonce = lambda: f"{self.rng.getrandbits(128):032x}"
        return node

    def _make_node(self, **parts: Any) -> Node:
        node = WitnessedNode(**parts)
        node.witness, node.taken = self.witness, {}
        return node

    def _make_coordinator(self, node: Node, settings: AgentSettings) -> Coordinator:
        coordinator = super()._make_coordinator(node, settings)
        self.witness.watch_steps(coordinator.runs.roles, node.name, most_spare=self._most_spare)
        self.witness.watch_absences(coordinator.watch, node.name)
        return coordinator

    def _make_training(self, node: Node, **how: Any) -> NodeTraining:
        training = super()._make_training(node, **how)
        self.witness.watch_steps(training.roles, node.name, most_spare=self._most_spare)
        if training.watch is not None:
            self.witness.watch_absences(training.watch, node.name)
        return training

    def _worker(self, node: Node, client: ClientId) -> RememberingWorker:
        worker = RememberingWorker(node, self._task_file, self._settings, client, self._engine)
        worker.witness = self.witness
        worker.counted.seconds = 1e-9  # nothing is excluded from garbage collection: campaigns come and go
        if self._long_work:
            worker.timer = iter(range(0, 10**9, 100)).__next__
        else:
            worker.timer = lambda: 0.0
        return worker

    def _on_step(self, lane: Lane) -> None:
        if lane.process.name in self.lanes:
            self._tick(lane.process.name, lane.name)

    def _on_act(self, name: str, act: str, path: Path) -> None:
        kind = "database" if path.suffix == ".db" else "file"
        self._tick(name, f"{act.split()[0]} {kind}")

    def _on_parcel(self, parcel: Parcel) -> None:
        self._tick(parcel.sender, f"{parcel.what} {parcel.receiver} {parcel.key}")
        lane = LANE.get().process
        if lane.is_dead and lane.name == parcel.sender:
            raise Died

    def _tick(self, name: str, what: str) -> None:
        self.moments[name] += 1
        self.tell(f"{name} {what}")
        self.on_moment(name)
