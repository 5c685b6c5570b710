"""The format of a run's log: one msgpack map per event, with its tag; a letter stands in it with its own."""

from __future__ import annotations

import msgspec

from edgewise.core.errors import StoreError
from edgewise.core.unreadable import UNREADABLE
from edgewise.training.protocols import messages as m
from edgewise.training.protocols.messages import Event

AnyEvent = (
    m.RunStarted
    | m.Received
    | m.LetterInvalid
    | m.Delivered
    | m.WorkDone
    | m.WorkGivenUp
    | m.ClientLost
    | m.ClientReturned
    | m.EdgeLost
    | m.EdgeReturned
    | m.TimerFired
    | m.RunCancelled
)
"""What a log may hold; one union for every protocol and role."""

_EVENTS = msgspec.msgpack.Decoder(AnyEvent)
_ENCODER = msgspec.msgpack.Encoder()


def encode_event(event: Event) -> bytes:
    """An event of any protocol as it stands in the log."""
    return _ENCODER.encode(event)


def decode_event(data: bytes) -> Event:
    """Reads an event of a log.

    Args:
        data: As written by `encode_event`.

    Returns:
        The event.

    Raises:
        StoreError: If the bytes are not an event.
    """
    try:
        event: Event = _EVENTS.decode(data)
    except UNREADABLE as error:
        raise StoreError(f"{len(data)} bytes in the log are not an event of a run: {error}.") from error
    return event
