from __future__ import annotations

import pytest

from edgewise.core.errors import InputError
from edgewise.core.ids import Digest
from edgewise.inference.accuracy import median_abs_error_fraction, prediction_error
from edgewise.planning.plan import Path, Plan, Prediction

PATHS = (Path(0, 0.5, 0.010, 0.02), Path(1, 0.5, 0.100, 0.2))
PLAN = Plan("p", Digest("g"), (), predicted=Prediction(0, 0, 0, 0, 0, 0, 0, PATHS))


def test_each_request_is_compared_with_its_own_path() -> None:
    rows = [(0, 9.9), (0, 0.010), (1, 0.125), (1, 0.100), (None, 0.3), (0, 0.008)]
    found = prediction_error(PLAN, rows, num_warm_up=1)
    # Errors 0, |0.125−0.1|/0.125 = 0.2, 0, |0.008−0.01|/0.008 = 0.25: their median is 0.1.
    assert found.median_abs_error_fraction == pytest.approx(0.1)
    assert (found.num_requests, found.num_warm_up, found.num_unpredicted) == (4, 1, 1)


def test_a_profile_that_is_twice_as_slow_shows() -> None:
    measured = [(1, 0.1)] * 20
    slow = Plan("p", Digest("g"), (), predicted=Prediction(0, 0, 0, 0, 0, 0, 0, (Path(1, 1.0, 0.2, 0.4),)))
    assert prediction_error(PLAN, measured).median_abs_error_fraction == 0
    assert prediction_error(slow, measured).median_abs_error_fraction == pytest.approx(1.0)


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(InputError, match="of 3 requests none is left to compare after 10 for warm-up"):
        prediction_error(PLAN, [(0, 0.1)] * 3)


def test_the_median_error_is_relative_to_what_was_measured() -> None:
    assert median_abs_error_fraction([(1.0, 2.0), (3.0, 2.0), (2.0, 2.0)]) == 0.5
