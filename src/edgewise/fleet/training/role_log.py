"""A role's log in its node's database: its name, what a snapshot of it holds, and which run it is of."""

from __future__ import annotations

from typing import Any

import msgspec

from edgewise.core.errors import StoreError
from edgewise.core.ids import ClientId, Digest, NodeId, RunId
from edgewise.core.unreadable import UNREADABLE
from edgewise.fleet.store.events import EventLog
from edgewise.fleet.training.run_bytes import RunBytes
from edgewise.training.protocols.event_log import decode_event
from edgewise.training.protocols.messages import Received
from edgewise.training.protocols.run_spec import RunSpec

SNAPSHOT = "snapshot"


class Snapshot(msgspec.Struct, frozen=True):
    """What a log begins with once events before it are gone.

    Attributes:
        spec: The run.
        state: The role's, encoded.
        server: As of `RoleDriver`.
        seen: As of `RoleDriver`.
        mentioned: As of `RoleDriver`.
        moved: As of `RoleDriver`.
    """

    spec: RunSpec
    state: msgspec.Raw
    server: NodeId
    seen: tuple[ClientId, ...]
    mentioned: tuple[Digest, ...]
    moved: RunBytes = RunBytes()


UNFIT: tuple[type[Exception], ...] = (TypeError, *UNREADABLE)


def log_name(role_name: str, run: RunId) -> str:
    """Name of a role's log in its node's database: `client/digits-1`."""
    return f"{role_name}/{run}"


def state_in(found: Snapshot, state_type: Any) -> Any:
    """The state of a role that a snapshot holds.

    Raises:
        StoreError: If another version of Edgewise wrote it.
    """
    try:
        return msgspec.msgpack.decode(found.state, type=state_type)
    except UNFIT as error:
        raise StoreError(
            f"the state of run {found.spec.run!r} in this node's log cannot be read: {error}. "
            "Cancel the run, or go back to the version of Edgewise that wrote it.",
            run=found.spec.run,
        ) from error


def spec_in_log(events: EventLog, log: str) -> RunSpec | None:
    """The run that a log is of, from its first entry: a snapshot, or the letter that began it."""
    for entry in events.read(log):
        if entry.kind == SNAPSHOT:
            return msgspec.msgpack.decode(entry.payload, type=Snapshot).spec
        event = decode_event(entry.payload)
        if isinstance(event, Received):
            spec: RunSpec | None = getattr(event.letter, "spec", None)
            return spec
    return None
