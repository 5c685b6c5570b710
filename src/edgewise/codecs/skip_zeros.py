"""Sends nothing for ranges of a vector that are zero: what a client leaves as it was received, or keeps to itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgewise.codecs.codec import Codec, Payload, Shape, State, rows_of
from edgewise.core.errors import InputError
from edgewise.core.spec import Spec

_PART = "skipped_"


def skip_zeros(codec: Codec, ranges: Sequence[Sequence[int]]) -> Codec:
    """Codes what lies between ranges that are expected to be zero; a range that is not travels as it is.

    Zeros of either sign come back as 0.

    Runs put it around the uplink by themselves (`training/unsent.py`), for frozen tensors and those that stay on a client.

    Args:
        codec: Codes the other entries.
        ranges: (offset, size) within a row, ascending, without overlap; what is beyond the row's end is not there.

    Returns:
        The codec; the state is that of `codec`.

    Raises:
        InputError: If the ranges overlap or do not ascend.
    """
    bounds = [(int(offset), int(offset) + int(size)) for offset, size in ranges]
    ends = [0, *(high for _, high in bounds)]
    if any(not end <= low < high for end, (low, high) in zip(ends, bounds, strict=False)):
        raise InputError(f"skip_zeros takes ranges that ascend and do not overlap, found {[*map(tuple, ranges)][:10]}.")

    def parts(length: int) -> tuple[list[slice], list[slice]]:
        """Slices of a row that are coded, and those of the ranges."""
        skipped = [slice(min(low, length), min(high, length)) for low, high in bounds]
        ends = [0, *(part.stop for part in skipped)]
        return [slice(a, b) for a, b in zip(ends, [*(p.start for p in skipped), length], strict=True)], skipped

    def inner_shape(shape: Shape) -> Shape:
        num_rows, length = rows_of(shape)
        width = length - sum(part.stop - part.start for part in parts(length)[1])
        return (width,) if len(shape) < 2 else (num_rows, width)

    def encode(array: NDArray[np.float32], state: State, rng: np.random.Generator) -> tuple[Payload, State]:
        rows = array.reshape(rows_of(array.shape))
        coded, skipped = parts(rows.shape[1])
        kept = np.concatenate([rows[:, part] for part in coded], axis=1)
        payload, state = codec.encode(kept.reshape(inner_shape(array.shape)), state, rng)
        named = {f"{_PART}{index}": np.ascontiguousarray(rows[:, part]) for index, part in enumerate(skipped)}
        others = {name: part for name, part in named.items() if part.any()}
        return Payload(array.shape, {**payload.arrays, **others}), state

    def decode(payload: Payload) -> NDArray[np.float32]:
        num_rows, length = rows_of(payload.shape)
        coded, skipped = parts(length)
        inner = {name: array for name, array in payload.arrays.items() if not name.startswith(_PART)}
        shape = inner_shape(payload.shape)
        kept = codec.decode(Payload(shape, inner)).reshape(num_rows, shape[-1])
        rows, at = np.zeros((num_rows, length), np.float32), 0
        for part in coded:
            rows[:, part] = kept[:, at : at + part.stop - part.start]
            at += part.stop - part.start
        for index, part in enumerate(skipped):
            if (name := f"{_PART}{index}") in payload.arrays:
                rows[:, part] = payload.array(name, np.float32, (num_rows, part.stop - part.start))
        return rows.reshape(payload.shape)

    spec = Spec("skip_zeros", {"codec": codec.spec, "ranges": tuple((low, high - low) for low, high in bounds)})
    return Codec(
        spec=spec,
        init=lambda shape: codec.init(inner_shape(shape)),
        encode=encode,
        decode=decode,
        lossless=codec.lossless,
        biased=codec.biased,
    )
