"""Emulates a fleet by real processes on this machine behind emulated links, with certificates of its own.

    device-1 … device-n ══ shaped ══ edge-1, edge-2 ══ shaped ══ cloud

Each node knows only its parents' proxy endpoints. Used by `edgewise demo`, by live tests and by benchmarks.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgewise.core.ids import NodeId, Tier
from edgewise.core.units import parse_duration, parse_rate
from edgewise.fleet.node.settings import AgentSettings
from edgewise.security.authority import Authority, create_authority
from edgewise.simulation.emulated.fleet_file import FleetFile, LinkClass
from edgewise.simulation.emulated.fleet_links import LinksProcess
from edgewise.simulation.emulated.processes import Child
from edgewise.simulation.links.link import LinkSpec
from edgewise.simulation.links.shape import Shape

CLOUD = "cloud"
OPERATOR = "operator"


class EmulatedFleet:
    """Starts, disturbs and stops an emulated fleet.

    Attributes:
        file: What it is made of.
        folder: Where states, identities and logs are.
        children: Processes by node name.
        settings: How each node was started.
    """

    def __init__(
        self, file: FleetFile, folder: Path, *, holdout: Path | None = None, capture: Path | None = None
    ) -> None:
        self.file = file
        self.folder = folder
        self.children: dict[str, Child] = {}
        self.settings: dict[str, AgentSettings] = {}
        self.links = LinksProcess(folder / "logs" / "links.log")
        self._holdout = holdout
        self._capture = capture
        self._authority: Authority | None = None

    @property
    def edges(self) -> list[str]:
        """Returns the names of the edges."""
        return [f"edge-{i + 1}" for i in range(self.file.edges.count)]

    @property
    def devices(self) -> list[str]:
        """Returns the names of the devices, edge by edge."""
        return [f"device-{i + 1}" for i in range(self.file.edges.count * self.file.devices.per_edge)]

    @property
    def trainers(self) -> list[str]:
        """Returns the devices that hold data and train; the others only infer."""
        per_edge, training = self.file.devices.per_edge, self.file.devices.trainers_per_edge
        return [d for i, d in enumerate(self.devices) if i % per_edge < training]

    def edge_of(self, device: str) -> int:
        """Returns the index of a device's primary edge."""
        return self.devices.index(device) // self.file.devices.per_edge

    def identity(self, name: str) -> Path:
        """Returns the folder of a node's certificate and key."""
        return self.folder / "identities" / name

    async def start(self, log: Callable[[str], None] = lambda _: None) -> None:
        """Issues certificates and starts cloud, edges, devices and links; returns when all serve.

        Args:
            log: Called with the name of each step that is done.
        """
        self._authority = create_authority(self.folder / "authority", self.file.name)
        log("certificates")
        self.issue(OPERATOR, Tier.CLOUD)
        _, cloud = await asyncio.gather(self.links.start(), self.start_node(self._cloud_settings()))
        log("cloud")
        for edge in self.edges:
            await self._add_link(edge, CLOUD, self.file.edges.link, cloud["endpoint"])
        await asyncio.gather(*(self.start_node(self._edge_settings(edge)) for edge in self.edges))
        log("edges")
        for device in self.devices:
            for edge in self._parents(device):
                await self._add_link(device, edge, self.file.devices.link, self.children[edge].ready["endpoint"])
        await asyncio.gather(*(self.start_node(self._device_settings(device)) for device in self.devices))
        log("devices")

    async def stop(self) -> None:
        """Stops all processes."""
        await asyncio.gather(*(child.stop() for child in self.children.values()))
        await self.links.close()

    async def start_node(self, settings: AgentSettings) -> dict[str, Any]:
        """Starts one node's process.

        Args:
            settings: How; remembered for `restart`.

        Returns:
            The fields of its ready line: endpoint, http_port, pid.
        """
        if not self.identity(settings.name).exists():
            self.issue(settings.name, settings.tier)
        self.settings[settings.name] = settings
        child = Child(
            settings.name, ["-m", "edgewise", *agent_arguments(settings)], self.folder / "logs" / f"{settings.name}.log"
        )
        self.children[settings.name] = child
        return await child.start()

    async def restart(self, name: str) -> dict[str, Any]:
        """Restarts a node that ended, with the same identity, state and listening address."""
        import msgspec

        settings = self.settings[name]
        if settings.listen:
            settings = msgspec.structs.replace(settings, listen=(self.children[name].ready["endpoint"],))
        return await self.start_node(settings)

    def issue(self, name: str, tier: Tier) -> None:
        """Issues a certificate into the node's own folder."""
        assert self._authority is not None
        self._authority.issue(NodeId(name), tier, folder=self.identity(name))

    def endpoint(self, name: str) -> str:
        """Returns a router's own address, for an operator on the same machine."""
        return str(self.children[name].ready["endpoint"])

    async def set_link(self, source: str, target: str, **state: Any) -> None:
        """Changes a link while it runs: `bytes_per_s`, `delay_s`, `outage`."""
        await self.links.set(f"{source}→{target}", **state)

    async def _add_link(self, source: str, target: str, link: LinkClass, endpoint: str) -> None:
        shape = Shape(
            bytes_per_s=parse_rate(link.rate),
            delay_s=parse_duration(link.rtt) / 2,
            jitter_s=parse_duration(link.jitter),
            loss_fraction=link.loss_fraction,
        )
        await self.links.add(LinkSpec(name=f"{source}→{target}", target=endpoint.partition("/")[2], shape=shape))

    def _through(self, source: str, target: str) -> str:
        return f"tls/127.0.0.1:{self.links.ports[f'{source}→{target}']}"

    def _parents(self, device: str) -> list[str]:
        primary = self.edge_of(device)
        edges = [self.edges[(primary + i) % len(self.edges)] for i in range(len(self.edges))]
        return edges if self.file.devices.standby else edges[:1]

    def _common(self, name: str) -> dict[str, Any]:
        capture = str(self._capture or "")
        return {
            "name": name,
            "identity": str(self.identity(name)),
            "state": str(self.folder / "state" / name),
            "fleet": self.file.name,
            "capture": capture,
            "raw_may_reach": self.file.raw_may_reach,
        }

    def _cloud_settings(self) -> AgentSettings:
        return AgentSettings(
            tier=Tier.CLOUD,
            listen=("tls/127.0.0.1:0",),
            coordinator=True,
            dilation=self.file.cloud.dilation,
            active_power_w=self.file.cloud.active_power_w,
            holdout=str(self._holdout or ""),
            **self._common(CLOUD),
        )

    def _edge_settings(self, edge: str) -> AgentSettings:
        return AgentSettings(
            tier=Tier.EDGE,
            listen=("tls/127.0.0.1:0",),
            connect=(self._through(edge, CLOUD),),
            dilation=self.file.edges.dilation,
            active_power_w=self.file.edges.active_power_w,
            **self._common(edge),
        )

    def _device_settings(self, device: str) -> AgentSettings:
        trains = device in self.trainers
        return AgentSettings(
            tier=Tier.DEVICE,
            http="127.0.0.1:0",
            dilation=self.file.devices.dilation,
            connect=tuple(self._through(device, edge) for edge in self._parents(device)),
            active_power_w=self.file.devices.active_power_w,
            task=self.file.task if trains else "",
            task_settings=self.file.task_settings if trains else {},
            client=f"client-{self.trainers.index(device)}" if trains else "",
            engine=self.file.devices.engine if trains else "",
            model_name=Path(self.file.task).stem,
            **self._common(device),
        )


def agent_arguments(settings: AgentSettings) -> list[str]:
    """Returns the command line of a node: `edgewise coordinator …` or `edgewise agent …`."""
    import json

    arguments = ["coordinator"] if settings.coordinator else ["agent", "--tier", str(settings.tier)]
    arguments += [
        "--name",
        settings.name,
        "--identity",
        settings.identity,
        "--state",
        settings.state,
        "--fleet",
        settings.fleet,
    ]
    for endpoint in settings.connect:
        arguments += ["--connect", endpoint]
    for endpoint in settings.listen:
        arguments += ["--listen", endpoint]
    optional = {
        "--task": settings.task,
        "--client": settings.client,
        "--holdout": settings.holdout,
        "--judge": settings.judge,
        "--http": settings.http,
        "--tokens": settings.tokens,
        "--http-certificate": settings.http_certificate,
        "--http-key": settings.http_key,
        "--model-name": settings.model_name if settings.http else "",
        "--engine": settings.engine,
        "--capture": settings.capture,
        "--task-settings": json.dumps(settings.task_settings) if settings.task_settings else "",
        "--crash-after": "" if settings.crash_after is None else str(settings.crash_after),
    }
    for flag, value in optional.items():
        arguments += [flag, value] if value else []
    arguments += ["--dilation", str(settings.dilation), "--power", str(settings.active_power_w)]
    arguments += ["--raw-may-reach", str(settings.raw_may_reach), "--json", "--exit-with-parent"]
    return arguments + (["--insecure"] if settings.insecure else [])


def make_folder() -> tempfile.TemporaryDirectory[str]:
    """Makes a temporary folder for a fleet."""
    return tempfile.TemporaryDirectory(prefix="edgewise-")
