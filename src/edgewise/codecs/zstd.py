"""Compresses the bytes of any payload without loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from edgewise.codecs.codec import Codec, Payload, State, stateless
from edgewise.codecs.wire import payload_from_bytes, payload_to_bytes
from edgewise.core.errors import FrameRefused, InputError
from edgewise.core.provenance import origins_of, traced
from edgewise.core.spec import Spec


def zstd(level: int = 3) -> Codec:
    """Compresses all arrays of a payload into one, without loss; the last member of a chain.

    Pays on quantised or sparse values (`chain(int8(), zstd())`); float32 noise hardly shrinks.

    Args:
        level: 1 (fast) to 19 (small).

    Returns:
        A lossless codec: payload -> packed uint8[m].

    Raises:
        InputError: If `level` is outside 1…19.

    Reference:
        Collet & Kucherawy, "Zstandard Compression", RFC 8878, 2021.
    """
    if not 1 <= level <= 19:
        raise InputError(f"zstd takes a level from 1 to 19, found {level!r}.")

    def pack(payload: Payload) -> Payload:
        packed = zstandard.ZstdCompressor(level=level, write_content_size=True).compress(payload_to_bytes(payload))
        array: NDArray[Any] = np.frombuffer(packed, np.uint8)
        origins = origins_of(*payload.arrays.values())
        return Payload(payload.shape, {"packed": traced(array, *origins) if origins else array})

    def unpack(payload: Payload) -> Payload:
        packed = payload.array("packed", np.uint8, (None,))
        inner = payload_from_bytes(_decompressed(packed.tobytes(), _limit(payload)))
        if inner.shape != payload.shape:
            raise FrameRefused(f"packed bytes hold shape {inner.shape}, their payload says {payload.shape}.")
        origins = origins_of(packed)
        return Payload(inner.shape, {n: traced(a, *origins) for n, a in inner.arrays.items()}) if origins else inner

    def encode(array: NDArray[np.float32], state: State, rng: np.random.Generator) -> tuple[Payload, State]:
        return pack(Payload(array.shape, {"values": array})), state

    def decode(payload: Payload) -> NDArray[np.float32]:
        return unpack(payload).array("values", np.float32, payload.shape)

    spec = Spec("zstd", {"level": level})
    return Codec(spec=spec, init=stateless, encode=encode, decode=decode, lossless=True, pack=pack, unpack=unpack)


def _limit(payload: Payload) -> int:
    # Every codec's arrays are smaller than twice the float32 array plus its header; more is a bomb.
    return 8 * int(np.prod(payload.shape, dtype=np.int64)) + 65_536


def _decompressed(packed: bytes, limit: int) -> bytes:
    try:
        size = zstandard.frame_content_size(packed)
        if not 0 <= size <= limit:
            raise FrameRefused(f"packed bytes claim {size:,} bytes inside, at most {limit:,} are accepted.")
        return zstandard.ZstdDecompressor().decompress(packed)
    except zstandard.ZstdError as error:
        raise FrameRefused(f"packed bytes cannot be unpacked: {error}.") from error
