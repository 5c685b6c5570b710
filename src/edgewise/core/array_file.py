"""Reading numpy's files, npz and npy: whatever is in a file that is to be one, one error says what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise.core.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[Any]]

NAMELESS = ""
"""Of the one array of an npy."""


def read_arrays(path: str | Path) -> Arrays:
    """All arrays of a file; nothing is unpickled.

    Args:
        path: An npz or an npy.

    Returns:
        By name; that of an npy is `NAMELESS`.

    Raises:
        DataError: If it is neither, is cut short, or holds objects.
        OSError: If it is not there or cannot be read.
    """
    import numpy as np

    with Path(path).open("rb") as file:
        try:
            loaded = np.load(file, allow_pickle=False)
            found = dict(loaded.items()) if isinstance(loaded, np.lib.npyio.NpzFile) else {NAMELESS: loaded}
            if not found or not all(isinstance(array, np.ndarray) for array in found.values()):
                raise ValueError("an archive without arrays, or with something else beside them")
            return found
        except (
            Exception
        ) as error:  # boundary: numpy takes the rest for a pickle; zipfile, zlib and tokenize have errors of their own
            raise DataError(
                f"{str(path)!r} is not an npz or npy of plain arrays of numbers. "
                "Write it with numpy.savez(path, x=inputs, y=labels), without object arrays."
            ) from error
