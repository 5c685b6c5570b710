import numpy as np
import pytest

from edgewise.core.provenance import origins_of
from edgewise.core.seeds import Seeds
from edgewise.models.flat import initial_vector
from edgewise.training.local.evaluate import Evaluator, evaluate


def test_outputs_are_one_array_per_exit_and_a_new_thing(exits_task):
    examples = exits_task.data("c3")
    outputs = Evaluator(exits_task, batch_size=8).outputs(initial_vector(exits_task, Seeds(0)), examples)
    assert [o.shape for o in outputs] == [(33, 4), (33, 4)]
    assert not origins_of(*outputs)


def test_batches_do_not_change_the_metrics(exits_task):
    vector, examples = initial_vector(exits_task, Seeds(0)), exits_task.data("c3")
    small, large = (Evaluator(exits_task, batch_size=size).metrics(vector, examples) for size in (5, 100))
    assert small == pytest.approx(large, abs=1e-5)
    assert set(small) == {"loss", "accuracy", "accuracy_exit_0", "accuracy_exit_1"}


def test_a_model_of_zeros_has_the_loss_of_guessing(dense_task):
    zeros = np.zeros_like(initial_vector(dense_task, Seeds(0)))
    assert evaluate(dense_task, zeros, dense_task.data("c3"))["loss"] == pytest.approx(np.log(4), abs=1e-6)
