"""A small fleet of real processes for tests: a coordinator, one edge, two devices that train, an operator beside them.

One event loop serves a whole module (`World.run`), so that the processes live over its tests.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from edgewise.core.errors import EdgewiseError
from edgewise.core.ids import ClientId, NodeId
from edgewise.fleet.messages import NodeRow, RunStatus
from edgewise.fleet.node.settings import AgentSettings
from edgewise.fleet.operator.operator import Operator, connect_operator
from edgewise.fleet.operator.submission import task_request
from edgewise.models.task import load_task
from edgewise.simulation.emulated.emulated_fleet import CLOUD, OPERATOR, EmulatedFleet
from edgewise.simulation.emulated.fleet_file import DeviceClass, EdgeClass, FleetFile, LinkClass
from edgewise.simulation.simulate import SimulationOptions, simulate_rounds
from edgewise.training.algorithms import make_algorithm

EDGE = "edge-1"
SPEC: dict[str, Any] = {"name": "fed_avg", "uplink": "int8"}
PATIENCE_S = 100.0
QUICK = LinkClass("1000 Mbit/s", "0 ms")
TASK = '''"""Stands still while a file named after its client exists, and leaves another that says so."""

import time
from pathlib import Path

import torch

from edgewise.testing.tiny_task import TinyTask


class StoppableTask(TinyTask):
    name = "stoppable"
    objective = ""

    def data(self, client):
        self.client = client
        examples = super().data(client)
        none = client in self.settings.get("empty", ())
        return type(examples).of(examples.inputs[:0], examples.targets[:0]) if none else examples

    def loss(self, outputs, targets):
        here, client = Path(__file__).parent, getattr(self, "client", "")
        while torch.is_grad_enabled() and (here / f"stop-{client}").exists():  # not while the data are looked at
            (here / f"stands-{client}").touch()
            time.sleep(0.01)
        return super().loss(outputs, targets)
'''
T = TypeVar("T")


class SmallFleet(EmulatedFleet):
    """Devices that train and have no endpoint."""

    def _device_settings(self, device: str) -> AgentSettings:
        return msgspec.structs.replace(super()._device_settings(device), http="")


class World:
    """The fleet with an operator; made by `with World(folder) as world`."""

    operator: Operator
    capture: Path | None = None

    def __init__(self, folder: Path, devices: int = 2, **task_settings: Any) -> None:
        self.folder, self.devices, self.task_settings = folder, devices, task_settings
        (folder / "task").mkdir()
        self.task_file = folder / "task" / "stoppable.py"
        self.task_file.write_text(TASK)
        self.fleet = self.make_fleet(folder)
        self.clients = tuple(ClientId(f"client-{i}") for i in range(devices))
        self.task = load_task(self.task_file, clients=self.clients, **task_settings)
        self._runner = asyncio.Runner()
        self._stack = AsyncExitStack()

    def make_fleet(self, folder: Path) -> EmulatedFleet:
        """One edge, all devices train."""
        devices = DeviceClass(
            per_edge=self.devices, trainers_per_edge=self.devices, dilation=1.0, link=QUICK, standby=False
        )
        edges = EdgeClass(count=1, link=QUICK)
        task = {"task": str(self.task_file), "task_settings": self.task_settings}
        return SmallFleet(FleetFile(name="small", edges=edges, devices=devices, **task), folder, capture=self.capture)

    def __enter__(self) -> World:
        try:
            self.run(self._start(), 120.0)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.run(self._stack.aclose(), 20.0)
            self.run(self.fleet.stop(), 20.0)
        finally:
            self._runner.close()

    def run(self, work: Coroutine[Any, Any, T], timeout_s: float = 120.0) -> T:
        """Runs a scene on the module's loop."""
        return self._runner.run(asyncio.wait_for(work, timeout_s))

    async def _start(self) -> None:
        await self.fleet.start()
        self.operator = await self._stack.enter_async_context(
            connect_operator(
                self.fleet.identity(OPERATOR), self.fleet.endpoint(CLOUD), self.folder / "operator", "small"
            )
        )
        await self.all_here()

    async def all_here(self, *more: str) -> None:
        """Waits until everybody is alive in the coordinator's eyes."""
        wanted = {CLOUD, *self.fleet.edges, *self.fleet.devices, *more}
        await self.rows(lambda rows: wanted <= {name for name, row in rows.items() if row.state == "alive"})

    async def rows(self, holds: Callable[[dict[str, NodeRow]], bool]) -> dict[str, NodeRow]:
        """Waits until the coordinator's view meets a condition."""

        async def look() -> dict[str, NodeRow] | None:
            rows = {str(r.info.node): r for r in (await self.operator.nodes()).nodes}
            return rows if holds(rows) else None

        return await self.eventually(look)

    async def eventually(self, look: Callable[[], Awaitable[T | None]]) -> T:
        """Looks again and again, also while the coordinator is away, until there is something."""
        end = time.monotonic() + PATIENCE_S
        while True:
            try:
                if (found := await look()) is not None:
                    return found
            except EdgewiseError:
                if time.monotonic() > end:
                    raise
            assert time.monotonic() < end, "it did not come about"
            await asyncio.sleep(0.02)

    async def submit(
        self, name: str, *, num_rounds: int = 2, seed: int = 7, protocol: Any = "hierarchical", **request: Any
    ) -> None:
        """Submits a run of that name; the coordinator may die of it."""
        spec, fields = request.pop("algorithm", SPEC), {"register": False, "clients": self.clients, **request}
        how = {"num_rounds": num_rounds, "seed": seed, "protocol": protocol, "name": name}
        await self.operator.submit(*task_request(self.task, spec, **how, **fields))

    async def end_of(self, name: str) -> RunStatus:
        """Waits for a run's terminal state, over restarts of the coordinator."""

        async def look() -> RunStatus | None:
            status = await self.operator.status(name)  # type: ignore[arg-type]
            return status if status.state != "running" else None

        return await self.eventually(look)

    async def rounds_of(self, name: str, number: int) -> RunStatus:
        """Waits until a run has closed that many rounds."""

        async def look() -> RunStatus | None:
            status = await self.operator.status(name)  # type: ignore[arg-type]
            return status if len(status.rounds) >= number or status.state != "running" else None

        return await self.eventually(look)

    def stop(self, *clients: str) -> None:
        """Makes the workers of clients stand still at their next step."""
        for client in clients:
            (self.folder / "task" / f"stands-{client}").unlink(missing_ok=True)
            (self.folder / "task" / f"stop-{client}").touch()

    def go(self, *clients: str) -> None:
        """Lets workers go on; all of them if none is named."""
        for client in clients or self.clients:
            (self.folder / "task" / f"stop-{client}").unlink(missing_ok=True)

    async def stand(self, *clients: str) -> None:
        """Waits until workers stand."""

        async def look() -> bool | None:
            return all((self.folder / "task" / f"stands-{client}").exists() for client in clients) or None

        await self.eventually(look)

    async def restart(self, name: str, *, crash_after: int | None = None) -> None:
        """Kills a node's process if it runs, and starts it again."""
        await self.fleet.children[name].kill()
        self.fleet.settings[name] = msgspec.structs.replace(self.fleet.settings[name], crash_after=crash_after)
        await self.fleet.restart(name)

    async def death_of(self, name: str) -> None:
        """Waits until a process has ended by SIGKILL."""
        process = self.fleet.children[name]._process
        assert process is not None
        assert await asyncio.wait_for(process.wait(), PATIENCE_S) == -signal.SIGKILL

    def log(self, name: str) -> str:
        """What a node has logged."""
        return (self.fleet.folder / "logs" / f"{name}.log").read_text(errors="replace")

    def simulated(self, protocol: str, rounds: int, seed: int = 7, algorithm: Any = None, **how: Any) -> bytes:
        """The model of the same run in the simulator."""
        run = simulate_rounds(
            self.task, make_algorithm(algorithm or SPEC), rounds=rounds, seed=seed, protocol=protocol,
            edge_of={c: NodeId(EDGE) for c in self.clients}, options=SimulationOptions("sequential"), **how,
        )  # fmt: skip
        return run.vector.tobytes()
