"""What a client sent is checked and marked; nothing is copied that need not be."""

from __future__ import annotations

import numpy as np
import pytest

from edgewise.core.errors import InputError
from edgewise.core.provenance import RAW, origins_of, traced
from edgewise.inference.request_inputs import check_inputs
from edgewise.models.graph.plain import PlainTensor

WANTED = (PlainTensor("x", (1, 4), "float32", symbolic_batch=True), PlainTensor("k", (2,), "int64"))
GIVEN = {"x": np.ones((3, 4), np.float32), "k": np.zeros(2, np.int64)}


def test_inputs_are_raw_data_from_here_on() -> None:
    checked = check_inputs(WANTED, GIVEN)
    assert all(origins_of(array) == {RAW} for array in checked.values())
    again = check_inputs(WANTED, checked)
    assert all(again[name] is checked[name] for name in checked)


def test_a_strided_array_is_made_whole_and_stays_raw() -> None:
    strided = traced(np.ones((4, 3), np.float32).T, RAW)
    found = check_inputs(WANTED, {**GIVEN, "x": strided})["x"]
    assert found.flags.c_contiguous
    assert origins_of(found) == {RAW}


def test_a_fixed_axis_is_not_a_batch() -> None:
    with pytest.raises(InputError, match=r"input 'k' has shape \[3\], the model takes \[2\]"):
        check_inputs(WANTED, {**GIVEN, "k": np.zeros(3, np.int64)})


def test_batches_that_differ_are_refused() -> None:
    two = (WANTED[0], PlainTensor("z", (1, 4), "float32", symbolic_batch=True))
    with pytest.raises(InputError, match=r"different batch sizes \[2, 3\]"):
        check_inputs(two, {"x": np.ones((3, 4), np.float32), "z": np.ones((2, 4), np.float32)})
