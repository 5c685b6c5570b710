import os

import numpy as np
import pytest

from edgewise.core.config import load_toml
from edgewise.datasets.found import VARIABLE
from edgewise.models.task import load_task
from edgewise.simulation.simulate import simulate
from edgewise.training.job import JobFile, check_job


def _run(repository, name, *changes):
    job = check_job(load_toml(repository / f"examples/{name}.toml", JobFile, changes))
    return simulate(job, folder=str(repository / "examples"))


@pytest.fixture
def har_folder(tmp_path, monkeypatch):
    """A data set in UCI HAR's form: six people, activities told apart by the mean of a channel."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 6, 240).astype(np.uint8)
    x = rng.normal(0, 0.1, (240, 128, 9)) + np.eye(9)[y][:, None, :]
    (tmp_path / "uci_har").mkdir()
    subjects = np.repeat(np.arange(1, 7), 40).astype(np.uint8)
    np.savez(tmp_path / "uci_har/uci_har_raw.npz", x=x.astype(np.float16), y=y, subject=subjects)
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", ["digits", "human_activity"])
def test_an_example_is_under_60_lines(repository, name):
    assert len((repository / f"examples/{name}.py").read_text().splitlines()) < 60


def test_digits_learn(repository):
    run = _run(repository, "digits", "training.rounds=6", "training.algorithm.local.epochs=3")
    assert run.record.metrics["accuracy"] > 0.75  # 0.1 is guessing
    assert {"accuracy_exit_0", "accuracy_exit_1"} <= set(run.record.metrics)


def test_human_activity_learns_from_people_and_is_judged_on_others(repository, har_folder):
    run = _run(repository, "human_activity", "training.rounds=10", "training.clients_per_round=0")
    assert run.record.rounds[0].participants == 4  # people 2 and 4 are the data set's own test people
    assert run.record.metrics["accuracy"] > 0.8  # 1/6 is guessing


def test_human_activity_finds_the_real_data(repository):
    if not os.environ.get(VARIABLE):
        pytest.skip(f"{VARIABLE} is not set: the real UCI HAR data are not here, the test above uses made ones")
    task = load_task(repository / "examples/human_activity.py")
    assert len(task.clients()) == 30 - 9
    assert sum(len(task.data(client)) for client in task.clients()) + len(task.test_data()) == 10_299
