"""The format of a run's log: one msgpack map per event, with its tag."""

from __future__ import annotations

import msgspec

from edgewise.core.errors import StoreError
from edgewise.training.protocols import messages as m
from edgewise.training.protocols import regions as r
from edgewise.training.protocols.messages import Event

_FLAT = (
    m.RunStarted
    | m.UpdateReceived
    | m.UpdateInvalid
    | m.ClientFailed
    | m.ClientLost
    | m.ClientReturned
    | m.RoundTimedOut
    | m.RunCancelled
)
_EDGE = r.RegionOpened | r.SumAcknowledged | r.RunDismissed
_CLOUD = r.HierarchyStarted | r.SumReceived | r.EdgeLost | r.EdgeReturned | r.ClientHomed
_EVENTS = msgspec.msgpack.Decoder(_FLAT | _EDGE | _CLOUD)


def encode_event(event: Event) -> bytes:
    """An event of any protocol as it stands in the log."""
    return msgspec.msgpack.encode(event)


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
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise StoreError(f"{len(data)} bytes in the log are not an event of a run: {error}.") from error
    return event
