"""Sends float32 without coding."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgewise.codecs.codec import Codec, Payload, State, same_shape, stateless
from edgewise.core.spec import Spec


def none() -> Codec:
    """Sends float32 entries unchanged; the baseline of all codecs.

    Returns:
        A lossless codec: float32[...] -> values float32[...].
    """

    def encode(array: NDArray[np.float32], state: State, rng: np.random.Generator) -> tuple[Payload, State]:
        return Payload(array.shape, {"values": array}), state

    def decode(payload: Payload) -> NDArray[np.float32]:
        return payload.array("values", np.float32, payload.shape)

    return Codec(
        spec=Spec("none"), init=stateless, encode=encode, decode=decode, lossless=True, values_shape=same_shape
    )
