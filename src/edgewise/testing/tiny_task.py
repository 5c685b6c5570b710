"""A task that trains in milliseconds: a network of two layers on points drawn for each client by its name.

The file is a task file like a user's: `load_task(edgewise.testing.tiny_task.__file__)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgewise.core.ids import ClientId
from edgewise.core.seeds import Seeds
from edgewise.models.task import Examples, Task

if TYPE_CHECKING:
    from torch import Tensor, nn


class TinyTask(Task):
    """Points of four numbers in three classes, about 20 for each of `clients` (a, b, c).

    The label is the place of the largest of the first three numbers, so there is something to learn. `hidden` (8) is
    the inner width, 8 · hidden + 3 the number of parameters; `batch_norm` puts a norm with statistics between the layers,
    and gives each client a multiple of four points, since a batch of one has no statistics.
    """

    name = "tiny"
    input_shape = (4,)
    num_classes = 3
    objective = "cross_entropy"

    def model(self) -> nn.Module:
        from edgewise.models.zoo.dense_stack import mlp

        width = int(self.settings.get("hidden", 8))
        if not self.settings.get("batch_norm"):
            return mlp((*self.input_shape, width, self.num_classes))
        from torch import nn

        first, last = nn.Linear(*self.input_shape, width), nn.Linear(width, self.num_classes)
        return nn.Sequential(first, nn.BatchNorm1d(width), nn.ReLU(), last)

    def loss(self, outputs: Tensor | tuple[Tensor, ...], targets: Tensor) -> Tensor:
        from torch.nn import functional

        assert not isinstance(outputs, tuple)
        return functional.cross_entropy(outputs, targets)

    def clients(self) -> Sequence[ClientId]:
        return tuple(ClientId(name) for name in self.settings.get("clients", ("a", "b", "c")))

    def data(self, client: ClientId) -> Examples:
        rng = Seeds(0).at("tiny", client).rng()
        size = int(rng.integers(15, 26))
        size -= size % 4 if self.settings.get("batch_norm") else 0
        inputs = rng.standard_normal((size, *self.input_shape), np.float32)
        return Examples.of(inputs, inputs[:, : self.num_classes].argmax(-1))
