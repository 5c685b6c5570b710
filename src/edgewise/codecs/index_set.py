"""Encodes sets of indices by Elias-Fano, vectorised over rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgewise.core.errors import FrameRefused


def low_bits(num_entries: int, num_kept: int) -> int:
    """Returns the number of index bits stored plainly: ⌊log₂(n/k)⌋."""
    return max(0, (num_entries // max(1, num_kept)).bit_length() - 1)


def packed_bytes(num_entries: int, num_kept: int) -> int:
    """Returns the bytes of a packed set: ⌈k·b/8⌉ low and ⌈(k + n/2ᵇ + 1)/8⌉ high."""
    b = low_bits(num_entries, num_kept)
    return (num_kept * b + 7) // 8 + (num_kept + (num_entries >> b) + 1 + 7) // 8


def pack_indices(indices: NDArray[np.int64], num_entries: int) -> NDArray[np.uint8]:
    """Packs rows of ascending indices: about 2 + log₂(n/k) bits each.

    Args:
        indices: int64[rows, k], strictly ascending in each row, in [0, n).
        num_entries: n.

    Returns:
        uint8[rows, packed_bytes(n, k)].

    Reference:
        Elias, "Efficient Storage and Retrieval by Content and Address of Static Files", JACM 1974; Fano 1971.
    """
    num_rows, k = indices.shape
    b = low_bits(num_entries, k)
    low = ((indices[:, :, None] >> np.arange(b)) & 1).astype(bool).reshape(num_rows, k * b)
    high = np.zeros((num_rows, k + (num_entries >> b) + 1), bool)
    np.put_along_axis(high, (indices >> b) + np.arange(k), True, axis=1)
    return np.concatenate([np.packbits(low, axis=1), np.packbits(high, axis=1)], axis=1)


def unpack_indices(packed: NDArray[np.uint8], num_entries: int, num_kept: int) -> NDArray[np.int64]:
    """Decodes the bytes of `pack_indices`.

    Args:
        packed: uint8[rows, packed_bytes(n, k)].
        num_entries: n.
        num_kept: k.

    Returns:
        int64[rows, k].

    Raises:
        FrameRefused: If a row does not hold k ascending indices below n.
    """
    num_rows, b = packed.shape[0], low_bits(num_entries, num_kept)
    split = (num_kept * b + 7) // 8
    low = np.unpackbits(packed[:, :split], axis=1, count=num_kept * b).reshape(num_rows, num_kept, b)
    high = np.unpackbits(packed[:, split:], axis=1, count=num_kept + (num_entries >> b) + 1)
    if (high.sum(axis=1) != num_kept).any():
        raise FrameRefused(f"packed indices must name {num_kept} of {num_entries} entries in each row; they do not.")
    positions = np.nonzero(high)[1].reshape(num_rows, num_kept) - np.arange(num_kept)
    indices: NDArray[np.int64] = (positions << b) + (low.astype(np.int64) << np.arange(b)).sum(axis=2)
    ascending = (np.diff(indices, axis=1) > 0).all()
    if not ascending or (indices >= num_entries).any():
        raise FrameRefused(f"packed indices must ascend and stay below {num_entries}; they do not.")
    return indices
