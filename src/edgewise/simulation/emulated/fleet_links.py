"""Runs all links of an emulated fleet in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgewise.simulation.emulated.processes import Child
from edgewise.simulation.links.link import LinkSpec
from edgewise.simulation.links.link_control import LinkControl


class LinksProcess:
    """Runs links in a process of their own, so that no other event loop delays them.

    Attributes:
        ports: Port by link name.
    """

    control: LinkControl

    def __init__(self, log_file: Path) -> None:
        self.ports: dict[str, int] = {}
        self._child = Child("links", ["-m", "edgewise.simulation.links.link_control", "--until-stdin-closes"], log_file)

    async def start(self) -> None:
        """Starts the process and opens its control channel."""
        ports = await self._child.start()
        self.control = await LinkControl.connect(ports["control"])

    async def add(self, spec: LinkSpec) -> int:
        """Opens a link and returns its port."""
        self.ports[spec.name] = await self.control.add(spec)
        return self.ports[spec.name]

    async def set(self, link: str, **state: Any) -> None:
        """Changes a link: `bytes_per_s`, `delay_s`, …, `outage`."""
        await self.control.set(link, **state)

    async def counters(self) -> dict[str, Any]:
        """Returns bytes by link and direction, counted at the socket."""
        return await self.control.counters()

    async def close(self) -> None:
        """Ends the process."""
        if hasattr(self, "control"):
            await self.control.close()
        await self._child.stop()
