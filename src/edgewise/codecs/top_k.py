"""Sends the largest entries and their indices."""

from __future__ import annotations

from math import ceil

import numpy as np
from numpy.typing import NDArray

from edgewise.codecs.codec import Codec, Payload, Shape, State, rows_of, stateless
from edgewise.codecs.index_set import pack_indices, packed_bytes, unpack_indices
from edgewise.core.errors import InputError
from edgewise.core.spec import Spec


def top_k(fraction: float) -> Codec:
    """Keeps the largest-magnitude entries of each row and sends their indices.

    Biased: wrap it in `error_feedback`. A row of n entries costs O(n) time and k · (4 + (2 + log₂(n/k))/8) bytes,
    k = ⌈fraction · n⌉; `chain(top_k(0.1), cast())` halves the values. Of equal magnitudes the first are kept, so every
    machine chooses alike.

    Args:
        fraction: Share of entries kept, in (0, 1]. k/d in the paper.

    Returns:
        A codec: encode float32[n] -> values float32[k], indices uint8 (packed, see `index_set.py`).

    Raises:
        InputError: If `fraction` is outside (0, 1].

    Example:
        >>> codec = top_k(0.5)
        >>> update = np.array([3.0, -1.0], dtype=np.float32)
        >>> payload, _ = codec.encode(update, codec.init((2,)), np.random.default_rng(0))
        >>> codec.decode(payload).tolist()
        [3.0, 0.0]

    Reference:
        Aji & Heafield, "Sparse Communication for Distributed Gradient Descent", EMNLP 2017.
        Differs: selects over the whole update, not per tensor.
    """
    if not 0 < fraction <= 1:
        raise InputError(f"top_k keeps a fraction in (0, 1], found {fraction!r}. Write 0.1 to keep a tenth.")

    def num_kept(num_entries: int) -> int:
        return ceil(fraction * num_entries)

    def values_shape(shape: Shape) -> Shape:
        num_rows, num_entries = rows_of(shape)
        kept = num_kept(num_entries)
        return (kept,) if len(shape) < 2 else (num_rows, kept)

    def encode(array: NDArray[np.float32], state: State, rng: np.random.Generator) -> tuple[Payload, State]:
        rows = array.reshape(rows_of(array.shape))
        indices = _largest(np.abs(rows), num_kept(rows.shape[1]))
        values = np.take_along_axis(rows, indices, axis=1).reshape(values_shape(array.shape))
        return Payload(array.shape, {"values": values, "indices": pack_indices(indices, rows.shape[1])}), state

    def decode(payload: Payload) -> NDArray[np.float32]:
        num_rows, num_entries = rows_of(payload.shape)
        kept = num_kept(num_entries)
        packed = payload.array("indices", np.uint8, (num_rows, packed_bytes(num_entries, kept)))
        values = payload.array("values", np.float32, values_shape(payload.shape)).reshape(num_rows, kept)
        dense = np.zeros((num_rows, num_entries), np.float32)
        np.put_along_axis(dense, unpack_indices(packed, num_entries, kept), values, axis=1)
        return dense.reshape(payload.shape)

    spec = Spec("top_k", {"fraction": fraction})
    return Codec(
        spec=spec,
        init=stateless,
        encode=encode,
        decode=decode,
        lossless=False,
        biased=fraction < 1,
        values_shape=values_shape,
    )


def _largest(magnitudes: NDArray[np.float32], num_kept: int) -> NDArray[np.int64]:
    num_rows, num_entries = magnitudes.shape
    if num_kept == num_entries:
        return np.broadcast_to(np.arange(num_entries), (num_rows, num_entries)).copy()
    least = np.partition(magnitudes, num_entries - num_kept, axis=1)[:, num_entries - num_kept, None]
    above, equal = magnitudes > least, magnitudes == least
    wanted = num_kept - above.sum(axis=1, keepdims=True)
    kept = above | (equal & (equal.cumsum(axis=1) <= wanted))
    return np.nonzero(kept)[1].reshape(num_rows, num_kept)
