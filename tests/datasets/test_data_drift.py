import numpy as np

from edgewise.core.provenance import origins_of
from edgewise.datasets.shifts import drifted, noisy, rotated

IMAGES = np.random.default_rng(0).random((3, 1, 8, 8)).astype(np.float32)


def test_a_quarter_turn_is_exact():
    assert np.allclose(rotated(IMAGES, 90), np.rot90(IMAGES, axes=(2, 3)), atol=1e-6)


def test_no_turn_changes_nothing():
    assert np.array_equal(rotated(IMAGES, 0), IMAGES)


def test_noise_has_its_deviation():
    grey = np.full((200, 1, 8, 8), 0.5, np.float32)
    noise = noisy(grey, 0.1, rng=np.random.default_rng(1)) - grey
    assert abs(noise.std() - 0.1) < 0.005


def test_drifted_inputs_stay_in_range_and_remember_that_they_are_raw():
    found = drifted(IMAGES, rng=np.random.default_rng(0))
    assert found.dtype == np.float32
    assert found.min() >= 0
    assert found.max() <= 1
    assert origins_of(found) == {"raw"}


def test_the_same_rng_gives_the_same_drift():
    first, second = (drifted(IMAGES, rng=np.random.default_rng(7)) for _ in range(2))
    assert np.array_equal(first, second)
