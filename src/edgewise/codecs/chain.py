"""Chains codecs; decoding reverses them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.codecs.codec import Codec, Payload, Shape, State
from edgewise.codecs.none import none
from edgewise.core.errors import MisfitError
from edgewise.core.spec import Spec


def chain(*codecs: Codec) -> Codec:
    """Encodes with the first codec, then its `values` with the next, and so on; packers take all bytes.

    Args:
        *codecs: One or more, in the order of encoding: `chain(top_k(0.1), cast(), zstd())`.

    Returns:
        A codec; biased if one is, lossless if all are. Arrays of codec i are named `i.name`.

    Raises:
        MisfitError: If a codec follows one whose values are no longer float32.
    """
    if not codecs:
        raise MisfitError("chain needs at least one codec. Use none() to code nothing.")
    for index, (codec, following) in enumerate(pairwise(codecs)):
        if following.pack is None and (codec.values_shape is None or codec.pack is not None):
            raise MisfitError(
                f"{following} cannot follow {codec} (place {index} of the chain): its values are no longer float32. "
                "Put the codec that keeps float32 values (top_k) first and a packer (zstd) last."
            )
    coders = tuple(c for c in codecs if c.pack is None) or (none(),)
    packers = tuple(c for c in codecs if c.pack is not None)

    def shapes(shape: Shape) -> list[Shape]:
        found = [shape]
        for codec in coders[:-1]:
            assert codec.values_shape is not None
            found.append(codec.values_shape(found[-1]))
        return found

    def init(shape: Shape) -> State:
        return tuple(c.init(s) for c, s in zip(coders, shapes(shape), strict=True))

    def encode(array: NDArray[np.float32], state: State, rng: np.random.Generator) -> tuple[Payload, State]:
        values, arrays, after = array, dict[str, NDArray[Any]](), []
        for index, (codec, before) in enumerate(zip(coders, state, strict=True)):
            part, following = codec.encode(values, before, rng)
            after.append(following)
            values = part.arrays["values"]
            arrays |= {f"{index}.{n}": a for n, a in part.arrays.items() if n != "values" or codec is coders[-1]}
        payload = Payload(array.shape, arrays)
        for packer in packers:
            assert packer.pack is not None
            payload = packer.pack(payload)
        return payload, tuple(after)

    def decode(payload: Payload) -> NDArray[np.float32]:
        for packer in reversed(packers):
            assert packer.unpack is not None
            payload = packer.unpack(payload)
        values: NDArray[np.float32] | None = None
        for index, shape in reversed(list(enumerate(shapes(payload.shape)))):
            prefix = f"{index}."
            arrays = {n.removeprefix(prefix): a for n, a in payload.arrays.items() if n.startswith(prefix)}
            values = coders[index].decode(Payload(shape, arrays if values is None else arrays | {"values": values}))
        assert values is not None
        return values

    return Codec(
        spec=Spec("chain", {"codecs": tuple(c.spec for c in codecs)}),
        init=init,
        encode=encode,
        decode=decode,
        lossless=all(c.lossless for c in codecs),
        biased=any(c.biased for c in codecs),
    )
