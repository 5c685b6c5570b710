"""Encodes at half precision: two bytes per entry."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgewise.codecs.codec import Codec, Payload, State, stateless
from edgewise.core.errors import InputError
from edgewise.core.spec import Spec


def cast(dtype: str = "float16") -> Codec:
    """Rounds entries to IEEE half precision, the cheapest coding there is.

    Relative error at most 2⁻¹¹ for magnitudes in [2⁻¹⁴, 65504]; larger magnitudes become ±65504.

    Args:
        dtype: `float16`, the only narrower IEEE type numpy has.

    Returns:
        A codec: float32[...] -> values float16[...].

    Raises:
        InputError: If `dtype` is another type.
    """
    if dtype != "float16":
        raise InputError(f"cast takes dtype 'float16', found {dtype!r}. For fewer bits use int8() or int4().")
    largest = np.float32(np.finfo(np.float16).max)

    def encode(array: NDArray[np.float32], state: State, rng: np.random.Generator) -> tuple[Payload, State]:
        return Payload(array.shape, {"values": np.clip(array, -largest, largest).astype(np.float16)}), state

    def decode(payload: Payload) -> NDArray[np.float32]:
        return payload.array("values", np.float16, payload.shape).astype(np.float32)

    return Codec(spec=Spec("cast", {"dtype": dtype}), init=stateless, encode=encode, decode=decode)
