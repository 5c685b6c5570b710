"""What a displaced process does: it serves nothing, and waits until the newer process of its name is gone."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

import msgspec

from edgewise.core.backoff import Backoff
from edgewise.core.errors import Unreachable
from edgewise.core.ids import Generation
from edgewise.fleet.messages import NodeInfo
from edgewise.fleet.node.connect import open_node
from edgewise.fleet.node.node import Node
from edgewise.fleet.node.settings import AgentSettings
from edgewise.fleet.node.sole_process import first_of
from edgewise.transport.zenoh.zenoh_transport import ZenohTransport

log = logging.getLogger("edgewise.fleet")
LOOK_AGAIN_S = 2.0
"""Between two questions who answers to the name; as long as a transport's lease."""
TIMES_SILENT = 3
"""Questions in a row that nobody answers until the other one counts as gone."""
SAY_AGAIN = 150
"""Every so many questions, that is at the start and every five minutes, it is logged that the other one is still there."""
LINK_RETRY = Backoff(1.0, most_s=30.0)


async def stand_by(
    settings: AgentSettings, describe: Callable[[], NodeInfo], newer: Generation, stopped: asyncio.Event
) -> Generation:
    """Waits until nobody else proves to be this node any more.

    Args:
        settings: Of this node.
        describe: How the displaced process described itself.
        newer: The incarnation that displaced it, as far as it is known.
        stopped: Ends the wait.

    Returns:
        The newest incarnation that was heard of; this node begins anew with a newer one.
    """
    own = describe().generation
    while not stopped.is_set():
        try:
            bare = msgspec.structs.replace(settings, listen=(), coordinator=False, capture="")
            node = await open_node(bare, describe, generation=own)
        except Unreachable as error:
            log.warning("%s is displaced and has no link to ask whether it still is: %s", settings.name, error)
            await _until(stopped, LINK_RETRY.delay_s(3))
            continue
        try:
            return await _until_alone(node, newer, stopped)
        finally:
            await node.close()
    return newer


async def _until_alone(node: Node, newest: Generation, stopped: asyncio.Event) -> Generation:
    silent = looks = 0
    while silent < TIMES_SILENT and not stopped.is_set():
        other = await first_of(node)
        if other is not None:
            silent, newest = 0, max(newest, other.generation)
            if looks % SAY_AGAIN == 0:
                log.warning("%s stands by: another process of this name is there. Stop one of the two.", node.name)
            looks += 1
        elif await _is_linked(node):
            silent += 1
        await _until(stopped, LOOK_AGAIN_S)
    return newest


async def _is_linked(node: Node) -> bool:
    """Whether a router is there to be asked; without one silence says nothing."""
    return not isinstance(node.transport, ZenohTransport) or bool(await node.transport.routers())


async def _until(stopped: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stopped.wait()
