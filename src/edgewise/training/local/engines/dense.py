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
from edgewise.training.algorithm import LocalWork
from edgewise.training.local.engines.engine import LocalResult, Progress, schedule
from edgewise.training.local.engines.sliced import SlicedEngine, to_results

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

    def __init__(self, task: Task) -> None:
        module = task.model()
        self.layout = layout_of(module)
        if task.objective != "cross_entropy":
            raise MisfitError(
                f"engine 'dense' needs objective 'cross_entropy', task {task.name!r} says {task.objective!r}. "
                "Use engine 'stacked' or 'sequential'."
            )
        self.layers = dense_layers(task.name, module, self.layout)
        _check_objective(task, self.layers[-1].shape[0])
        self._kept = np.empty((3, 0, self.layout.size), np.float32)

    def work_slice(
        self,
        received: Vector,
        work: LocalWork,
        examples: Sequence[Examples],
        seeds: Sequence[Seeds],
        progress: Progress | None,
    ) -> list[LocalResult]:
        sizes = [len(held) for held in examples]
        rate = np.float32(work.learning_rate)
        plan = schedule(sizes, work, seeds)
        inputs = np.concatenate([held.inputs.view(np.ndarray).reshape(len(held), -1) for held in examples])
        targets = np.concatenate([held.targets.view(np.ndarray) for held in examples])
        indices = plan.indices + np.cumsum([0, *sizes[:-1]])[plan.order][:, None, None]
        start, weights, gradient = self._room(len(sizes))
        for row, client in enumerate(plan.order):
            start[row] = received[client]
        weights[:] = start
        losses = np.zeros(plan.indices.shape[:2], np.float32)
        for step in range(int(plan.num_steps[0])):
            active = plan.active(step)
            chosen, shares = indices[:active, step], plan.shares[:active, step]
            flat, slope = weights[:active], gradient[:active]
            losses[:active, step] = self._gradient(flat, inputs[chosen], targets[chosen], shares, out=slope)
            flat -= np.multiply(work.direction(slope, flat, start[:active]), rate, out=slope)
            if progress is not None:
                progress(step + 1)
        weights -= start
        return to_results(plan, weights, losses, sizes)

    def _room(self, num_clients: int) -> tuple[Vector, Vector, Vector]:
        # Kept between cohorts: fresh arrays of this size cost more in page faults than a step costs in arithmetic.
        if self._kept.shape[1] < num_clients:
            self._kept = np.empty((3, num_clients, self.layout.size), np.float32)
        start, weights, gradient = self._kept[:, :num_clients]
        return start, weights, gradient

    def _gradient(
        self, flat: Vector, inputs: Batch, targets: NDArray[np.int64], shares: Batch, *, out: Vector
    ) -> NDArray[np.float32]:
        values = [inputs]
        for layer in self.layers:
            z = np.matmul(values[-1], layer.weight_of(flat).transpose(0, 2, 1))
            if layer.bias is not None:
                z += flat[:, None, layer.bias]
            values.append(np.maximum(z, 0, out=z) if layer.rectified else z)
        losses, slope = _cross_entropy(values.pop(), targets, shares)
        for layer, before in zip(reversed(self.layers), reversed(values), strict=True):
            np.matmul(slope.transpose(0, 2, 1), before, out=layer.weight_of(out))
            if layer.bias is not None:
                slope.sum(axis=1, out=out[:, layer.bias])
            if layer is not self.layers[0]:
                slope = np.matmul(slope, layer.weight_of(flat))
                slope *= before > 0  # a layer with inputs from a ReLU: they are positive where it let through
        return losses


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
    index = targets[..., None]
    picked = np.take_along_axis(shifted, index, axis=2)
    losses = ((np.log(sums) - picked)[..., 0] * shares).sum(axis=1)
    slope = exponentials / sums
    np.put_along_axis(slope, index, np.take_along_axis(slope, index, axis=2) - 1, axis=2)
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
