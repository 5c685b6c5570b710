"""Rejects replayed frames by a window over (generation, sequence): each signed frame is accepted once."""

from __future__ import annotations

import msgspec

WINDOW = 1024
"""Frames of one sender may overtake each other by this many."""


class ReplayWindow(msgspec.Struct, frozen=True):
    """Holds which frames of one sender were seen, as a value that can be stored with the log.

    Attributes:
        generation: The newest incarnation seen.
        newest: The largest sequence number of that incarnation.
        seen: Bit i is set if `newest - i` was seen.

    Reference:
        Kent, "IP Encapsulating Security Payload (ESP)", RFC 4303, section 3.4.3 (anti-replay window).
        Differs: a newer incarnation of the sender starts a new window.
    """

    generation: int = -1
    newest: int = -1
    seen: bytes = b""

    def take(self, generation: int, sequence: int) -> ReplayWindow | str:
        """Accepts a frame, or returns why not.

        Args:
            generation: The frame's incarnation of its sender.
            sequence: Its number in that incarnation, from 0.

        Returns:
            The next window, or `"stale_generation"`, `"replayed"` or `"too_late"`.
        """
        if generation < self.generation:
            return "stale_generation"
        if generation > self.generation:
            return ReplayWindow(generation, sequence, b"\x01")
        bits = int.from_bytes(self.seen, "little")
        if sequence > self.newest:
            bits = (bits << min(sequence - self.newest, WINDOW)) | 1
            return _window(generation, sequence, bits)
        age = self.newest - sequence
        if age >= WINDOW:
            return "too_late"
        if bits >> age & 1:
            return "replayed"
        return _window(generation, self.newest, bits | 1 << age)


def _window(generation: int, newest: int, bits: int) -> ReplayWindow:
    bits &= (1 << WINDOW) - 1
    return ReplayWindow(generation, newest, bits.to_bytes((bits.bit_length() + 7) // 8, "little"))
