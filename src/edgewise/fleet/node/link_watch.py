"""Waits for the parents of a node: tries again with growing waits, says why they cannot be reached, rarely.

A session of a device is opened once its parent answers; a router's is open and links by itself, so it is only looked why it
does not. A cause that no waiting heals (a wrong certificate, name or protocol) is told once it was found three times in a row.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable

from edgewise.core.backoff import Backoff
from edgewise.core.errors import EdgewiseError, Unreachable
from edgewise.fleet.node.node import Node
from edgewise.fleet.node.node_status import NodeStatus
from edgewise.transport.late_transport import LateTransport
from edgewise.transport.transport import Transport
from edgewise.transport.zenoh.diagnose import Cause, EndpointFinding, diagnose
from edgewise.transport.zenoh.session_config import ZenohSettings
from edgewise.transport.zenoh.zenoh_transport import ZenohTransport, open_zenoh

log = logging.getLogger("edgewise.fleet")
LINK_RETRY = Backoff(0.2, factor=1.5, most_s=3.0)
"""Waits between attempts: whoever boots last after a power cut is found within seconds."""
LINK_GRACE_S = 1.5
"""How long a router may take to link before it is looked why it does not."""
TIMES_FINAL = 3


class LinkWatch:
    """Waits for the parents of one node.

    Args:
        status: Says what is waited for.
        cannot: Told once that waiting cannot help.
    """

    def __init__(self, status: NodeStatus, cannot: Callable[[Unreachable], None]) -> None:
        self._status, self._cannot = status, cannot
        self._final: dict[str, int] = {}

    async def open(self, node: Node, leaf: ZenohSettings, late: LateTransport) -> Transport:
        """Opens a device's session once its parent answers.

        Args:
            node: The node; its `linked` is set.
            leaf: Settings of the session, with its one parent.
            late: Told of each attempt that failed.

        Returns:
            The session.
        """
        endpoint = leaf.connect[0]
        for attempt in itertools.count():
            try:
                found = await diagnose(endpoint, leaf.tls)
                if found.cause is Cause.REACHABLE:
                    transport = await open_zenoh(leaf)
                    self._status.came(endpoint)
                    node.linked.set()
                    node.tried.set()
                    return transport
                self._waits(endpoint, found)
                late.failed(str(found))
            except EdgewiseError as error:
                self._status.waits_for(endpoint, error.message)
                late.failed(error.message)
            if all(each.tried.is_set() for each in node.uplinks if isinstance(each, LateTransport)):
                node.tried.set()
            await asyncio.sleep(LINK_RETRY.delay_s(attempt))
        raise AssertionError("unreachable")

    async def follow(self, transport: ZenohTransport, node: Node) -> None:
        """Says why a router is not linked to any parent, until it is.

        Args:
            transport: Its session.
            node: The node; its `linked` is set.
        """
        linking = asyncio.ensure_future(transport.linked_up())
        endpoints, tls = transport.settings.connect, transport.settings.tls
        try:
            await asyncio.wait({linking}, timeout=LINK_GRACE_S)
            for attempt in itertools.count():
                if linking.done():
                    break
                for endpoint in endpoints:
                    found = await diagnose(endpoint, tls)
                    if found.cause is not Cause.REACHABLE and not linking.done():
                        self._waits(endpoint, found)
                node.tried.set()
                await asyncio.wait({linking}, timeout=LINK_RETRY.delay_s(attempt))
        finally:
            linking.cancel()
        for endpoint in endpoints:
            self._status.came(endpoint)
        node.linked.set()
        node.tried.set()

    def _waits(self, endpoint: str, found: EndpointFinding) -> None:
        self._status.waits_for(endpoint, str(found))
        self._final[endpoint] = self._final.get(endpoint, 0) + 1 if found.is_final else 0
        if self._final[endpoint] == TIMES_FINAL:
            self._cannot(Unreachable(str(found), endpoint=endpoint, cause=str(found.cause)))


def direct(transport: Transport) -> ZenohTransport | None:
    """The open session behind an uplink; None while it is not open."""
    opened = transport.inner if isinstance(transport, LateTransport) else transport
    return opened if isinstance(opened, ZenohTransport) else None
