"""FedNova with unequal numbers of steps: its fixed point tends to the joint optimum, FedAvg's does not."""

from __future__ import annotations

import numpy as np

from edgewise.testing.quadratics import LeastSquaresEngine, least_squares_optimum, quadratic, run_rounds
from edgewise.training.aggregate import weighted_mean
from edgewise.training.algorithms import fed_avg, fed_nova
from edgewise.training.local import sgd

SIZE = 6
STEPS = (2, 5, 10, 20, 40)
RATES = ((0.1, 60), (0.01, 300), (0.001, 900))


def uneven():
    rng = np.random.default_rng(0)
    curvatures = [np.diag(rng.uniform(0.3, 2, SIZE)) for _ in STEPS]
    return {
        f"c{i}": quadratic(a, rng.normal(size=SIZE), steps)
        for i, (a, steps) in enumerate(zip(curvatures, STEPS, strict=True))
    }


def distance(make, rate, num_rounds):
    held = uneven()
    algorithm = make(local=sgd(rate, batch_size=1), aggregate=weighted_mean("uniform"))
    ran = run_rounds(algorithm, LeastSquaresEngine(SIZE), held, num_rounds=num_rounds)
    return np.linalg.norm(ran.model - least_squares_optimum(list(held.values()), [1] * len(held)))


def test_its_distance_to_the_joint_optimum_falls_with_the_learning_rate():
    found = [distance(fed_nova, rate, num_rounds) for rate, num_rounds in RATES]
    assert found[0] > 2 * found[1] > 4 * found[2]
    assert found[2] <= 0.01


def test_that_of_fed_avg_does_not():
    assert min(distance(fed_avg, rate, num_rounds) for rate, num_rounds in RATES[:2]) > 0.4
    assert distance(fed_avg, 0.001, 500) > 0.4


def test_with_equal_steps_it_is_fed_avg():
    rng, engine = np.random.default_rng(1), LeastSquaresEngine(SIZE)
    held = {f"c{i}": quadratic(np.eye(SIZE), rng.normal(size=SIZE), 4) for i in range(3)}
    both = [
        run_rounds(make(local=sgd(0.1, batch_size=1)), engine, held, num_rounds=5).model for make in (fed_nova, fed_avg)
    ]
    np.testing.assert_allclose(*both, rtol=1e-5)
