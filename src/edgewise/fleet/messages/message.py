"""What every message of a fleet is: a typed struct, its frame kind, the plain answer, and the name of a large value."""

from __future__ import annotations

import re

import msgspec

from edgewise.core.ids import Digest, NodeId

INLINE_BYTES = 64 * 1024
"""Values up to this size travel in the frame; larger ones are announced by digest and pulled."""
SLOWEST_BYTES_PER_S = 250_000.0
"""Of a link to a node, for how long it may take to pull what an order names."""


class Message(msgspec.Struct, frozen=True):
    """Base of everything said here."""


def kind_of(message: type[Message] | Message) -> str:
    """The frame kind of a message: `TrainOrder` -> `train_order`."""
    name = (message if isinstance(message, type) else type(message)).__name__
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


class Ack(Message, frozen=True):
    """Yes, or why not.

    Attributes:
        accepted: Whether it was taken (durably, where it changes state).
        reason: Why not; a sentence.
    """

    accepted: bool = True
    reason: str = ""


BLOB = "blob"
"""Service of every node that gives what it has by digest."""


class BlobRef(msgspec.Struct, frozen=True):
    """A large value by name; whoever announces it serves it.

    Attributes:
        digest: Its name.
        size_bytes: Its size.
        holder: Node that has it.
        service: On which of that node's services; a session that shares its name with others has one of its own.
    """

    digest: Digest
    size_bytes: int
    holder: NodeId
    service: str = BLOB
