"""Adds the error of a lossy codec to the next vector."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgewise.codecs.codec import Codec, Payload, Shape, State
from edgewise.core.spec import Spec


def error_feedback(codec: Codec) -> Codec:
    """Adds the inner codec's residual to the next update, so that no error is lost for good.

    The state is the residual and must stay with its client from round to round. For a codec that keeps at least the
    fraction δ of a vector's energy the residual stays below √(1−δ)/(1−√(1−δ)) times the largest update's norm.

    Args:
        codec: The codec to wrap, e.g. `top_k(0.1)`.

    Returns:
        A codec that is not biased; state (residual float32[...], state of `codec`).

    Reference:
        Karimireddy et al., "Error Feedback Fixes SignSGD and other Gradient Compression Schemes", ICML 2019.
    """

    def init(shape: Shape) -> State:
        return np.zeros(shape, np.float32), codec.init(shape)

    def encode(array: NDArray[np.float32], state: State, rng: np.random.Generator) -> tuple[Payload, State]:
        residual, inner = state
        corrected = array + residual
        payload, inner = codec.encode(corrected, inner, rng)
        return payload, (corrected - codec.decode(payload), inner)

    spec = Spec("error_feedback", {"codec": codec.spec})
    return Codec(spec=spec, init=init, encode=encode, decode=codec.decode, lossless=codec.lossless)
