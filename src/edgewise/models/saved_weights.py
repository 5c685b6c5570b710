"""A model's tensors in a file of their own, whatever an export says: npz, or safetensors. Needs no torch."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np

from edgewise.core.errors import InputError
from edgewise.core.files import write_atomic
from edgewise.core.layout import Layout, Vector

SUFFIXES = (".npz", ".safetensors")


def check_weights_path(path: Path) -> None:
    """Refuses a file that weights cannot be written to, before anything is trained.

    Args:
        path: Where they will go.

    Raises:
        InputError: If the suffix names no known form.
    """
    if path.suffix not in SUFFIXES:
        raise InputError(f"weights cannot be written as {path.name!r}. End the name in {' or '.join(SUFFIXES)}.")


def save_weights(path: Path, layout: Layout, vector: Vector) -> None:
    """Writes every tensor of a model under its name in the module; `load_state_dict(strict=False)` takes them back.

    Args:
        path: Ends in `.npz` or `.safetensors`.
        layout: The model's.
        vector: float32[d].

    Raises:
        InputError: As in `check_weights_path`.
    """
    check_weights_path(path)
    tensors = layout.unflatten(np.ascontiguousarray(vector, np.float32))
    if path.suffix == ".npz":
        file = io.BytesIO()
        np.savez(file, allow_pickle=False, **tensors)
        write_atomic(path, file.getvalue())
        return
    # The form of safetensors: length of the header, the header in JSON, then the tensors one after the other.
    entries = {
        slot.name: {
            "dtype": "F32",
            "shape": list(slot.shape),
            "data_offsets": [4 * slot.offset, 4 * (slot.offset + slot.size)],
        }
        for slot in layout.slots
    }
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    write_atomic(path, len(header).to_bytes(8, "little") + header + np.asarray(vector, "<f4").tobytes())
