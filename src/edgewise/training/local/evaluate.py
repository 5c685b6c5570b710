"""How good a flat vector is on examples, in torch; a node without torch evaluates the exported graph instead."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from edgewise.core.layout import Vector
from edgewise.core.provenance import derived
from edgewise.models.flat import load_vector
from edgewise.models.task import Examples, Task
from edgewise.training.local.engines.sequential import one_thread, to_tensors


class Evaluator:
    """Evaluates vectors of one task; keeps the module between calls.

    Args:
        task: Gives model, loss and metrics.
        batch_size: Examples per forward pass.
    """

    def __init__(self, task: Task, *, batch_size: int = 256) -> None:
        self._task = task
        self._module = task.model().eval()
        self._batch_size = batch_size

    def outputs(self, vector: Vector, examples: Examples) -> tuple[NDArray[np.float32], ...]:
        """Logits of every exit.

        Args:
            vector: float32[d].
            examples: n of them.

        Returns:
            Per exit float32[n, num_classes].
        """
        return tuple(derived(exit_.numpy()) for exit_ in self._forward(vector, examples))

    def metrics(self, vector: Vector, examples: Examples) -> Mapping[str, float]:
        """The task's metrics and the mean loss, under `loss`.

        Args:
            vector: float32[d].
            examples: At least one.

        Returns:
            By name.
        """
        exits = self._forward(vector, examples)
        _, targets = to_tensors(examples)
        loss = self._task.loss(exits if len(exits) > 1 else exits[0], targets)
        scores = self._task.metrics(tuple(e.numpy() for e in exits), targets.numpy())
        return {"loss": float(loss), **{name: float(value) for name, value in scores.items()}}

    def _forward(self, vector: Vector, examples: Examples) -> tuple[torch.Tensor, ...]:
        load_vector(self._module, vector)
        inputs, _ = to_tensors(examples)
        with torch.no_grad(), one_thread():
            parts = [self._module(batch) for batch in inputs.split(self._batch_size)]
        if isinstance(parts[0], torch.Tensor):
            return (torch.cat(parts),)
        return tuple(torch.cat(list(exit_)) for exit_ in zip(*parts, strict=True))


def evaluate(task: Task, vector: Vector, examples: Examples) -> Mapping[str, float]:
    """`Evaluator(task).metrics(vector, examples)`."""
    return Evaluator(task).metrics(vector, examples)
