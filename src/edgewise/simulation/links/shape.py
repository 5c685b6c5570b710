"""Computes when bytes arrive over a link with rate, delay, jitter, loss and a bounded queue. No sockets here.

`link.py` applies it to TCP connections. Times are computed, never accumulated from timers, so a late timer
delays a few bytes and never changes the rate.
"""

from __future__ import annotations

import random

import msgspec

from edgewise.core.errors import InputError

PACKET_BYTES = 1448
_QUEUE_S = 0.1
_MIN_QUEUE_BYTES = 16 * 1024
_PIECE_S = 0.0005
_UNLIMITED_BYTES = 4 * 2**20


class Shape(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Describes one direction of a link.

    Attributes:
        bytes_per_s: Rate; None is as fast as the machine.
        delay_s: One-way delay.
        jitter_s: Extra delay, uniform in [0, jitter_s]; order is kept.
        loss_fraction: Share of packets lost. TCP carries the bytes, so a loss shows as one more round trip
            for the packet and everything behind it, and as the packet's second trip over the link.
        queue_bytes: Bound of the queue before the link; None is 100 ms of the rate, at least 16 KiB.
    """

    bytes_per_s: float | None = None
    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss_fraction: float = 0.0
    queue_bytes: int | None = None

    @property
    def bound_bytes(self) -> int:
        """Returns the bound of the queue in bytes."""
        if self.queue_bytes is not None:
            return self.queue_bytes
        if self.bytes_per_s is None:
            return _UNLIMITED_BYTES
        return max(_MIN_QUEUE_BYTES, int(_QUEUE_S * self.bytes_per_s))

    @property
    def piece_bytes(self) -> int:
        """Returns the bytes that travel together: a packet, or half a millisecond of a fast link."""
        if self.bytes_per_s is None:
            return 2**16
        return max(PACKET_BYTES, min(2**16, int(_PIECE_S * self.bytes_per_s)))


class LinkSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Describes a link to open.

    Attributes:
        name: For control and counters.
        target: `host:port` it leads to.
        shape: Both directions, unless `down` is given.
        down: The way back, where it differs.
        listen: `host:port` to listen on; port 0 is any free one.
        seed: Of jitter and losses.
    """

    name: str
    target: str
    shape: Shape = Shape()
    down: Shape | None = None
    listen: str = "127.0.0.1:0"
    seed: int = 0


class Course:
    """Schedules one direction: when the link is free, when the last byte arrives.

    Example:
        >>> course = Course(Shape(bytes_per_s=1000.0, delay_s=0.5), random.Random(0))
        >>> course.admit(100, now=0.0), course.admit(100, now=0.0)
        (0.6, 0.7)
        >>> course.waiting_bytes(0.1)
        100
    """

    def __init__(self, shape: Shape, rng: random.Random) -> None:
        self.shape = shape
        self.free_at = 0.0
        self._last_due = 0.0
        self._rng = rng

    def waiting_bytes(self, now: float) -> int:
        """Returns the queued bytes."""
        if self.shape.bytes_per_s is None:
            return 0
        return max(0, round((self.free_at - now) * self.shape.bytes_per_s))

    def room_bytes(self, now: float) -> int:
        """Returns the free bytes of the queue."""
        return self.shape.bound_bytes - self.waiting_bytes(now)

    def room_at(self, size_bytes: int) -> float:
        """Returns when the queue has room for that many bytes (at most all of its bound)."""
        if self.shape.bytes_per_s is None:
            return 0.0
        size_bytes = min(size_bytes, self.shape.bound_bytes)
        return self.free_at - (self.shape.bound_bytes - size_bytes) / self.shape.bytes_per_s

    def admit(self, size_bytes: int, now: float) -> float:
        """Puts bytes on the link.

        Args:
            size_bytes: At most a piece.
            now: Seconds.

        Returns:
            When the last of them arrives; never before what was admitted earlier.
        """
        shape = self.shape
        self.free_at = max(self.free_at, now)
        self._occupy(size_bytes)
        due = self.free_at + shape.delay_s
        if shape.jitter_s:
            due += self._rng.uniform(0.0, shape.jitter_s)
        if shape.loss_fraction:
            packets = -(-size_bytes // PACKET_BYTES)
            if self._rng.random() < 1.0 - (1.0 - shape.loss_fraction) ** packets:
                self._occupy(min(size_bytes, PACKET_BYTES))
                due += 2.0 * shape.delay_s
        self._last_due = max(self._last_due, due)
        return self._last_due

    def _occupy(self, size_bytes: int) -> None:
        if self.shape.bytes_per_s is not None:
            self.free_at += size_bytes / self.shape.bytes_per_s

    def restart(self, shape: Shape, now: float, arrived_until: float) -> None:
        """Changes the shape; the caller admits queued bytes again.

        Args:
            shape: The new one.
            now: Seconds.
            arrived_until: When the last byte that is already past the queue arrives.
        """
        self.shape = shape
        self.free_at = now
        self._last_due = arrived_until


def split_address(text: str) -> tuple[str, int]:
    """Parses `host:port`.

    Args:
        text: A host name, IPv4 or `[IPv6]`, and a port.

    Returns:
        Host and port.

    Raises:
        InputError: If it is written otherwise.
    """
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise InputError(f"{text!r} is not an address. Write it like '127.0.0.1:7447'.")
    return host.strip("[]"), int(port)
