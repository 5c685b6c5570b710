import numpy as np
import pytest

from edgewise.core.errors import DataError
from edgewise.core.seeds import Seeds
from edgewise.core.spec import Spec
from edgewise.training.algorithm import LocalWork
from edgewise.training.local.engines.engine import batches, schedule

WORK = LocalWork(Spec("sgd"), epochs=2, batch_size=4)


def test_every_epoch_sees_every_example_once():
    parts = batches(10, WORK, Seeds(0))
    assert [len(part) for part in parts] == [4, 4, 2, 4, 4, 2]
    assert sorted(np.concatenate(parts[:3])) == sorted(np.concatenate(parts[3:])) == list(range(10))


def test_epochs_have_different_orders():
    parts = batches(10, WORK, Seeds(0))
    assert not np.array_equal(np.concatenate(parts[:3]), np.concatenate(parts[3:]))


def test_no_examples_are_refused():
    with pytest.raises(DataError, match="the client holds no examples"):
        batches(0, WORK, Seeds(0))


def test_a_schedule_holds_the_same_batches_padded():
    seeds = [Seeds(0).at(i) for i in range(3)]
    plan = schedule([3, 9, 4], WORK, seeds)
    assert plan.order.tolist() == [1, 0, 2]  # most steps first, else as given
    assert plan.num_steps.tolist() == [6, 2, 2]
    for row, client in enumerate(plan.order):
        for step, part in enumerate(batches([3, 9, 4][client], WORK, seeds[client])):
            assert plan.indices[row, step][plan.shares[row, step] > 0].tolist() == part.tolist()
            assert plan.shares[row, step].sum() == pytest.approx(1.0)


def test_active_rows_are_a_prefix_that_shrinks():
    plan = schedule([3, 9, 5], WORK, [Seeds(0).at(i) for i in range(3)])
    assert [plan.active(step) for step in range(6)] == [3, 3, 2, 2, 1, 1]
