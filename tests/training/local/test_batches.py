import numpy as np
import pytest

from edgewise.core.errors import DataError
from edgewise.core.seeds import Seeds
from edgewise.training.local import Loop
from edgewise.training.local.batches import batches, schedule

WORK = Loop(epochs=2, batch_size=4)


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


def test_a_batch_size_of_0_takes_all_as_they_are():
    assert [part.tolist() for part in batches(3, Loop(2, 0), Seeds(0))] == [[0, 1, 2]] * 2
    plan = schedule([3, 5], Loop(2, 0), [Seeds(0), Seeds(1)])
    assert plan.num_steps.tolist() == [2, 2]
    assert [plan.indices[row, 0][plan.shares[row, 0] > 0].tolist() for row in (0, 1)] == [[0, 1, 2], [0, 1, 2, 3, 4]]


def test_the_most_steps_end_the_loop():
    loop = Loop(2, 4, max_steps=3)
    whole, cut = batches(10, WORK, Seeds(0)), batches(10, loop, Seeds(0))
    assert [part.tolist() for part in cut] == [part.tolist() for part in whole[:3]]
    plan = schedule([10, 3], loop, [Seeds(0), Seeds(1)])
    assert (plan.num_steps.tolist(), plan.indices.shape[1]) == ([3, 2], 3)


def test_a_loop_without_epochs_has_no_step():
    assert batches(10, Loop(0, 4), Seeds(0)) == []
    assert schedule([10, 3], Loop(0, 4), [Seeds(0), Seeds(1)]).indices.shape[1] == 0
