from __future__ import annotations

import numpy as np
import pytest

from edgewise.core.errors import FrameRefused
from edgewise.core.ids import Generation, NodeId
from edgewise.core.provenance import RAW, Origins, traced
from edgewise.ledger.entry import Direction, FrameCounter, Purpose
from edgewise.transport.frame import make_frame
from edgewise.transport.guard import FrameGuard


def guard(**fields: object) -> FrameGuard:
    return FrameGuard(node=NodeId("a"), generation=Generation(5), counter=FrameCounter(NodeId("a")), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("purpose", "is_signed"), [("control", True), ("training", True), ("serving", False), ("bulk", False)]
)
def test_guard_signs_control_and_training(purpose: str, is_signed: bool) -> None:
    a = guard(sign=lambda data: b"signature")
    frame = a.open(a.seal(make_frame("k", purpose=Purpose(purpose)), "key"))
    assert (frame.signature == b"signature") is is_signed
    assert (frame.sender, frame.generation, frame.sequence) == ("a", 5, int(is_signed))


def test_sequence_counts_signed_frames() -> None:
    a = guard(sign=lambda data: b"s")
    kinds = [Purpose.CONTROL, Purpose.SERVING, Purpose.TRAINING]
    assert [a.open(a.seal(make_frame("k", purpose=p), "key")).sequence for p in kinds] == [1, 0, 2]


def test_policy_is_asked_with_classes_and_key_only_for_traced_data() -> None:
    asked: list[tuple[Origins, str]] = []
    a = guard(allow=lambda origins, key: asked.append((origins, key)))
    a.seal(make_frame("k", tensors={"x": np.zeros(2)}), "plain")
    a.seal(make_frame("k", tensors={"x": traced(np.zeros(2), RAW)}), "there")
    assert asked == [(frozenset({RAW}), "there")]


def test_refused_bytes_are_counted_as_refused() -> None:
    a = guard()
    with pytest.raises(FrameRefused, match="not a frame"):
        a.open(b"x" * 40)
    (entry,) = a.counter.entries()
    assert (entry.kind, entry.direction, entry.size_bytes) == ("refused", Direction.RECEIVED, 40)
