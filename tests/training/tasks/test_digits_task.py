import numpy as np
import pytest

from edgewise.core.errors import TaskError
from edgewise.core.provenance import origins_of
from edgewise.models.task import load_task
from edgewise.training.tasks import digits_task as digits
from edgewise.training.tasks.digits_task import DigitsTask

NAMES = [f"device-{i}" for i in range(1, 7)]


def test_the_clients_hold_the_training_part_and_nothing_else():
    task = DigitsTask(clients=NAMES)
    held = np.concatenate([np.asarray(task.data(name).inputs) for name in NAMES])
    wanted = np.asarray(task.parts.train.inputs)
    assert sorted(row.tobytes() for row in held) == sorted(row.tobytes() for row in wanted)


def test_every_client_has_its_minimum_and_raw_examples():
    task = DigitsTask(clients=12, alpha=0.05, minimum_examples=30)
    assert min(len(task.data(client)) for client in task.clients()) >= 30
    assert origins_of(task.data(task.clients()[0]).inputs) == {"raw"}


def test_test_data_is_the_calibration_part():
    task = DigitsTask()
    assert np.array_equal(task.test_data().inputs, task.parts.calibration.inputs)


def test_an_unknown_client_is_refused_with_the_nearest():
    with pytest.raises(TaskError, match=r"no data of client 'device-12'. Did you mean 'device-1'"):
        DigitsTask(clients=["device-1", "other"]).data("device-12")


def test_the_file_loads_like_a_users_own():
    assert load_task(digits.__file__, clients=3).clients() == ("client-0", "client-1", "client-2")
