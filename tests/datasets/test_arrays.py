import numpy as np
import pytest

from edgewise.core.errors import DataError
from edgewise.core.provenance import origins_of
from edgewise.datasets.arrays import Arrays


def test_taken_examples_keep_their_origin():
    taken = Arrays.of(np.arange(6.0).reshape(3, 2), np.arange(3)).take(np.array([2, 0]))
    assert taken.inputs.tolist() == [[4.0, 5.0], [0.0, 1.0]]
    assert taken.targets.tolist() == [2, 0]
    assert origins_of(taken.inputs) == {"raw"}
    assert len(taken) == 2


def test_arrays_of_different_length_are_refused():
    with pytest.raises(DataError, match="2 inputs and 3 targets do not belong together"):
        Arrays.of(np.zeros(2), np.zeros(3))
