"""Seals and opens every frame of a node: stamp, data policy, signature, count, tap. Transports only move its bytes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

from msgspec.structs import replace

from edgewise.core.errors import FrameRefused
from edgewise.core.ids import Generation, NodeId
from edgewise.core.provenance import Origins
from edgewise.ledger.entry import Direction, FrameCounter, Purpose
from edgewise.transport.frame import CHUNK_REQUEST, Frame, decode_frame, encode_frame

Sign = Callable[[bytes], bytes]
AllowOrigins = Callable[[Origins, str], None]
"""Takes (data classes, key); raises PolicyViolation if that data may not be sent to that key."""
Tap = Callable[[bytes], None]

_SIGNED = frozenset((Purpose.CONTROL, Purpose.TRAINING))
_SIGNED_KINDS = frozenset((CHUNK_REQUEST,))
"""Signed, too, though what answers them is not: who asks for a blob decides whether it gets it."""


@dataclass(slots=True, kw_only=True)
class FrameGuard:
    """Seals and opens the frames of one node; thread-safe.

    Attributes:
        node: Name stamped on outgoing frames.
        generation: Incarnation stamped on outgoing frames.
        counter: Counts every frame both ways.
        sign: Signs control and training frames, and what asks for a blob; None signs nothing.
        allow: The data policy; None refuses every frame that carries traced data.
        tap: Receives the plain bytes of every outgoing frame.
    """

    node: NodeId
    generation: Generation
    counter: FrameCounter
    sign: Sign | None = None
    allow: AllowOrigins | None = None
    tap: Tap | None = None
    _sequence: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def seal(self, frame: Frame, key: str) -> bytes:
        """Stamps, checks, signs, encodes and counts an outgoing frame.

        Args:
            frame: What to send; its sender, generation and sequence are overwritten.
            key: Where it goes, for the policy.

        Returns:
            Its bytes.

        Raises:
            PolicyViolation: If the policy does not let its data go there.
            FrameRefused: As `encode_frame`.
        """
        is_signed = frame.purpose in _SIGNED or frame.kind in _SIGNED_KINDS
        sign = _addressing(self.sign, key) if self.sign and is_signed else None
        sequence = next(self._sequence) if sign else 0
        frame = replace(frame, sender=self.node, generation=self.generation, sequence=sequence)
        data = encode_frame(frame, sign=sign, allow=self._allow_towards(key))
        self._count(frame, Direction.SENT, len(data))
        if self.tap is not None:
            self.tap(data)
        return data

    def open(self, data: bytes | memoryview) -> Frame:
        """Decodes and counts an incoming frame; its signature is checked where it is consumed.

        Args:
            data: The bytes.

        Returns:
            The frame.

        Raises:
            FrameRefused: As `decode_frame`; counted under the kind `refused`.
        """
        try:
            frame = decode_frame(data)
        except FrameRefused:
            self.counter.count("refused", Purpose.CONTROL, Direction.RECEIVED, len(data))
            raise
        self._count(frame, Direction.RECEIVED, len(data))
        return frame

    def _allow_towards(self, key: str) -> Callable[[Origins], None] | None:
        allow = self.allow
        if allow is None:
            return None
        return lambda origins: allow(origins, key) if origins else None

    def _count(self, frame: Frame, direction: Direction, size_bytes: int) -> None:
        self.counter.count(frame.kind, frame.purpose, direction, size_bytes, run=frame.run, data_classes=frame.origins)


def addressed(signed_bytes: bytes, key: str) -> bytes:
    """Returns the bytes a signature covers: the frame and its destination key, so that it cannot be replayed elsewhere.

    Args:
        signed_bytes: The frame up to its digest, `Frame.signed_bytes`.
        key: The service key it was sent to; the receiver's own.

    Returns:
        The bytes to sign, or to check.
    """
    return b"".join((signed_bytes, b"\0", key.encode()))


def _addressing(sign: Sign, key: str) -> Sign:
    return lambda signed_bytes: sign(addressed(signed_bytes, key))
