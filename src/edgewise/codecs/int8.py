"""Encodes at one byte per entry, with one scale per row."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgewise.codecs.codec import Codec, Payload, State, rows_of, stateless
from edgewise.codecs.rounding import check_rounding, dequantise, quantise, scales_in
from edgewise.core.spec import Spec


def int8(rounding: str = "nearest") -> Codec:
    """Rounds entries to 255 levels of the row's largest magnitude.

    Payload n + 4 bytes a row: close to four times smaller than float32. The error of an entry is at most half a level
    (`nearest`) or one level (`stochastic`), a level being the row's largest magnitude / 127. For training choose
    `stochastic`, which is unbiased, or wrap in `error_feedback`; for activations `nearest`.

    Args:
        rounding: `nearest` or `stochastic`.

    Returns:
        A codec: float32[...] -> values int8[...], scale float32[rows].

    Raises:
        InputError: If `rounding` is not known.

    Example:
        >>> codec = int8()
        >>> payload, _ = codec.encode(np.array([1.0, -0.5], np.float32), (), np.random.default_rng(0))
        >>> payload.arrays["values"].tolist(), payload.size_bytes
        ([127, -64], 6)

    Reference:
        Alistarh et al., "QSGD", NeurIPS 2017, for the stochastic form.
        Differs: scales by the largest magnitude, not by the Euclidean norm.
    """
    check_rounding(rounding)

    def encode(array: NDArray[np.float32], state: State, rng: np.random.Generator) -> tuple[Payload, State]:
        levels, scale = quantise(array, 127, rounding, rng)
        return Payload(array.shape, {"values": levels.reshape(array.shape), "scale": scale}), state

    def decode(payload: Payload) -> NDArray[np.float32]:
        num_rows, num_entries = rows_of(payload.shape)
        levels = payload.array("values", np.int8, payload.shape).reshape(num_rows, num_entries)
        return dequantise(levels, scales_in(payload, num_rows), payload.shape)

    return Codec(spec=Spec("int8", {"rounding": rounding}), init=stateless, encode=encode, decode=decode)
