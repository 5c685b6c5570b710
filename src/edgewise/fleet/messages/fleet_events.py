"""Defines the events a fleet publishes, one typed struct per kind; `keys.event(node)` carries them.

Events are for people and watchers: they may be lost, and nothing is decided by them alone. The kind of an event is its
tag and the kind of its frame, so that a subscriber can filter without decoding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import msgspec

from edgewise.core.errors import FrameRefused
from edgewise.core.ids import ClientId, NodeId, RunId, Tier
from edgewise.core.unreadable import UNREADABLE
from edgewise.transport.frame import Frame


class FleetEvent(msgspec.Struct, frozen=True, tag_field="kind"):
    """Is the base of every published event."""


class NodeReadyEvent(FleetEvent, frozen=True, tag="node_ready"):
    """Reports that a node is alive and known."""

    node: NodeId
    tier: Tier


class NodeLostEvent(FleetEvent, frozen=True, tag="node_lost"):
    """Reports that a node is lost, and why."""

    node: NodeId
    cause: str


class RoundClosedEvent(FleetEvent, frozen=True, tag="round_closed"):
    """Reports a closed round and its loss; None where no client reported one."""

    run: RunId
    round: int
    loss: float | None = None


class RunWaitingEvent(FleetEvent, frozen=True, tag="run_waiting"):
    """Reports what a run waits for, as a sentence."""

    run: RunId
    round: int
    sentence: str


class ClientQuarantinedEvent(FleetEvent, frozen=True, tag="quarantined"):
    """Reports that a client's update was refused and it takes no further part in the run."""

    run: RunId
    client: ClientId
    reason: str


class RunEndedEvent(FleetEvent, frozen=True, tag="run_ended"):
    """Reports the terminal state of a run; `version` is 0 where it made none."""

    run: RunId
    state: str
    cause: str = ""
    version: int = 0


class ModelEvent(FleetEvent, frozen=True, kw_only=True):
    """Is the base of events about one served model; `model` is "" where a fleet serves only one."""

    model: str = ""


class VersionRegisteredEvent(ModelEvent, frozen=True, tag="version_registered"):
    """Reports a new version and whether it passed the gate."""

    version: int
    passed: bool


class CodecGateEvent(ModelEvent, frozen=True, tag="codec_gate"):
    """Reports whether a plan's lossy codec keeps enough accuracy."""

    plan: str
    passed: bool
    reason: str = ""


class DeployedEvent(ModelEvent, frozen=True, tag="deployed"):
    """Reports which version and plan are in force now; `overridden` says what an operator overrode for it, "" if nothing."""

    version: int
    revision: int
    plan: str
    overridden: str = ""


class NodeUpdatedEvent(ModelEvent, frozen=True, tag="node_updated"):
    """Reports that a device installed a version; `cause` says why not, "" if it did."""

    node: NodeId
    version: int
    cause: str = ""


class RolloutBegunEvent(ModelEvent, frozen=True, tag="rollout_begun"):
    """Reports the start of a staged rollout to these devices."""

    version: int
    devices: tuple[NodeId, ...]


class RolloutEndedEvent(ModelEvent, frozen=True, tag="rollout_ended"):
    """Reports the outcome of a staged rollout: `completed` or `rolled_back`."""

    version: int
    outcome: str
    cause: str = ""


class RolledBackEvent(ModelEvent, frozen=True, tag="rolled_back"):
    """Reports that an operator restored the version that served before."""

    source: int = msgspec.field(name="from")
    target: int = msgspec.field(name="to")


class PlanSwitchedEvent(ModelEvent, frozen=True, tag="plan_switched"):
    """Reports that a device switched to another of its plans, and why."""

    node: NodeId
    revision: int
    why: str


class DriftDetectedEvent(ModelEvent, frozen=True, tag="drift_detected"):
    """Reports that the inputs of a version have drifted.

    Attributes:
        version: The version in force.
        statistic: The detector's statistic.
        threshold: What it exceeds.
        num_since: Examples since the estimated onset.
        monitor: `harm`, from labels, or `change`, without.
        what: What changed: `class mix`, `covariates`, `answers`, `concept`.
        text: What was found, in words.
    """

    version: int
    statistic: float
    threshold: float
    num_since: int
    monitor: str = "change"
    what: str = ""
    text: str = ""


AnyEvent = (
    NodeReadyEvent
    | NodeLostEvent
    | RoundClosedEvent
    | RunWaitingEvent
    | ClientQuarantinedEvent
    | RunEndedEvent
    | VersionRegisteredEvent
    | CodecGateEvent
    | DeployedEvent
    | NodeUpdatedEvent
    | RolloutBegunEvent
    | RolloutEndedEvent
    | RolledBackEvent
    | PlanSwitchedEvent
    | DriftDetectedEvent
)
KINDS = tuple(str(event.__struct_config__.tag) for event in get_args(AnyEvent))
"""Every kind that is published."""


def event_of(kind: str, fields: Mapping[str, Any]) -> AnyEvent:
    """Makes the event of a kind from its fields.

    Args:
        kind: One of `KINDS`.
        fields: By name.

    Returns:
        The event.

    Raises:
        msgspec.ValidationError: If there is no such kind, or a field is missing, unknown or of another type.
    """
    event: AnyEvent = msgspec.convert({"kind": kind, **fields}, AnyEvent)
    unknown = set(fields) - set(event.__struct_encode_fields__)
    if unknown:
        raise msgspec.ValidationError(f"event {kind!r} has no field {', '.join(map(repr, sorted(unknown)))}")
    return event


def kind_of_event(event: AnyEvent) -> str:
    """Returns the kind of an event, e.g. `node_ready`."""
    return str(event.__struct_config__.tag)


def event_fields(event: AnyEvent) -> dict[str, Any]:
    """Returns the fields of an event as plain values, without its kind."""
    fields: dict[str, Any] = msgspec.to_builtins(event)
    del fields["kind"]
    return fields


def event_frame(event: AnyEvent) -> Frame:
    """Makes the frame that publishes an event.

    Args:
        event: What happened.

    Returns:
        A frame whose kind is the event's and whose run is the event's run, "" if it has none.
    """
    run = str(getattr(event, "run", ""))
    return Frame(kind=kind_of_event(event), message=msgspec.msgpack.encode(event), run=run)


def read_event(frame: Frame) -> AnyEvent:
    """Decodes a published event.

    Args:
        frame: As received.

    Returns:
        The event.

    Raises:
        FrameRefused: If it is none of `KINDS`, or its fields are wrong.
    """
    try:
        event: AnyEvent = msgspec.msgpack.decode(frame.message, type=AnyEvent)
    except UNREADABLE as error:
        raise FrameRefused(f"event {frame.kind!r} from {frame.sender!r} cannot be read: {error}.") from error
    return event
