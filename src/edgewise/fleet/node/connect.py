"""Opens a node: identity, verifier, one session per uplink; a bad address is diagnosed within seconds."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgewise.core.errors import InputError, Unreachable
from edgewise.core.ids import Generation, Tier
from edgewise.core.private_files import make_private_folder, open_private
from edgewise.fleet.messages import NodeInfo
from edgewise.fleet.node.node import Node
from edgewise.fleet.node.settings import AgentSettings
from edgewise.ledger.entry import FrameCounter
from edgewise.security.access import access_control
from edgewise.security.data_policy import DataPolicy
from edgewise.security.identity import Identity
from edgewise.transport.bulk.blobs import FolderBlobs
from edgewise.transport.keys import Keys
from edgewise.transport.zenoh.diagnose import Cause, diagnose
from edgewise.transport.zenoh.zenoh_transport import TlsFiles, ZenohSettings, open_zenoh


async def open_node(
    settings: AgentSettings, describe: Callable[[], NodeInfo], *, generation: Generation | None = None
) -> Node:
    """Opens a node's sessions; nothing is served yet.

    Args:
        settings: How.
        describe: Makes the node's info.
        generation: Its incarnation; None takes the time.

    Returns:
        The node; call `attach(0)` after its routes are registered.

    Raises:
        InputError: If identity, name and tier do not belong together.
        Unreachable: If the primary endpoint cannot be reached; says why.
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
    tls = TlsFiles(*_files(Path(settings.identity)))
    common = ZenohSettings(
        node=identity.node,
        generation=generation,
        tls=tls,
        scout=settings.scout,
        insecure=settings.insecure,
        counter=counter,
        sign=identity.sign,
        allow=node.allow,
        tap=tap,
    )
    if settings.listen or (settings.tier is not Tier.DEVICE and not _is_operator(settings)):
        fence = _fence(settings)
        router = replace(common, mode="router", listen=settings.listen, connect=settings.connect, access_control=fence)
        await _check(settings.connect[:1], tls)
        node.uplinks.append(await open_zenoh(router))
        return node
    if not settings.connect:
        raise InputError(f"{settings.name!r} has no parent. Say --connect tls/HOST:PORT of its edge or coordinator.")
    for index, endpoint in enumerate(settings.connect):
        try:
            await _check((endpoint,), tls)
            node.uplinks.append(await open_zenoh(replace(common, connect=(endpoint,))))
        except Unreachable:
            if index == 0:
                await node.close()
                raise
    return node


def _fence(settings: AgentSettings) -> dict[str, Any] | None:
    """Builds Zenoh's access rules by certificate; None without TLS, where they would refuse every node."""
    if not any(endpoint.startswith("tls/") for endpoint in (*settings.listen, *settings.connect)):
        return None
    return access_control(settings.fleet, protect=(settings.name,))


def _files(folder: Path) -> tuple[Path, Path, Path]:
    return folder / "ca.pem", folder / "node.pem", folder / "node.key"


async def _check(endpoints: tuple[str, ...], tls: TlsFiles) -> None:
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
