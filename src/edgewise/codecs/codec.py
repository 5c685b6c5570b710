"""The contract of a codec: both ends of a scheme as one value.

    array ── encode(array, state, rng) ──▶ Payload ── bytes ──▶ decode(payload) ──▶ array
                     └── next state (residual; () where a codec keeps none)

The same codec serves an update (`float32[d]`), a cohort of updates (`[clients, d]`, row by row) and an
activation of any shape. The smallest complete implementation is `cast.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.core.spec import Spec

State = Any


@dataclass(frozen=True, slots=True)
class Payload:
    """What an encoder made: named arrays, and the shape they stand for.

    Attributes:
        shape: Shape of the encoded float32 array.
        arrays: What travels; `values` is the main one, which the next codec of a chain encodes.
    """

    shape: tuple[int, ...]
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """Bytes of all arrays, without frame and header."""
        return sum(array.nbytes for array in self.arrays.values())


@dataclass(frozen=True, slots=True)
class Codec:
    """An encoder-decoder pair.

    Attributes:
        spec: The words that build it on the other end.
        init: shape -> state.
        encode: (float32 array, state, rng) -> (payload, next state).
        decode: payload -> float32 array of the payload's shape.
        lossless: decode(encode(x)) equals x to the last bit.
        biased: E[decode(encode(x))] differs from x; wants `error_feedback` in training.
    """

    spec: Spec
    init: Callable[[tuple[int, ...]], State]
    encode: Callable[[NDArray[np.float32], State, np.random.Generator], tuple[Payload, State]]
    decode: Callable[[Payload], NDArray[np.float32]]
    lossless: bool = False
    biased: bool = False

    def __repr__(self) -> str:
        return str(self.spec)


def stateless(shape: tuple[int, ...]) -> State:
    """`init` of a codec that keeps no state."""
    return ()
