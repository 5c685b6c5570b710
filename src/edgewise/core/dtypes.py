"""Names the element types that cross a link or an endpoint; a table, because numpy takes 10 µs to name a dtype."""

from __future__ import annotations

from typing import Any

import numpy as np

DTYPES = {
    name: np.dtype(name)
    for name in [
        "float32",
        "float16",
        "float64",
        "int8",
        "uint8",
        "int16",
        "uint16",
        "int32",
        "uint32",
        "int64",
        "uint64",
        "bool",
    ]
}
"""By name."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def dtype_name(dtype: np.dtype[Any]) -> str:
    """Returns a dtype's name.

    Args:
        dtype: Any.

    Returns:
        E.g. `float32`; what is not in `DTYPES` has the name that numpy gives it, e.g. `>f4`.
    """
    return _NAMES.get(dtype) or str(dtype)
