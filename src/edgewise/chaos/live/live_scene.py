"""A fleet of real processes that campaigns disturb: two edges with a device each, which train and serve digits.

device-1 ══ edge-1 ══╗
                     ╠══ cloud (coordinator, gate)      every ══ is a link that can be cut, slowed, corrupted
device-2 ══ edge-2 ══╝
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import resource
import signal
import sqlite3
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgewise.chaos.live.live_schedule import CLOUD, DEVICES, EDGES, LINK_FAULTS, LiveFault, LiveRunKind
from edgewise.core.errors import EdgewiseError
from edgewise.core.ids import ClientId, NodeId, Tier
from edgewise.fleet.messages import Deploy, RunStatus
from edgewise.fleet.operator.operator import Operator, connect_operator
from edgewise.fleet.operator.submission import task_request
from edgewise.inference.serving_node import device_only_plan
from edgewise.models.forward import INPUT
from edgewise.models.graph.graph import Graph
from edgewise.planning.plan import EXIT, Gate, Handover, Plan, Site, Stage
from edgewise.simulation.emulated.emulated_fleet import OPERATOR, EmulatedFleet
from edgewise.simulation.emulated.fleet_file import CloudClass, DeviceClass, EdgeClass, FleetFile, LinkClass
from edgewise.simulation.simulate import SimulationOptions, simulate_rounds
from edgewise.training.algorithms import make_algorithm
from edgewise.training.tasks.digits_task import DigitsTask

QUICK = LinkClass("1000 Mbit/s", "0 ms")
CLIENTS = (ClientId("client-0"), ClientId("client-1"))
DEADLINE_S = 2.0
"""Of every request."""
READY_S = 120.0
LOOKS_STILL = 30
"""A run stands still that is seen so for so many looks in a row, half a second each."""
_EXPECTED: dict[tuple[str, int, int], bytes] = {}
"""Models of undisturbed runs by kind, rounds and seed: the same for every fleet of this file."""
NEVER = 2.0
"""A threshold nobody reaches: every request crosses the cut."""


class LiveScene:
    """The running fleet.

    Attributes:
        fleet: Its processes and links.
        task: What is trained and served.
        operator: Speaks to the coordinator.
        good: The version that is served.
        down: Nodes that are killed or frozen now; devices among them cannot answer.
        times_down: How often each was: a request may have waited over all of a freeze.
    """

    operator: Operator

    def __init__(self, folder: Path) -> None:
        file = FleetFile(
            name="chaos",
            task_settings={"clients": len(CLIENTS)},
            cloud=CloudClass(),
            edges=EdgeClass(count=len(EDGES), dilation=1.0, link=QUICK),
            devices=DeviceClass(per_edge=1, trainers_per_edge=1, dilation=1.0, link=QUICK, standby=False),
        )
        self.task = DigitsTask(**file.task_settings)
        self.folder = folder
        self.fleet = EmulatedFleet(file, folder, holdout=_write_holdout(self.task, folder))
        self.good = 0
        self.down: set[str] = set()
        self.times_down = Counter[str]()
        self._ports: dict[str, int] = {}
        self._stack = AsyncExitStack()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[LiveScene]:
        """Starts the fleet, trains a first version and serves it; stops everything at the end."""
        try:
            await self.fleet.start()
            where = self.fleet.identity(OPERATOR), self.fleet.endpoint(CLOUD), self.folder / "operator", "chaos"
            self.operator = await self._stack.enter_async_context(connect_operator(*where))
            await self.all_here()
            await self._serve_first()
            yield self
        finally:
            with contextlib.suppress(EdgewiseError, OSError):
                await self._stack.aclose()
            await self.fleet.stop()

    async def all_here(self) -> None:
        """Waits until everybody is alive in the coordinator's eyes.

        Raises:
            EdgewiseError: If somebody is not after `READY_S`.
        """
        wanted = {CLOUD, *EDGES, *DEVICES}
        await self.operator.wait_for_nodes(
            lambda rows: wanted <= {str(row.info.node) for row in rows if row.state == "alive"}, READY_S
        )

    def port(self, device: str) -> int:
        """Where a device answers, or did until it was killed."""
        self._ports[device] = self.fleet.children[device].ready.get("http_port", self._ports.get(device, 0))
        return self._ports[device]

    async def submit(self, run: LiveRunKind, name: str, *, num_rounds: int, seed: int, **fields: Any) -> str:
        """Submits a run with other fields of `task_request`, and returns its id."""
        request, files = await asyncio.to_thread(
            task_request,
            self.task,
            run.algorithm,
            num_rounds=num_rounds,
            seed=seed,
            protocol=run.protocol,
            name=name,
            **fields,
        )
        return str(await self.operator.submit(request, files))

    async def end_of(
        self, run: str, timeout_s: float, *, stands_still: Callable[[RunStatus], bool] = lambda _: False
    ) -> RunStatus:
        """Waits for a run's terminal state; the newest state is returned when the time is up, or the run stands still for long."""
        status: RunStatus | None = None
        num_still = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while (status is None or status.state == "running") and num_still < LOOKS_STILL:
                    with contextlib.suppress(EdgewiseError):
                        status = await self.operator.status(run)  # type: ignore[arg-type]
                    num_still = num_still + 1 if status is not None and stands_still(status) else 0
                    await asyncio.sleep(0.5)
        return status or RunStatus(run, "unknown", "the coordinator gave no answer")  # type: ignore[arg-type]

    def expected_model(self, run: LiveRunKind, num_rounds: int, seed: int) -> bytes:
        """The model of the same run in the simulator: what nobody disturbed."""
        if (known := _EXPECTED.get((run.name, num_rounds, seed))) is not None:
            return known
        edge_of = dict(zip(CLIENTS, map(NodeId, EDGES), strict=True)) if run.protocol == "hierarchical" else None
        simulated = simulate_rounds(
            self.task, make_algorithm(run.algorithm), rounds=num_rounds, seed=seed, protocol=run.protocol,
            edge_of=edge_of, options=SimulationOptions("sequential"),
        )  # fmt: skip
        found = _EXPECTED[run.name, num_rounds, seed] = simulated.vector.tobytes()
        return found

    async def apply(self, fault: LiveFault) -> None:
        """Brings a fault about, waits, and takes it away."""
        if fault.kind in LINK_FAULTS:
            source, target = fault.target.split("→")
            changes = LINK_FAULTS[fault.kind]
            await self.fleet.set_link(source, target, **changes)
            await asyncio.sleep(fault.seconds)
            await self.fleet.set_link(source, target, outage=None, loss_fraction=0.0, jitter_s=0.0, delay_s=0.0)
            await self.fleet.set_link(source, target, bytes_per_s=125e6)
            return
        async with self._node(fault.target):
            await getattr(self, f"_{fault.kind.replace(' ', '_')}")(fault)

    @contextlib.asynccontextmanager
    async def _node(self, name: str) -> AsyncIterator[None]:
        """One fault at a time on a node."""
        while name in self.down:  # noqa: ASYNC110 - rare, and short
            await asyncio.sleep(0.05)
        self.down.add(name)
        self.times_down[name] += 1
        try:
            yield
        finally:
            self.down.discard(name)

    async def _kill(self, fault: LiveFault) -> None:
        await self.fleet.children[fault.target].kill()
        await asyncio.sleep(fault.seconds / 4)
        await self.fleet.restart(fault.target)

    async def _freeze(self, fault: LiveFault) -> None:
        child = self.fleet.children[fault.target]
        child.send_signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            child.send_signal(signal.SIGCONT)

    async def _store_locked(self, fault: LiveFault) -> None:
        """As a backup does that holds the file."""
        for path in self._state(fault.target).glob("*.db"):
            await asyncio.to_thread(_hold, path, fault.seconds)

    async def _disk_full(self, fault: LiveFault) -> None:
        """No file of the process may grow."""
        pid, most = self.fleet.children[fault.target].pid, resource.RLIM_INFINITY
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, most))
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, most))

    async def _blob_flipped(self, fault: LiveFault) -> None:
        """A bit of a blob turns while its node is off."""
        await self.fleet.children[fault.target].kill()
        blobs = sorted(self._state(fault.target).glob("blobs/*"))
        if blobs:
            victim = random.Random(f"{fault}").choice(blobs)
            data = bytearray(victim.read_bytes())
            data[len(data) // 2] ^= 1
            victim.write_bytes(data)
        await self.fleet.restart(fault.target)

    def _state(self, name: str) -> Path:
        return self.folder / "state" / name

    async def _serve_first(self) -> None:
        first = LiveRunKind(
            "first", {"name": "fed_avg", "local": {"name": "sgd", "learning_rate": 0.1}}, "hierarchical"
        )
        run = await self.submit(first, "first", num_rounds=3, seed=0, register=True)
        status = await self.end_of(run, READY_S)
        if status.state != "completed" or not status.version:
            raise EdgewiseError(f"the first version was not trained: {status.state}, {status.cause}")
        self.good = status.version
        graph = await asyncio.to_thread(Graph.load, await self.operator.graph(self.good))
        for plans in ((device_only_plan(graph),), ()):  # twice, so that there is something to roll back to
            if refusal := await self.deploy(self.good, plans=plans):
                raise EdgewiseError(f"the first version is not served: {refusal}")

    async def deploy(
        self, version: int, *, plans: tuple[Plan, ...] = (), staged: bool = False, why: str = "", force: bool = False
    ) -> str:
        """Puts a version in force, split between device and edge, or on the device alone where no edge is there.

        Args:
            version: Which.
            plans: Others than those.
            staged: Whether stage by stage.
            why: For the history.
            force: Whether it serves whatever its gate says.

        Returns:
            Why it was refused; "" where it was not.
        """
        if not plans:
            graph = await asyncio.to_thread(Graph.load, await self.operator.graph(version))
            plans = (split_plan(graph), device_only_plan(graph))
        order = Deploy(version, plans, DEADLINE_S, staged=staged, ungated=True, force=force, why=why)
        ack = await self.operator.deploy(msgspec.structs.replace(order, min_requests=5 if staged else 0))
        return "" if ack.accepted else ack.reason

    async def serve_good(self) -> None:
        """What serves before a campaign is the first version, whatever was rolled out in the last one."""
        if (await self.operator.versions()).in_force.get(self.task.name) == self.good:
            return
        if refusal := await self.deploy(self.good, force=True):  # what was trained on a drift may beat it
            raise EdgewiseError(f"version {self.good} does not serve again: {refusal}")


def split_plan(graph: Graph, codec: str = "none") -> Plan:
    """Head and first exit on the device, tail on the edge; every request crosses, coded."""
    groups = [group.name for group in graph.condensed.groups]
    first_exit = next(g.index for g in graph.condensed.groups if graph.outputs[0].name in g.outputs)
    crossing = graph.condensed.boundary(groups[first_exit + 1 :])[0]
    early, end = (output.name for output in graph.outputs)
    head = Stage("device", graph.digest, (INPUT,), (*crossing, early), Site(Tier.DEVICE))
    tail = Stage("edge", graph.digest, crossing, (end,), Site(Tier.EDGE))
    return Plan(
        f"split {codec}", graph.digest, (head, tail),
        (Handover("device", "edge", crossing, codec, payload_bytes=512),),
        (Gate(EXIT, "device", NEVER, 1.0, 0.0, (early,), 0), Gate(EXIT, "edge", 0.0, 1.0, 1.0, (end,), 1)),
    )  # fmt: skip


def _hold(path: Path, seconds: float) -> None:
    done = threading.Event()
    with contextlib.closing(sqlite3.connect(path, timeout=10.0)) as connection:
        with contextlib.suppress(sqlite3.OperationalError):
            connection.execute("BEGIN IMMEDIATE")
        done.wait(seconds)
        connection.rollback()


def _write_holdout(task: DigitsTask, folder: Path) -> Path:
    path, parts = folder / "holdout.npz", task.parts
    arrays: dict[str, Any] = {}
    for name in ("calibration", "gate"):
        part = getattr(parts, name)
        arrays |= {f"{name}_x": np.asarray(part.inputs), f"{name}_y": np.asarray(part.targets)}
    np.savez(path, **arrays)
    return path
