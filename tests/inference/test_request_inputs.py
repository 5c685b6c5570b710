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


@pytest.mark.parametrize("symbols", [("n", "n"), ("n", "m"), ("", "")])
def test_batches_of_one_name_that_differ_are_refused(symbols: tuple[str, str]) -> None:
    two = tuple(PlainTensor(n, (1, 4), "float32", True, (), (s, "")) for n, s in zip("xz", symbols, strict=True))
    given = {"x": np.ones((3, 4), np.float32), "z": np.ones((2, 4), np.float32)}
    if symbols[0] == symbols[1] == "n":
        with pytest.raises(InputError, match=r"different batch sizes \[2, 3\], the model calls them all 'n'"):
            check_inputs(two, given)
    else:
        check_inputs(two, given)


FITS = [
    ("int32", "int64", [-5, 2**31 - 1]),
    ("uint64", "int64", [2**63 - 1]),
    ("int64", "uint8", [0, 255]),
    ("int64", "float32", [-(2**24), 3]),
    ("float32", "float16", [65504.0, 0.1, np.nan, -np.inf]),
    ("float64", "float32", [0.1, 3e38]),
    ("float64", "int64", [-(2.0**62), 3.0]),
    ("int64", "bool", [0, 1]),
    ("bool", "float32", [True]),
    ("float64", "int8", []),
]
LOSES = [
    ("int64", "int32", [2**31]),
    ("uint64", "int64", [2**63]),
    ("int64", "uint8", [-1]),
    ("int64", "float32", [2**24 + 1]),
    ("int64", "float16", [70_000]),
    ("float32", "float16", [65520.0]),
    ("float64", "float32", [1e39]),
    ("float64", "int64", [1.5]),
    ("float64", "int64", [2.0**63]),
    ("float32", "int64", [np.nan]),
    ("int64", "bool", [2]),
    ("object", "float32", ["1"]),
    ("int64", "object", [1]),
]


@pytest.mark.parametrize(("given", "wanted", "values"), FITS)
def test_values_that_stay_the_same_numbers_are_converted(given: str, wanted: str, values: list[float]) -> None:
    array = np.array(values, given)
    found = check_inputs((PlainTensor("x", (1,), wanted, True),), {"x": array})["x"]
    assert (found.dtype, origins_of(found)) == (np.dtype(wanted), {RAW})
    assert np.array_equal(found, array.astype(wanted), equal_nan=wanted.startswith("float"))


@pytest.mark.parametrize(("given", "wanted", "values"), LOSES)
def test_values_that_would_become_others_are_refused(given: str, wanted: str, values: list[float]) -> None:
    with pytest.raises(InputError, match=r"input 'x' has (dtype|strings).* Convert it"):
        check_inputs((PlainTensor("x", (1,), wanted, True),), {"x": np.array(values, given)})
