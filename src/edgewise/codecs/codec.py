"""Defines the contract of a codec: encoder and decoder as one value.

    array ── encode(array, state, rng) ──▶ Payload ── bytes ──▶ decode(payload) ──▶ array
                     └── next state (residual; () where a codec keeps none)

The same codec serves an update (`float32[d]`), a cohort of updates (`[clients, d]`) and activations
(`[batch, ...]`). The first axis of an array of two or more dimensions counts *rows*, and each row is coded alone: a
cohort coded at once equals its clients coded one by one. The smallest complete implementation is `cast.py`; how
payloads travel is `wire.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import DTypeLike, NDArray

from edgewise.core.errors import FrameRefused, InputError
from edgewise.core.provenance import origins_of, traced
from edgewise.core.spec import Spec

State = Any
Shape = tuple[int, ...]

MAX_ENTRIES = 2**28
"""Largest array a payload may claim to stand for: 1 GiB of float32."""


class Payload(msgspec.Struct, frozen=True, eq=False):
    """Holds the named arrays an encoder made, and the shape they stand for.

    Attributes:
        shape: Shape of the encoded float32 array.
        arrays: What travels; `values` is the main one, which the next codec of a chain encodes.
    """

    shape: Shape
    arrays: Mapping[str, NDArray[Any]] = {}

    @property
    def size_bytes(self) -> int:
        """Returns the bytes of all arrays, without frame and header."""
        return sum(array.nbytes for array in self.arrays.values())

    def array(self, name: str, dtype: DTypeLike, shape: tuple[int | None, ...]) -> NDArray[Any]:
        """Returns one received array, after checking its dtype and shape.

        Args:
            name: Its name.
            dtype: The dtype it must have.
            shape: The shape it must have; None in a place accepts any length.

        Returns:
            The array.

        Raises:
            FrameRefused: If it is missing, or has another dtype or shape.
        """
        if name not in self.arrays:
            raise FrameRefused(f"a payload of shape {self.shape} carries no {name!r}, only {sorted(self.arrays)}.")
        found = self.arrays[name]
        fits = found.shape == shape or (
            len(found.shape) == len(shape) and all(w is None or w == f for w, f in zip(shape, found.shape, strict=True))
        )
        if found.dtype != dtype or not fits:
            wanted = tuple("any" if n is None else n for n in shape)
            raise FrameRefused(
                f"array {name!r} of a payload of shape {self.shape} must be {np.dtype(dtype)}{wanted}, "
                f"found {found.dtype}{found.shape}."
            )
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Codec:
    """Holds an encoder-decoder pair.

    Whatever the two functions do, a codec refuses to encode what is not finite (unless it is lossless), refuses to
    decode a payload that does not give its shape or finite numbers, and carries origins over (`core/provenance`).

    Attributes:
        spec: Name and parameters that build it on the other end.
        init: shape -> state.
        encode: (float32 array, state, rng) -> (payload, next state).
        decode: payload -> float32 array of the payload's shape.
        lossless: decode(encode(x)) equals x to the last bit.
        biased: What it loses does not average out over rounds and clients (it always shrinks the vector, as `top_k`
            does); wants `error_feedback` in training.
        values_shape: Shape of the float32 `values` in the payload of an array of that shape, where the next codec of
            a chain may encode them; None where `values` are no longer float32.
        pack, unpack: payload -> payload; for codecs that pack bytes of any payload, as `zstd`.
    """

    spec: Spec
    init: Callable[[Shape], State]
    encode: Callable[[NDArray[np.float32], State, np.random.Generator], tuple[Payload, State]]
    decode: Callable[[Payload], NDArray[np.float32]]
    lossless: bool = False
    biased: bool = False
    values_shape: Callable[[Shape], Shape] | None = None
    pack: Callable[[Payload], Payload] | None = None
    unpack: Callable[[Payload], Payload] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "encode", _guarded_encode(self.encode, str(self.spec), self.lossless))
        object.__setattr__(self, "decode", _guarded_decode(self.decode, str(self.spec), self.lossless))

    def __repr__(self) -> str:
        return str(self.spec)


def stateless(shape: Shape) -> State:
    """Is the `init` of a codec without state."""
    return ()


def same_shape(shape: Shape) -> Shape:
    """Is the `values_shape` of a codec whose values keep the array's shape."""
    return shape


def rows_of(shape: Shape) -> tuple[int, int]:
    """Returns the number of rows and entries per row in which an array is coded.

    Args:
        shape: Of the whole array.

    Returns:
        (rows, entries per row): (1, d) for `[d]`, (clients, d) for `[clients, d]`.
    """
    return (1, prod(shape)) if len(shape) < 2 else (shape[0], prod(shape[1:]))


def _guarded_encode(encode: Any, spec: str, lossless: bool) -> Any:
    def guarded(array: NDArray[np.float32], state: State, rng: np.random.Generator) -> tuple[Payload, State]:
        origins = origins_of(array)
        plain = np.ascontiguousarray(np.asarray(array), np.float32)
        plain = plain.reshape(np.shape(array)).view(np.ndarray)
        if not lossless and not np.isfinite(plain).all():
            bad = np.flatnonzero(~np.isfinite(plain.ravel()))
            raise InputError(
                f"{spec} cannot encode an array with {bad.size} of {plain.size} entries not finite "
                f"(first at {bad[0]}). Finite values are needed; a diverged update wants a smaller learning rate."
            )
        payload, state = encode(plain, state, rng)
        if origins:
            payload = replace(payload, arrays={n: traced(a, *origins) for n, a in payload.arrays.items()})
        return payload, state

    return guarded


def _guarded_decode(decode: Any, spec: str, lossless: bool) -> Any:
    def guarded(payload: Payload) -> NDArray[np.float32]:
        check_shape(payload.shape)
        origins = origins_of(*payload.arrays.values())
        plain = {name: np.asarray(array) for name, array in payload.arrays.items()} if origins else payload.arrays
        array: NDArray[np.float32] = decode(Payload(payload.shape, plain))
        if array.shape != payload.shape or (not lossless and not np.isfinite(array).all()):
            raise FrameRefused(f"a payload of shape {payload.shape} does not decode with {spec} to finite numbers.")
        return traced(array, *origins) if origins else array

    return guarded


def check_shape(shape: Shape) -> None:
    """Validates a received shape.

    Args:
        shape: As found in a payload.

    Raises:
        FrameRefused: If it has more than 8 axes, a negative one, or more than `MAX_ENTRIES` entries.
    """
    if len(shape) == 1 and 0 <= shape[0] <= MAX_ENTRIES:
        return  # almost always
    if len(shape) > 8 or min(shape, default=0) < 0 or prod(max(n, 1) for n in shape) > MAX_ENTRIES:
        raise FrameRefused(f"a payload claims shape {shape}; at most 8 axes and {MAX_ENTRIES:,} entries are accepted.")
