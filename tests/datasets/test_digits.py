import subprocess
import sys

import numpy as np
import pytest
import sklearn.datasets

from edgewise.core.errors import DataError
from edgewise.core.provenance import origins_of
from edgewise.datasets.digits_data import FULL_SCALE, _read, from_raw, load_digits, to_raw


def test_the_four_parts_are_disjoint_and_cover_all_digits():
    parts = load_digits(3)
    assert parts.sizes == {"train": 760, "calibration": 320, "gate": 337, "stream": 380}
    rows = [row.tobytes() for name in parts.sizes for row in np.asarray(getattr(parts, name).inputs)]
    assert len(rows) == 1797
    assert len(set(rows)) == 1797  # scikit-learn's digits hold no image twice


def test_values_are_float32_between_0_and_1_and_traced_as_raw():
    train = load_digits().train
    assert train.inputs.shape == (760, 1, 8, 8)
    assert train.inputs.dtype == np.float32
    assert train.inputs.min() == 0
    assert train.inputs.max() == 1
    assert origins_of(train.inputs) == origins_of(train.targets) == {"raw"}


def test_a_seed_gives_the_same_division_and_another_seed_another():
    assert np.array_equal(load_digits(1).gate.inputs, load_digits(1).gate.inputs)
    assert not np.array_equal(load_digits(1).gate.inputs, load_digits(2).gate.inputs)


def test_the_raw_form_of_a_digit_is_64_bytes_and_exact():
    digit = load_digits().stream.inputs[0]
    assert to_raw(digit).nbytes == 64
    assert np.array_equal(from_raw(to_raw(digit)), digit)
    assert origins_of(to_raw(digit)) == {"raw"}


@pytest.mark.parametrize("sizes", [{"train": 1797}, {"gate": 0}])
def test_parts_that_do_not_fit_are_refused(sizes):
    with pytest.raises(DataError, match=r"cannot be divided .* Make the parts smaller"):
        load_digits(**sizes)


def test_the_digits_are_scikit_learns_and_are_read_without_importing_it() -> None:
    code = "import sys; from edgewise.datasets.digits_data import load_digits; load_digits(); print('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
    theirs = sklearn.datasets.load_digits()
    images, labels = _read()
    assert np.array_equal(images[:, 0] * FULL_SCALE, theirs.images)
    assert np.array_equal(labels, theirs.target)
