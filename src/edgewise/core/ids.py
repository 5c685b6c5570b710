"""Defines the typed names of nodes, clients, runs, rounds, digests and tiers. Read `layout.py` next."""

from __future__ import annotations

import hashlib
import re
from enum import StrEnum
from typing import NewType

from edgewise.core.errors import InputError

NodeId = NewType("NodeId", str)
ClientId = NewType("ClientId", str)
RunId = NewType("RunId", str)
RequestId = NewType("RequestId", str)
RoundNumber = NewType("RoundNumber", int)
Generation = NewType("Generation", int)
"""Incarnation of a node: its start time in ns; newer is larger."""
Revision = NewType("Revision", int)
"""One plan put in force: a counter over the whole fleet, so that it names one plan of one model; newer is larger."""
Digest = NewType("Digest", str)
"""`sha256` of some bytes, 64 hexadecimal characters."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


class Tier(StrEnum):
    """Names the tiers, in the order data moves outward."""

    DEVICE = "device"
    EDGE = "edge"
    CLOUD = "cloud"

    @property
    def rank(self) -> int:
        """Returns 0 for device, 1 for edge, 2 for cloud."""
        return TIERS.index(self)


TIERS: tuple[Tier, ...] = (Tier.DEVICE, Tier.EDGE, Tier.CLOUD)


def digest_of(data: bytes | bytearray | memoryview) -> Digest:
    """Returns the digest of bytes.

    Args:
        data: Any bytes.

    Returns:
        The sha256 of `data` in hexadecimal.
    """
    return Digest(hashlib.sha256(data).hexdigest())


def node_id(name: str) -> NodeId:
    """Validates a node name, which becomes part of wire keys, files and certificates.

    Args:
        name: The wanted name.

    Returns:
        The same name, typed.

    Raises:
        InputError: If it is not 1-63 of `a-z 0-9 . _ -`, starting with a letter or digit.
    """
    if not _NAME.fullmatch(name):
        raise InputError(
            f"node name {name!r} is not usable in keys and certificates. Use 1-63 of the "
            "characters a-z 0-9 . _ -, starting with a letter or a digit, e.g. 'device-1'."
        )
    return NodeId(name)
