"""Parses and formats quantities; inside, every quantity is SI: seconds, bytes, joules."""

from __future__ import annotations

import re

from edgewise.core.errors import InputError

_SCALE = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
_RATE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(|k|M|G)(bit|B)/s\s*")
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(|k|M|G|Ki|Mi|Gi)B\s*")
_SPEED = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(|k|M|G)FLOP/s\s*")
_TIME = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(us|ms|s|min|h)\s*")
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}


def parse_rate(text: str) -> float:
    """Parses a data rate.

    Args:
        text: e.g. "20 Mbit/s", "64 kbit/s", "2.5 MB/s" (decimal prefixes).

    Returns:
        Bytes per second.

    Raises:
        InputError: If the text is not a rate.

    Example:
        >>> parse_rate("20 Mbit/s")
        2500000.0
    """
    match = _RATE.fullmatch(text)
    if match is None:
        raise InputError(f"{text!r} is not a data rate. Write it like '20 Mbit/s' or '2.5 MB/s'.")
    number, prefix, unit = match.groups()
    return float(number) * _SCALE[prefix] / (8 if unit == "bit" else 1)


def parse_size(text: str) -> int:
    """Parses a size.

    Args:
        text: e.g. "16 KiB", "200 MB".

    Returns:
        Bytes.

    Raises:
        InputError: If the text is not a size.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise InputError(f"{text!r} is not a size. Write it like '16 KiB' or '200 MB'.")
    return int(float(match[1]) * _SCALE[match[2]])


def parse_speed(text: str) -> float:
    """Parses a computing speed.

    Args:
        text: e.g. "200 MFLOP/s"; a multiply-add counts as two operations.

    Returns:
        Operations per second.

    Raises:
        InputError: If the text is not a speed above 0.
    """
    match = _SPEED.fullmatch(text)
    if match is None or float(match[1]) == 0:
        raise InputError(f"{text!r} is not a speed. Write it like '200 MFLOP/s' or '10 GFLOP/s', above 0.")
    return float(match[1]) * _SCALE[match[2]]


def parse_duration(text: str) -> float:
    """Parses a duration.

    Args:
        text: e.g. "5 ms", "2 s", "10 min".

    Returns:
        Seconds.

    Raises:
        InputError: If the text is not a duration.
    """
    match = _TIME.fullmatch(text)
    if match is None:
        raise InputError(f"{text!r} is not a duration. Write it like '5 ms', '2 s' or '10 min'.")
    return float(match[1]) * _SECONDS[match[2]]


def format_bytes(size_bytes: float) -> str:
    """Formats a size with three digits, decimal: `1.52 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size_bytes) < 1000 or unit == "GB":
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.2f} {unit}"
        size_bytes /= 1000
    raise AssertionError("unreachable")


def format_rate(bytes_per_s: float) -> str:
    """Formats a rate in bits: `20 Mbit/s`."""
    bits = bytes_per_s * 8
    for unit in ("bit/s", "kbit/s", "Mbit/s", "Gbit/s"):
        if bits < 1000 or unit == "Gbit/s":
            return f"{bits:.3g} {unit}"
        bits /= 1000
    raise AssertionError("unreachable")
