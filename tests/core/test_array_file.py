"""Whatever is in a file that is to hold arrays, one sentence says what is wrong with it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from edgewise.api.source import read_source
from edgewise.core.array_file import NAMELESS, read_arrays
from edgewise.core.errors import DataError
from edgewise.fleet.serving.versions import Holdout
from edgewise.models.graph.graph import PlainTensor


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def npy(array: np.ndarray, **how: bool) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **how)
    return file.getvalue()


WHOLE = npz(x=np.arange(50))
BROKEN = {
    "empty": b"",
    "text": b"x",
    "half an npz": WHOLE[: len(WHOLE) // 2],
    "only its end": b"PK\5\6" + b"\0" * 18,
    "flipped bits": WHOLE[:60] + bytes(255 - byte for byte in WHOLE[60:400]) + WHOLE[400:],
    "half an npy": npy(np.arange(50))[:150],
    "an npy with a wrong head": npy(np.arange(5)).replace(b"'descr'", b"'descr"),
    "objects": npy(np.array([{}], object), allow_pickle=True),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_no_file_of_arrays_is_one_error(what: str, tmp_path: Path) -> None:
    path = tmp_path / "data.npy"
    path.write_bytes(BROKEN[what])
    for read in (read_arrays, Holdout.load, lambda p: read_source(p.parent, (PlainTensor("x", (1, 2), "float32"),))):
        with pytest.raises(DataError, match="is not an npz or npy of plain arrays of numbers"):
            read(path)


def test_what_is_missing_in_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "data.npy"
    path.write_bytes(npy(np.arange(3)))
    assert read_arrays(path)[NAMELESS].tolist() == [0, 1, 2]
    with pytest.raises(DataError, match=r"has no calibration_x\. Needed is an npz with calibration_x, "):
        Holdout.load(path)
    path.write_bytes(WHOLE)
    with pytest.raises(DataError, match="is an npz under the name of an npy"):
        read_source(tmp_path, (PlainTensor("x", (1, 2), "float32"),))
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        Holdout.load(tmp_path)
