"""Encodes arrays as PNG with zlib alone; the bytes keep the origins of their content."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.core.errors import InputError
from edgewise.core.provenance import TracedBytes, origins_of

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB = 0, 2


def encode_png(array: NDArray[Any], *, level: int = 6) -> TracedBytes:
    """Encodes an image as PNG.

    Args:
        array: uint8[height, width] or uint8[height, width, 3]; floats in 0…1 are scaled by 255 and rounded.
        level: zlib's effort, 0-9.

    Returns:
        The PNG file, with the array's origins.

    Raises:
        InputError: If the shape is no image or a float is outside 0…1.

    Reference:
        W3C, "Portable Network Graphics (PNG) Specification (Third Edition)", 2025.
        Differs: writes 8-bit grey and RGB with filter 0 only.
    """
    origins = origins_of(array)
    pixels = np.asarray(array)
    if pixels.ndim not in (2, 3) or pixels.size == 0 or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise InputError(f"an image has shape [height, width] or [height, width, 3], found {pixels.shape}.")
    if pixels.dtype != np.uint8:
        if not (np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 1):
            raise InputError(f"an image of {pixels.dtype} has values in 0…1. Scale it, or give uint8.")
        pixels = np.rint(pixels * 255).astype(np.uint8)
    height, width = pixels.shape[:2]
    rows = np.ascontiguousarray(pixels).reshape(height, -1)
    filtered = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1)  # filter type 0 in front of each row
    header = struct.pack(">IIBBBBB", width, height, 8, _GREY if pixels.ndim == 2 else _RGB, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(filtered.tobytes(), level)), (b"IEND", b"")]
    return TracedBytes(_SIGNATURE + b"".join(_chunk(kind, data) for kind, data in chunks), origins)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
