"""Job S of the benchmarks as a task file: a network 64-64-10 on scikit-learn's digits, 100 clients, about 14 each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from edgewise.core.ids import ClientId
from edgewise.core.seeds import Seeds
from edgewise.models.task import Examples, Task

NUM_CLIENTS = 100


class JobS(Task):
    """4,810 parameters; labels split by Dirichlet 0.5."""

    name, input_shape, num_classes, objective = "job-s", (64,), 10, "cross_entropy"

    def model(self) -> Any:
        from edgewise.models.zoo.dense_stack import mlp

        return mlp()

    def loss(self, outputs: Any, targets: Any) -> Any:
        from torch.nn.functional import cross_entropy

        return cross_entropy(outputs, targets)

    def clients(self) -> Sequence[ClientId]:
        return tuple(ClientId(f"client-{index}") for index in range(NUM_CLIENTS))

    def data(self, client: ClientId) -> Examples:
        return self._held[client]

    @cached_property
    def _held(self) -> dict[ClientId, Examples]:
        from edgewise.datasets.digits_data import load_digits
        from edgewise.datasets.split import dirichlet

        train = load_digits(0, train=1437, calibration=358, gate=1, stream=1).train
        indices = dirichlet(train.targets, NUM_CLIENTS, alpha=0.5, rng=Seeds(0).at("split").rng())
        parts = [train.take(held) for held in indices]
        inputs = [part.inputs.reshape(len(part), -1) for part in parts]
        return {c: Examples.of(x, p.targets) for c, x, p in zip(self.clients(), inputs, parts, strict=True)}
