"""Counts frames and bytes by kind, purpose, direction and run. Read `energy.py` and `kpis.py` next."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from enum import StrEnum

import msgspec

from edgewise.core.ids import NodeId


class Purpose(StrEnum):
    """Names why a frame crosses a link, in priority order on the wire."""

    SERVING = "serving"
    CONTROL = "control"
    TRAINING = "training"
    BULK = "bulk"


class Direction(StrEnum):
    """Names the direction of a frame, as seen from the node that counts."""

    SENT = "sent"
    RECEIVED = "received"


class LedgerEntry(msgspec.Struct, frozen=True, kw_only=True):
    """Counts frames and bytes of one (node, kind, purpose, direction, run).

    Attributes:
        node: The node that counted.
        kind: Kind of frame, e.g. `update`, `stage_request`, `blob_chunk`.
        purpose: Why it crossed.
        direction: Sent or received by `node`.
        run: Run or version it belongs to; "" if none.
        num_frames: Frames counted.
        size_bytes: Their encoded size, header and body.
        data_classes: Data classes the tensors carried, e.g. ("raw",).
    """

    node: NodeId
    kind: str
    purpose: Purpose
    direction: Direction
    run: str
    num_frames: int
    size_bytes: int
    data_classes: tuple[str, ...] = ()


class FrameCounter:
    """Counts every frame of one node; thread-safe."""

    def __init__(self, node: NodeId) -> None:
        self.node = node
        self._rows: dict[tuple[str, Purpose, Direction, str, tuple[str, ...]], list[int]] = {}
        self._lock = threading.Lock()

    def count(
        self,
        kind: str,
        purpose: Purpose,
        direction: Direction,
        size_bytes: int,
        *,
        run: str = "",
        data_classes: Iterable[str] = (),
    ) -> None:
        """Adds one frame.

        Args:
            kind: Kind of frame.
            purpose: Why it crossed.
            direction: Sent or received.
            size_bytes: Encoded size.
            run: Run it belongs to.
            data_classes: Data classes of its tensors.
        """
        key = (kind, purpose, direction, run, tuple(sorted(data_classes)))
        with self._lock:
            row = self._rows.setdefault(key, [0, 0])
            row[0] += 1
            row[1] += size_bytes

    def entries(self) -> tuple[LedgerEntry, ...]:
        """Returns a snapshot, one entry per row."""
        with self._lock:
            rows = {key: tuple(row) for key, row in self._rows.items()}
        return tuple(
            LedgerEntry(
                node=self.node,
                kind=kind,
                purpose=purpose,
                direction=direction,
                run=run,
                num_frames=num,
                size_bytes=size,
                data_classes=classes,
            )
            for (kind, purpose, direction, run, classes), (num, size) in rows.items()
        )
