"""A live round of Job S: four device processes, mutual TLS, signatures and event log on: python -m benchmarks.live_round

The network has 4,810 parameters (19,240 bytes each way); every device trains in every round of a synchronous run, directly
under the coordinator. The floor is measured in the same run: the same bytes to four long-lived processes and back over bare
TCP. What crosses the wire is counted afterwards by an unshaped link process at its sockets: frames, signatures, TLS.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import job_s
from benchmarks.report import Bar, close, print_row, spread
from edgewise.core.ids import NodeId, Tier
from edgewise.fleet.messages import NodeRow, RunStatus
from edgewise.fleet.node.settings import AgentSettings
from edgewise.fleet.operator.operator import Operator, connect_operator
from edgewise.fleet.operator.submission import task_request
from edgewise.security.authority import create_authority
from edgewise.simulation.emulated.emulated_fleet import agent_arguments
from edgewise.simulation.emulated.fleet_links import LinksProcess
from edgewise.simulation.emulated.processes import Child
from edgewise.simulation.links.link import LinkSpec
from edgewise.simulation.links.shape import Shape

LIMIT_S, BYTES_BAR = 0.100, 1.1
NUM_DEVICES, WARM_UP = 4, 5
PAYLOAD_BYTES = 4 * 4_810
IDEAL_BYTES = 2 * PAYLOAD_BYTES
DEVICES = [f"device-{index}" for index in range(NUM_DEVICES)]
WORDS = {"name": "fed_avg", "local": {"name": "sgd", "learning_rate": 0.1, "epochs": 1, "batch_size": 16}}


class Fleet:
    """A coordinator and some devices as processes.

    Attributes:
        operator: Speaks to the coordinator.
        nodes: Everybody.
    """

    operator: Operator

    def __init__(
        self,
        folder: Path,
        *,
        num_devices: int = NUM_DEVICES,
        task_file: str = job_s.__file__,
        task_settings: dict[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        self._names = [f"device-{index}" for index in range(num_devices)]
        self._task: dict[str, Any] = {"task": task_file, "task_settings": task_settings or {}}
        self.nodes = [NodeId("cloud"), *map(NodeId, self._names)]
        self.links = LinksProcess(folder / "links.log")
        self._authority = create_authority(folder / "authority", "bench")
        self._stack = contextlib.AsyncExitStack()
        self._devices: list[Child] = []

    async def start(self) -> None:
        """Starts coordinator, link process, devices and operator."""
        self._stack.push_async_callback(self.links.close)
        await self.links.start()
        cloud = await self._start(self._settings("cloud", Tier.CLOUD, listen=("tls/127.0.0.1:0",), coordinator=True))
        self._endpoint = cloud.ready["endpoint"]
        self._authority.issue("operator", Tier.CLOUD, folder=self.folder / "ids" / "operator")
        ids, state = self.folder / "ids" / "operator", self.folder / "operator"
        self.operator = await self._stack.enter_async_context(connect_operator(ids, self._endpoint, state, "bench"))
        await self.start_devices([self._endpoint] * len(self._names))

    async def start_devices(self, endpoints: Sequence[str]) -> None:
        """Starts the devices, or starts them anew, each towards its endpoint."""
        await asyncio.gather(*(child.stop() for child in self._devices))
        before = {row.info.generation for row in (await self.operator.nodes()).nodes}
        settings = [
            self._settings(
                device, Tier.DEVICE, connect=(endpoint,), client=f"client-{i}", engine="sequential", **self._task
            )
            for i, (device, endpoint) in enumerate(zip(self._names, endpoints, strict=True))
        ]
        self._devices = list(await asyncio.gather(*(self._start(s) for s in settings)))

        def all_new(rows: list[NodeRow]) -> bool:
            new = [r for r in rows if r.info.client and r.state == "alive" and r.info.generation not in before]
            return len(new) == len(self._names)

        await self.operator.wait_for_nodes(all_new, 30.0)

    async def start_behind_links(self) -> None:
        """Restarts the devices behind unshaped links that count bytes at their sockets."""
        target = self._endpoint.partition("/")[2]
        ports = [await self.links.add(LinkSpec(name=device, target=target, shape=Shape())) for device in DEVICES]
        await self.start_devices([f"tls/127.0.0.1:{port}" for port in ports])

    async def close(self) -> None:
        """Stops everything."""
        await self._stack.aclose()

    def _settings(self, name: str, tier: Tier, **fields: Any) -> AgentSettings:
        ids = self.folder / "ids" / name
        if not ids.exists():
            self._authority.issue(name, tier, folder=ids)
        return AgentSettings(
            name=name, tier=tier, identity=str(ids), state=str(self.folder / "state" / name), fleet="bench", **fields
        )

    async def _start(self, settings: AgentSettings) -> Child:
        log = self.folder / "logs" / f"{settings.name}.log"
        child = Child(settings.name, ["-m", "edgewise", *agent_arguments(settings)], log)
        self._stack.push_async_callback(child.stop)
        await child.start()
        return child


@contextlib.asynccontextmanager
async def fleet(folder: Path) -> AsyncIterator[Fleet]:
    """A running fleet; nothing is left of it."""
    made = Fleet(folder)
    try:
        await made.start()
        yield made
    finally:
        await made.close()


async def train(operator: Operator, num_rounds: int) -> tuple[RunStatus, float]:
    """Runs Job S.

    Args:
        operator: Of the fleet.
        num_rounds: Rounds.

    Returns:
        Its end, and the seconds from the order to the end.
    """
    request, files = task_request(job_s.JobS(), WORDS, num_rounds=num_rounds, protocol="synchronous", register=False)
    start = time.perf_counter()
    run = await operator.submit(request, files)
    async for status in operator.watch(run):
        last = status
    taken = time.perf_counter() - start
    if last.state != "completed" or any(r.num_updates != NUM_DEVICES for r in last.rounds):
        raise SystemExit(f"the run ended {last.state}: {last.cause}")
    return last, taken


async def measure(num_rounds: int) -> dict[str, Any]:
    """Seconds, CPU seconds and bytes of rounds."""
    with tempfile.TemporaryDirectory(prefix="edgewise-") as folder:
        async with fleet(Path(folder)) as live:
            await train(live.operator, WARM_UP)
            cpu = await _cpu_seconds(live)
            status, wall = await train(live.operator, num_rounds)
            cpu = await _cpu_seconds(live) - cpu
            await live.start_behind_links()
            await train(live.operator, WARM_UP)
            counted = await _wire_bytes(live)
            await train(live.operator, num_rounds)
            counted = [after - before for before, after in zip(counted, await _wire_bytes(live), strict=True)]
    return {
        "round_s": [r.seconds for r in status.rounds],
        "wall_s_per_round": wall / num_rounds,
        "cpu_s_per_round": cpu / num_rounds,
        "wire_bytes_per_client_round": sum(counted) / num_rounds / NUM_DEVICES,
        "wire_bytes_down": counted[1] / num_rounds / NUM_DEVICES,
        "wire_bytes_up": counted[0] / num_rounds / NUM_DEVICES,
    }


async def _cpu_seconds(live: Fleet) -> float:
    return sum([(await live.operator.ledger(node)).cpu_s for node in live.nodes])


async def _wire_bytes(live: Fleet) -> list[int]:
    """Bytes of all devices' connections, (up, down)."""
    found = await live.links.counters()
    return [sum(found[device][way]["read_bytes"] for device in DEVICES) for way in ("up", "down")]


def floor(num_rounds: int) -> list[float]:
    """Seconds of a round of the same payload over bare TCP to four processes and back."""
    with socket.create_server(("127.0.0.1", 0)) as server, contextlib.ExitStack() as stack:
        command = [sys.executable, "-m", "benchmarks.live_round", "--echo", str(server.getsockname()[1])]
        echoes = [subprocess.Popen(command) for _ in range(NUM_DEVICES)]
        links = [stack.enter_context(server.accept()[0]) for _ in echoes]
        seconds = list(_bare_rounds(links, WARM_UP + num_rounds))[WARM_UP:]
    for process in echoes:
        process.wait(timeout=5)
    return seconds


def _bare_rounds(links: Sequence[socket.socket], num_rounds: int) -> Iterator[float]:
    payload = bytes(PAYLOAD_BYTES)
    for link in links:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for _ in range(num_rounds):
        start = time.perf_counter()
        for link in links:
            link.sendall(payload)
        if any(len(_receive(link)) != PAYLOAD_BYTES for link in links):
            raise SystemExit("an echo process of the floor ended early")
        yield time.perf_counter() - start


def _receive(link: socket.socket) -> bytes:
    parts, missing = [], PAYLOAD_BYTES
    while missing:
        data = link.recv(missing)
        if not data:
            return b""
        parts.append(data)
        missing -= len(data)
    return b"".join(parts)


def _echo(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as link:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := _receive(link):
            link.sendall(data)


def main() -> None:
    """Measures, prints, closes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="20 rounds instead of 100")
    parser.add_argument("--json", action="store_true", help="only the closing JSON line")
    parser.add_argument("--echo", type=int, metavar="PORT", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.echo:
        return _echo(args.echo)
    logging.getLogger("edgewise").setLevel(logging.ERROR)  # devices are stopped and started on purpose
    num_rounds = 20 if args.short else 100
    bare = floor(num_rounds)
    figures = asyncio.run(measure(num_rounds))
    seconds = figures.pop("round_s")
    if not args.json:
        print(f"Job S live: {NUM_DEVICES} devices, {num_rounds} rounds, {PAYLOAD_BYTES:,} bytes each way")
        print_row("a round", seconds, "s")
        print_row("floor: the same bytes over bare TCP", bare, "s")
        for name, value in figures.items():
            print(f"  {name:<46} {value:,.4g}")
    median, ratio = spread(seconds).median, figures["wire_bytes_per_client_round"] / IDEAL_BYTES
    figures |= {"round_s": spread(seconds), "floor_s": spread(bare), "ideal_bytes": IDEAL_BYTES}
    bars = [
        Bar("median of a live round of Job S", f"<= {LIMIT_S} s", round(median, 4), median <= LIMIT_S),
        Bar("bytes on the wire per client and round", f"<= {BYTES_BAR} x both payloads", round(ratio, 3), ratio <= BYTES_BAR),
    ]  # fmt: skip
    close("live_round", figures, bars)


if __name__ == "__main__":
    main()
