"""Small tasks for the engines: a dense stack, two exits, batch norm, and a loss of its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from edgewise.models.task import Examples, Task
from edgewise.models.zoo.branched import ResidualToy
from edgewise.models.zoo.dense_stack import mlp
from edgewise.models.zoo.early_exits import joint_cross_entropy
from edgewise.training.local import sgd

SIZES = (5, 16, 1, 33)
"""Examples of the clients: fewer than a batch, one batch exactly, one, and several with a rest."""


class DenseTask(Task):
    name = "tiny-dense"
    input_shape = (1, 2, 3)
    num_classes = 4
    objective = "cross_entropy"

    def model(self):
        return mlp((6, 7, 5, 4))

    def loss(self, outputs, targets):
        return functional.cross_entropy(outputs, targets)

    def clients(self):
        return [f"c{i}" for i in range(len(SIZES))]

    def data(self, client):
        rng = np.random.default_rng(int(client[1:]))
        size = SIZES[int(client[1:])]
        inputs = rng.standard_normal((size, *self.input_shape), np.float32)
        return Examples.of(inputs, rng.integers(0, self.num_classes, size))


class ExitsTask(DenseTask):
    name = "tiny-exits"
    input_shape = (1, 8, 8)
    objective = ""

    def model(self):
        return ResidualToy(channels=4, depth=2, num_classes=4)

    def loss(self, outputs, targets):
        return joint_cross_entropy(outputs, targets, (0.5, 1.0))


class RegressionTask(DenseTask):
    name = "tiny-regression"
    objective = ""

    def model(self):
        return nn.Sequential(nn.Flatten(), nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 1))

    def loss(self, outputs, targets):
        return ((outputs[:, 0] - targets.to(torch.float32)) ** 2).mean()


class NormedTask(DenseTask):
    """Batch norm: its running statistics are buffers."""

    name = "tiny-normed"
    input_shape = (1, 4, 4)
    objective = ""

    def model(self):
        return nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, self.num_classes)
        )


TASKS = {task.name: task for task in (DenseTask, ExitsTask, NormedTask, RegressionTask)}


@pytest.fixture(params=sorted(TASKS))
def task(request):
    return TASKS[request.param]()


@pytest.fixture
def dense_task():
    return DenseTask()


@pytest.fixture
def exits_task():
    return ExitsTask()


@pytest.fixture
def normed_task():
    return NormedTask()


@pytest.fixture
def work():
    return sgd(0.1, epochs=3, batch_size=16)
