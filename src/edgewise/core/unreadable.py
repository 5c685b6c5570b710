"""What reading msgpack or JSON that somebody else wrote may raise; whoever reads it says what it was to be."""

from __future__ import annotations

import msgspec

UNREADABLE: tuple[type[Exception], ...] = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""Not the format or not the type, text that is no UTF-8, and what is nested deeper than a stack."""
