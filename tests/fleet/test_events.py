"""Published events are typed: each kind has a struct, and what does not fit it is refused at both ends."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from edgewise.core.errors import FrameRefused
from edgewise.core.ids import NodeId, RunId, Tier
from edgewise.fleet.messages.fleet_events import (
    KINDS,
    DriftDetectedEvent,
    ModelEvent,
    NodeReadyEvent,
    RolledBackEvent,
    RunEndedEvent,
    event_fields,
    event_frame,
    event_of,
    kind_of_event,
    read_event,
)
from edgewise.transport.frame import Frame

FIELDS: dict[str, dict[str, Any]] = {
    "node_ready": {"node": "edge-1", "tier": "edge"},
    "node_lost": {"node": "edge-1", "cause": "gone"},
    "round_closed": {"run": "r", "round": 3, "loss": 0.5},
    "run_waiting": {"run": "r", "round": 3, "sentence": "waits for a"},
    "quarantined": {"run": "r", "client": "a", "reason": "not finite"},
    "run_ended": {"run": "r", "state": "completed", "cause": "", "version": 1},
    "version_registered": {"version": 1, "passed": True},
    "codec_gate": {"plan": "p", "passed": False, "reason": "loses 0.1"},
    "deployed": {"version": 1, "revision": 8, "plan": "p", "overridden": ""},
    "node_updated": {"node": "device-1", "version": 1, "cause": ""},
    "rollout_begun": {"version": 1, "devices": ("device-1",)},
    "rollout_ended": {"version": 1, "outcome": "completed", "cause": ""},
    "rolled_back": {"from": 2, "to": 1},
    "plan_switched": {"node": "device-1", "revision": 9, "why": "the link is slow"},
    "drift_detected": {
        "version": 1,
        "statistic": 3.0,
        "threshold": 2.0,
        "num_since": 12,
        "monitor": "harm",
        "what": "concept",
        "text": "drift: look here",
    },
}


def test_every_kind_has_a_struct() -> None:
    assert sorted(KINDS) == sorted(FIELDS)


@pytest.mark.parametrize("kind", KINDS)
def test_an_event_survives_its_frame(kind: str) -> None:
    event = event_of(kind, FIELDS[kind])
    frame = event_frame(event)
    assert (frame.kind, frame.run) == (kind, FIELDS[kind].get("run", ""))
    assert read_event(frame) == event
    assert event_fields(event) == FIELDS[kind] | ({"model": ""} if isinstance(event, ModelEvent) else {})
    assert kind_of_event(event) == kind


def test_events_are_values_of_their_own_types() -> None:
    assert event_of("node_ready", FIELDS["node_ready"]) == NodeReadyEvent(NodeId("edge-1"), Tier.EDGE)
    assert event_of("run_ended", FIELDS["run_ended"]) == RunEndedEvent(RunId("r"), "completed", version=1)
    assert event_of("rolled_back", FIELDS["rolled_back"]) == RolledBackEvent(source=2, target=1)
    assert event_of("drift_detected", FIELDS["drift_detected"]) == DriftDetectedEvent(
        1, 3.0, 2.0, 12, "harm", "concept", "drift: look here"
    )


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("node_away", {}),
        ("node_lost", {"node": "edge-1"}),
        ("deployed", {"version": "one"}),
        ("node_lost", {"node": "edge-1", "cause": "gone", "whose": "a"}),
    ],
)
def test_what_is_no_event_is_refused_where_it_is_made(kind: str, fields: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        event_of(kind, fields)


@pytest.mark.parametrize("message", [b"", b"\xc0", msgspec.msgpack.encode({"kind": "node_lost"}), b"\x82\xa4kind"])
def test_what_is_no_event_is_refused_where_it_arrives(message: bytes) -> None:
    with pytest.raises(FrameRefused, match="event 'node_lost' from 'edge-1' cannot be read"):
        read_event(Frame(kind="node_lost", message=message, sender=NodeId("edge-1")))
