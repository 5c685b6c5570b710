"""A small task: five clients of a dense stack on separable blobs, one of them without examples."""

from __future__ import annotations

import numpy as np
import pytest
from torch.nn import functional

from edgewise.core.ids import ClientId, NodeId
from edgewise.models.task import Examples, Task
from edgewise.models.zoo.dense_stack import mlp

SIZES = {"a": 12, "b": 30, "c": 17, "d": 0, "e": 9}
CENTRES = np.random.default_rng(0).normal(0, 2, (3, 4)).astype(np.float32)


class BlobsTask(Task):
    name = "blobs"
    input_shape = (4,)
    num_classes = 3
    objective = "cross_entropy"

    def model(self):
        return mlp((4, 8, 3))

    def loss(self, outputs, targets):
        return functional.cross_entropy(outputs, targets)

    def clients(self):
        return tuple(ClientId(name) for name in SIZES)

    def data(self, client):
        return _blobs(SIZES[client], ord(client))

    def test_data(self):
        return _blobs(90, 0)


def _blobs(size, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, size)
    return Examples.of(CENTRES[labels] + rng.standard_normal((size, 4), np.float32), labels)


@pytest.fixture
def task():
    return BlobsTask()


@pytest.fixture
def edge_of():
    return {ClientId(c): NodeId(f"edge-{1 + (c in 'bc')}") for c in SIZES}
