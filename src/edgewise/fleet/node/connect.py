"""Opens a node: identity, verifier, one session per uplink; a parent that is away is waited for, or its absence diagnosed."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgewise.core.errors import InputError, Unreachable
from edgewise.core.ids import Generation, Tier
from edgewise.core.private_files import make_private_folder, open_private
from edgewise.fleet.messages import NodeInfo
from edgewise.fleet.node.link_watch import LinkWatch
from edgewise.fleet.node.node import Node
from edgewise.fleet.node.node_status import NodeStatus
from edgewise.fleet.node.settings import AgentSettings
from edgewise.ledger.entry import FrameCounter
from edgewise.security.access import access_control
from edgewise.security.data_policy import DataPolicy
from edgewise.security.identity import Identity
from edgewise.transport.bulk.blobs import FolderBlobs
from edgewise.transport.keys import Keys
from edgewise.transport.late_transport import LateTransport
from edgewise.transport.zenoh.diagnose import Cause, diagnose
from edgewise.transport.zenoh.session_config import resolved
from edgewise.transport.zenoh.zenoh_transport import TlsFiles, ZenohSettings, open_zenoh


async def open_node(
    settings: AgentSettings,
    describe: Callable[[], NodeInfo],
    *,
    generation: Generation | None = None,
    status: NodeStatus | None = None,
    cannot: Callable[[Unreachable], None] = lambda _: None,
    panicked: Callable[[], object] = lambda: None,
) -> Node:
    """Opens a node's sessions; nothing is served yet.

    Args:
        settings: How.
        describe: Makes the node's info.
        generation: Its incarnation; None takes the time.
        status: Says what is waited for while no parent can be reached; None does not wait.
        cannot: Told once that waiting cannot help, e.g. of a wrong certificate; it is waited on.
        panicked: Told, on any thread, that this process can reach nobody any more, whatever it does.

    Returns:
        The node; call `attach(0)` after its routes are registered, and once `linked` is set where there is a `status`.

    Raises:
        InputError: If identity, name and tier do not belong together, or an endpoint cannot be read.
        Unreachable: If the primary endpoint cannot be reached and nobody waits; says why.
    """
    identity = Identity.load(settings.identity)
    if identity.node != settings.name or identity.tier != settings.tier:
        raise InputError(
            f"the certificate in {settings.identity!r} is for {identity.node!r} ({identity.tier}), "
            f"this node is to be {settings.name!r} ({settings.tier}). Use its own certificate, or its own name and tier."
        )
    generation = generation or Generation(time.time_ns())
    counter = FrameCounter(identity.node)
    policy = DataPolicy(raw=settings.raw_may_reach)
    tap = _capture(settings)
    node = Node(
        identity=identity,
        generation=generation,
        keys=Keys(settings.fleet),
        uplinks=[],
        policy=policy,
        blobs=FolderBlobs(Path(settings.state) / "blobs"),
        verifier=identity.verifier(),
        counter=counter,
        describe=describe,
    )
    common = ZenohSettings(
        node=identity.node,
        generation=generation,
        tls=TlsFiles(*_files(Path(settings.identity))),
        scout=settings.scout,
        insecure=settings.insecure,
        counter=counter,
        sign=identity.sign,
        allow=node.allow,
        tap=tap,
        panicked=panicked,
    )
    if settings.listen or (settings.tier is not Tier.DEVICE and not _is_operator(settings)):
        fence = _fence(settings)
        router = replace(common, mode="router", listen=settings.listen, connect=settings.connect, access_control=fence)
        await _open_router(node, router, None if status is None else LinkWatch(status, cannot))
        return node
    if not settings.connect:
        raise InputError(f"{settings.name!r} has no parent. Say --connect tls/HOST:PORT of its edge or coordinator.")
    leaves = [replace(common, connect=(endpoint,)) for endpoint in settings.connect]
    if status is None:
        await _open_leaves(node, leaves)
    else:
        _open_leaves_later(node, leaves, LinkWatch(status, cannot))
    return node


async def _open_router(node: Node, router: ZenohSettings, links: LinkWatch | None) -> None:
    if links is None:
        await _check(router.connect[:1], router.tls)
    transport = await open_zenoh(replace(router, must_connect=links is None))
    node.uplinks.append(transport)
    if links is None or not router.connect:
        node.linked.set()
        node.tried.set()
    else:
        node.spawn(links.follow(transport, node), f"links of {node.name}")


async def _open_leaves(node: Node, leaves: Sequence[ZenohSettings]) -> None:
    for index, leaf in enumerate(leaves):
        try:
            await _check(leaf.connect, leaf.tls)
            node.uplinks.append(await open_zenoh(leaf))
        except Unreachable:
            if index == 0:
                await node.close()
                raise
    node.linked.set()
    node.tried.set()


def _open_leaves_later(node: Node, leaves: Sequence[ZenohSettings], links: LinkWatch) -> None:
    for leaf in leaves:
        resolved(leaf)  # what is wrong with the settings is said at once
    opening = functools.partial(links.open, node)
    for leaf in leaves:
        node.uplinks.append(LateTransport(node.name, leaf.connect[0], functools.partial(opening, leaf)))


def _fence(settings: AgentSettings) -> dict[str, Any] | None:
    """Builds Zenoh's access rules by certificate; None without TLS, where they would refuse every node."""
    if not any(endpoint.startswith("tls/") for endpoint in (*settings.listen, *settings.connect)):
        return None
    return access_control(settings.fleet, protect=(settings.name,))


def _files(folder: Path) -> tuple[Path, Path, Path]:
    return folder / "ca.pem", folder / "node.pem", folder / "node.key"


async def _check(endpoints: Sequence[str], tls: TlsFiles | None) -> None:
    for endpoint in endpoints:
        found = await diagnose(endpoint, tls)
        if found.cause is not Cause.REACHABLE:
            raise Unreachable(str(found), endpoint=endpoint, cause=str(found.cause))


def _is_operator(settings: AgentSettings) -> bool:
    return not settings.listen and not settings.coordinator


def _capture(settings: AgentSettings) -> Callable[[bytes], None] | None:
    if not settings.capture:
        return None
    folder = Path(settings.capture)
    make_private_folder(folder)
    file = open_private(folder / f"{settings.name}-{time.time_ns()}.frames", "ab", buffering=0)
    numbers = itertools.count()

    def tap(data: bytes) -> None:
        next(numbers)
        file.write(len(data).to_bytes(4, "little") + data)

    return tap
