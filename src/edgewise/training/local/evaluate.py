"""How good a flat vector is on examples, in torch; a node without torch evaluates the exported graph instead."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from edgewise.core.errors import TaskError
from edgewise.core.layout import Vector
from edgewise.core.provenance import derived
from edgewise.models.examples import count, map_arrays, take
from edgewise.models.flat import load_vector
from edgewise.models.forward import call, like_tuple
from edgewise.models.task import Examples, Task, user_code
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

    def outputs(self, vector: Vector, examples: Examples) -> Any:
        """What the model answers.

        Args:
            vector: float32[d].
            examples: n of them.

        Returns:
            Per exit float32[n, num_classes], as a tuple; a dict of arrays where the model gives one.
        """
        return _each(self._forward(vector, examples), lambda tensor: derived(tensor.numpy()))

    def metrics(self, vector: Vector, examples: Examples) -> Mapping[str, float]:
        """The task's metrics and the mean loss, under `loss`.

        Args:
            vector: float32[d].
            examples: At least one.

        Returns:
            By name.
        """
        with user_code(f"task {self._task.name!r} cannot be evaluated on {len(examples)} examples"):
            made = self._forward(vector, examples)
            _, targets = to_tensors(examples)
            loss = self._task.loss(made, targets)
            answers = _each(made, lambda tensor: tensor.numpy())
            scores = self._task.metrics(answers, map_arrays(lambda tensor: tensor.numpy(), targets))
            return {"loss": float(loss), **{name: _number(name, value) for name, value in scores.items()}}

    def _forward(self, vector: Vector, examples: Examples) -> Any:
        """What forward gives of all examples, in its own form."""
        load_vector(self._module.eval(), vector)
        inputs, _ = to_tensors(examples)
        starts = range(0, count(inputs), self._batch_size)
        with torch.no_grad(), one_thread():
            parts = [call(self._module, take(inputs, slice(start, start + self._batch_size))) for start in starts]
        if isinstance(parts[0], Mapping):
            return {str(name): _joined([p[name] for p in parts]) for name, v in parts[0].items() if v is not None}
        if isinstance(parts[0], torch.Tensor):
            return _joined(parts)
        return like_tuple(parts[0], [_joined(list(exit_)) for exit_ in zip(*parts, strict=True)])


def _number(name: str, value: Any) -> float:
    if getattr(value, "size", 1) != 1 if not isinstance(value, torch.Tensor) else value.numel() != 1:
        raise TaskError(
            f"metric {name!r} is an array of shape {tuple(value.shape)}, a number is needed. Give each a name."
        )
    return float(value)


def _joined(tensors: list[torch.Tensor]) -> torch.Tensor:
    """What batches gave, one after the other; of a number for each batch, e.g. a part of the loss, the mean."""
    return torch.cat(tensors) if tensors[0].ndim else torch.stack(tensors).mean()


def _each(made: Any, function: Callable[[torch.Tensor], Any]) -> Any:
    if isinstance(made, Mapping):
        return {name: function(tensor) for name, tensor in made.items()}
    if isinstance(made, torch.Tensor):
        return (function(made),)
    return like_tuple(made, [function(tensor) for tensor in made])


def evaluate(task: Task, vector: Vector, examples: Examples) -> Mapping[str, float]:
    """`Evaluator(task).metrics(vector, examples)`."""
    return Evaluator(task).metrics(vector, examples)
