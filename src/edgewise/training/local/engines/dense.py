"""Dense stacks with cross entropy, in numpy: forward and backward written out, a cohort as one batched product.

x₀ ─▶ x₀W₁ᵀ + b₁ ─▶ max(·, 0) ─▶ … ─▶ logits z;   ∂L/∂z = (softmax(z) − onehot) · share
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.core.errors import MisfitError
from edgewise.core.layout import Layout, Vector
from edgewise.core.seeds import Seeds
from edgewise.models.flat import layout_of
from edgewise.models.task import Examples, Task
from edgewise.training.local.batches import Schedule
from edgewise.training.local.engines.sliced import CohortOracle, SlicedEngine
from edgewise.training.local.rule import GRADIENT, LOSS, OUTPUTS

Batch = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class DenseLayer:
    """One linear layer inside the flat vector.

    Attributes:
        weight: Where its weight [outputs, inputs] lies.
        bias: Where its bias lies; None without one.
        shape: (outputs, inputs).
        rectified: Whether a ReLU follows.
    """

    weight: slice
    bias: slice | None
    shape: tuple[int, int]
    rectified: bool

    def weight_of(self, flat: Vector) -> Batch:
        """The weight as a view: float32[clients, d] -> float32[clients, outputs, inputs]."""
        return flat[:, self.weight].reshape(len(flat), *self.shape)


class DenseEngine(SlicedEngine):
    """Serves `nn.Sequential` of Flatten, Linear and ReLU under the objective "cross_entropy", nothing else.

    A client's result does not depend, to the last bit, on who else is in the cohort.

    Args:
        task: Gives model and objective.

    Raises:
        MisfitError: If the task is of another kind, or its loss is not what its objective says.
    """

    name = "dense"
    offers = frozenset((GRADIENT, LOSS, OUTPUTS))

    def __init__(self, task: Task) -> None:
        module = task.model()
        self.layout = layout_of(module)
        if task.objective != "cross_entropy":
            raise MisfitError(
                f"engine 'dense' needs objective 'cross_entropy', task {task.name!r} says {task.objective!r}. "
                "Use engine 'stacked' or 'sequential'."
            )
        if self.layout.num_trained < self.layout.size:
            raise MisfitError(
                f"engine 'dense' trains every tensor, the model of task {task.name!r} has some that are not trained. "
                "Use engine 'stacked' or 'sequential'."
            )
        self.layers = dense_layers(task.name, module, self.layout)
        _check_objective(task, self.layers[-1].shape[0])
        self._kept = np.empty((2, 0, self.layout.size), np.float32)

    def oracle(
        self, plan: Schedule, examples: Sequence[Examples], seeds: Sequence[Seeds], first: Seeds
    ) -> CohortOracle:
        return _DenseOracle(self, plan, examples, seeds)

    def room(self, num_clients: int) -> tuple[Vector, Vector]:
        """Memory for the weights and the gradient of a slice.

        It is kept between cohorts: fresh arrays of this size cost more in page faults than a step costs in arithmetic.
        """
        if self._kept.shape[1] < num_clients:
            self._kept = np.empty((2, num_clients, self.layout.size), np.float32)
        weights, gradient = self._kept[:, :num_clients]
        return weights, gradient

    def forward(self, flat: Vector, inputs: Batch) -> list[Batch]:
        """What goes into each layer, and last the logits."""
        values = [inputs]
        for layer in self.layers:
            z = np.matmul(values[-1], layer.weight_of(flat).transpose(0, 2, 1))
            if layer.bias is not None:
                z += flat[:, None, layer.bias]
            values.append(np.maximum(z, 0, out=z) if layer.rectified else z)
        return values

    def backward(self, flat: Vector, values: list[Batch], slope: Batch, *, out: Vector) -> None:
        """Writes the gradient, given that of the logits and what went into each layer."""
        for layer, before in zip(reversed(self.layers), reversed(values), strict=True):
            np.matmul(slope.transpose(0, 2, 1), before, out=layer.weight_of(out))
            if layer.bias is not None:
                slope.sum(axis=1, out=out[:, layer.bias])
            if layer is not self.layers[0]:
                slope = np.matmul(slope, layer.weight_of(flat))
                slope *= before > 0  # a layer with inputs from a ReLU: they are positive where it let through


class _DenseOracle(CohortOracle):
    """Answers for a slice of clients."""

    def __init__(self, engine: DenseEngine, plan: Schedule, held: Sequence[Examples], seeds: Sequence[Seeds]) -> None:
        super().__init__(engine.layout, plan, [len(h) for h in held], seeds)
        self._engine = engine
        self._inputs = np.concatenate([h.inputs.view(np.ndarray).reshape(h.inputs.shape[0], -1) for h in held])
        self._targets = np.concatenate([h.targets.view(np.ndarray) for h in held])
        self._weights, self._slope = engine.room(len(held))

    def begin(self, weights: Vector) -> Vector:
        self._weights[:] = weights
        return self._weights

    def gradient(self, weights: Vector, batch: int | None = None) -> Vector:
        flat, (inputs, targets, shares) = self._wide(weights, batch), self._examples(batch)
        out = np.empty_like(flat) if batch is None else self._slope[: len(flat)]
        values = self._engine.forward(flat, inputs)
        losses, slope = _cross_entropy(values.pop(), targets, shares)
        self._engine.backward(flat, values, slope, out=out)
        self.saw(batch, losses)
        return out

    def loss(self, weights: Vector, batch: int | None = None) -> Vector:
        inputs, targets, shares = self._examples(batch)
        losses = _cross_entropy(self._engine.forward(self._wide(weights, batch), inputs)[-1], targets, shares)[0]
        self.saw(batch, losses)
        return losses

    def hvp(self, weights: Vector, vector: Vector, batch: int | None = None) -> Vector:
        raise NotImplementedError("engine 'dense' does not offer hvp")

    def outputs(self, weights: Vector, inputs: Any) -> tuple[Batch, ...]:
        return (self._engine.forward(self._wide(weights, None), np.asarray(inputs).reshape(len(inputs), -1))[-1],)

    def like(self, array: Any) -> NDArray[Any]:
        return np.asarray(array).view(np.ndarray)

    def joined(self, head: NDArray[Any], tail: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate((head, tail))

    def _wide(self, weights: Vector, batch: int | None) -> Vector:
        """Where all share one row: that row for each."""
        rows = self.rows(batch)
        return weights if len(weights) == rows else np.broadcast_to(weights, (rows, self.layout.size))

    def _examples(self, batch: int | None) -> tuple[Batch, NDArray[np.int64], Batch]:
        indices, shares = self.batch(batch)
        return self._inputs[indices], self._targets[indices], shares


def dense_layers(name: str, module: Any, layout: Layout) -> tuple[DenseLayer, ...]:
    """Reads a dense stack.

    Args:
        name: The task's name, for messages.
        module: The torch module.
        layout: Its layout.

    Returns:
        Its linear layers in order.

    Raises:
        MisfitError: If it is anything but Flatten, then Linear with ReLU between, ending in Linear.
    """
    from torch import nn

    places = {slot.name: slice(slot.offset, slot.offset + slot.size) for slot in layout.slots}
    children = list(module.named_children()) if isinstance(module, nn.Sequential) else []
    kinds = [type(child).__name__ for _, child in children]
    found = [(key, child) for key, child in children if isinstance(child, nn.Linear)]
    wanted = [*kinds[:1], *(["Linear", "ReLU"] * len(found))[:-1]]
    if not found or kinds != wanted or kinds[0] != "Flatten":
        raise MisfitError(
            f"engine 'dense' needs nn.Sequential of Flatten, then Linear with ReLU between them, task {name!r} has "
            f"{kinds[:10] or type(module).__name__}. Use engine 'stacked' or 'sequential'."
        )
    last = len(found) - 1
    return tuple(
        DenseLayer(
            places[f"{key}.weight"],
            places.get(f"{key}.bias"),
            (child.out_features, child.in_features),
            index < last,
        )
        for index, (key, child) in enumerate(found)
    )


def _cross_entropy(logits: Batch, targets: NDArray[np.int64], shares: Batch) -> tuple[NDArray[np.float32], Batch]:
    shifted = logits - logits.max(axis=2, keepdims=True)
    exponentials = np.exp(shifted)
    sums = exponentials.sum(axis=2, keepdims=True)
    clients, width = targets.shape
    own = np.arange(clients)[:, None], np.arange(width), targets  # of each example, the logit of its class
    losses = ((np.log(sums)[..., 0] - shifted[own]) * shares).sum(axis=1)
    slope = exponentials / sums
    slope[own] -= 1
    slope *= shares[..., None]
    return losses, slope


def _check_objective(task: Task, num_classes: int) -> None:
    import torch

    rng = np.random.default_rng(0)
    logits = rng.standard_normal((1, 5, num_classes), np.float32)
    targets = rng.integers(0, num_classes, (1, 5))
    losses, slope = _cross_entropy(logits, targets, np.full((1, 5), 0.2, np.float32))
    leaf = torch.from_numpy(logits[0]).requires_grad_()
    value = task.loss(leaf, torch.from_numpy(targets[0]))
    (gradient,) = torch.autograd.grad(value, leaf)
    loss = value.item()
    if abs(loss - float(losses[0])) > 1e-5 or np.abs(gradient.numpy() - slope[0]).max() > 1e-5:
        raise MisfitError(
            f"task {task.name!r} says objective 'cross_entropy', but its loss of a random batch is {loss:.6f}, "
            f"the mean cross entropy is {float(losses[0]):.6f}. Leave the objective empty."
        )
