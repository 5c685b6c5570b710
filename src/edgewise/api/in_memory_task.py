"""`InMemoryTask`: a task of a user's own module and arrays, for simulation; devices of a fleet take a file with a `Task` class."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgewise.api.source import plain_array
from edgewise.core.errors import DataError, TaskError, nearest
from edgewise.core.ids import ClientId
from edgewise.core.seeds import Seeds
from edgewise.datasets.split import dirichlet, iid
from edgewise.models.examples import map_arrays
from edgewise.models.task import Examples, Task

if TYPE_CHECKING:
    from torch import Tensor, nn

Pair = tuple[Any, Any]
"""Inputs [n, ...] and targets [n, ...]; numpy arrays or torch tensors."""


class InMemoryTask(Task):
    """A task whose model and examples are objects of this program.

    Args:
        model: A function (or class) that makes a fresh torch module, or a module to start from.
        clients: Examples by client: a pair (inputs, targets) each. Floats, bytes and flags are given to the model as float32,
            other whole numbers as int64.
        test: Examples that no client holds, as a pair; the model is evaluated on them after each round.
        loss: (outputs, targets) -> scalar tensor. By default the mean cross entropy where targets are whole numbers, else the
            mean squared error; of a model with several exits the sum over them.
        name: Names the task in records and models.

    Raises:
        TaskError: If there is no client, or `model` makes no module.
        DataError: If inputs and targets of somebody are not of one length.

    Example:
        >>> import numpy as np, torch
        >>> from edgewise import InMemoryTask, split_examples
        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=(60, 4)).astype("float32"); y = x[:, :3].argmax(1)
        >>> task = InMemoryTask(lambda: torch.nn.Linear(4, 3), split_examples(x, y, 3), test=(x, y))
        >>> task.clients(), task.input_shape, task.num_classes
        (('client-0', 'client-1', 'client-2'), (4,), 3)
    """

    def __init__(
        self,
        model: Callable[[], nn.Module] | nn.Module,
        clients: Mapping[str, Pair | Examples],
        *,
        test: Pair | Examples | None = None,
        loss: Callable[[Any, Tensor], Tensor] | None = None,
        name: str = "task",
    ) -> None:
        super().__init__()
        if not isinstance(clients, Mapping) or not clients:
            raise TaskError("a task needs at least one client. Give {'name': (inputs, targets), …}.")
        self.name = name
        self._make, self._loss = model, loss
        self._held = {ClientId(str(c)): _examples(f"client {c!r}", pair) for c, pair in clients.items()}
        self._test = None if test is None else _examples("test", test)
        first = next(iter(self._held.values()))
        self.input_shape = map_arrays(lambda array: tuple(array.shape[1:]), first.inputs)
        if loss is None and isinstance(first.targets, Mapping):
            raise TaskError(
                f"task {name!r} has several targets, {sorted(first.targets)}. Say how they are learned: loss=…."
            )
        every = (*self._held.values(), *filter(None, [self._test]))
        labels = [e.targets for e in every if len(e) and not isinstance(e.targets, Mapping)]
        self._is_classification = bool(labels) and all(t.dtype.kind in "iu" for t in labels)
        self.num_classes = 1 + max(int(np.asarray(t).max()) for t in labels) if self._is_classification else 0

    def model(self) -> nn.Module:
        """A fresh module; where a module was given, a copy of it."""
        from torch import nn

        made = copy.deepcopy(self._make) if isinstance(self._make, nn.Module) else self._make()
        if not isinstance(made, nn.Module):
            raise TaskError(
                f"the model of task {self.name!r} is {type(made).__name__}, needed is a torch.nn.Module. "
                "Give a function that returns one, e.g. your class itself."
            )
        return made

    def loss(self, outputs: Tensor | tuple[Tensor, ...], targets: Tensor) -> Tensor:
        """The user's loss, or the default one."""
        from torch.nn import functional

        if self._loss is not None:
            return self._loss(outputs, targets)
        each = functional.cross_entropy if self._is_classification else functional.mse_loss
        exits = outputs if isinstance(outputs, tuple) else (outputs,)
        losses = [each(output, targets if self._is_classification else _as(output, targets)) for output in exits]
        total = losses[0]
        for loss in losses[1:]:
            total = total + loss
        return total

    def clients(self) -> Sequence[ClientId]:
        """Everyone who was given."""
        return tuple(self._held)

    def data(self, client: ClientId) -> Examples:
        """The examples of one client."""
        if client not in self._held:
            raise TaskError(f"task {self.name!r} has no data of client {client!r}.{nearest(client, self._held)}")
        return self._held[client]

    def test_data(self) -> Examples | None:
        """What was given as `test`."""
        return self._test

    def metrics(self, outputs: tuple[NDArray[np.float32], ...], targets: NDArray[Any]) -> Mapping[str, float]:
        """The accuracy of each exit; of a regression its mean absolute error."""
        if self._is_classification or isinstance(outputs, Mapping) or isinstance(targets, Mapping):
            return super().metrics(outputs, targets)
        return {"mean_absolute_error": float(np.abs(outputs[-1] - _as(outputs[-1], targets)).mean())}


def split_examples(
    inputs: Any, targets: Any, num_clients: int, *, alpha: float | None = None, seed: int = 0
) -> dict[str, Pair]:
    """Splits examples over clients: evenly, or with label skew.

    Args:
        inputs: [n, ...].
        targets: [n, ...]; labels where `alpha` is given.
        num_clients: How many share them.
        alpha: Concentration of a Dirichlet split by label: 0.1 is strong skew, 100 nearly even. None deals them out evenly.
        seed: Draws who gets what.

    Returns:
        Pairs (inputs, targets) of `client-0`, `client-1`, …

    Raises:
        DataError: If there are too few examples, or not as many targets as inputs.

    Example:
        >>> import numpy as np
        >>> from edgewise import split_examples
        >>> held = split_examples(np.zeros((10, 2)), np.arange(10) % 2, 2)
        >>> [(client, len(inputs)) for client, (inputs, targets) in held.items()]
        [('client-0', 5), ('client-1', 5)]
    """
    x, y = plain_array(inputs), plain_array(targets)
    if len(x) != len(y):
        raise DataError(f"there are {len(x)} inputs and {len(y)} targets. Give as many of each.")
    rng = Seeds(seed).at("data", "split").rng()
    parts = iid(len(y), num_clients, rng=rng) if alpha is None else dirichlet(y, num_clients, alpha=alpha, rng=rng)
    return {f"client-{index}": (x[held], y[held]) for index, held in enumerate(parts)}


def _examples(whose: str, given: Pair | Examples) -> Examples:
    if isinstance(given, Examples):
        return given
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise DataError(f"the examples of {whose} are {type(given).__name__}, needed is a pair (inputs, targets).")
    if any(isinstance(tree, Mapping) for tree in given):
        return Examples.of(*given)
    x, y = (plain_array(array) for array in given)
    for what, array in (("inputs", x), ("targets", y)):
        if array.dtype.kind not in "iufb":
            raise DataError(
                f"the {what} of {whose} are {array.dtype}, numbers are needed. Encode them, labels as 0, 1, …."
            )
    if x.ndim < 1 or y.ndim < 1 or len(x) != len(y):
        raise DataError(f"{whose} has inputs {list(x.shape)} and targets {list(y.shape)}. Give as many of each.")
    # Whole numbers of more than a byte are what an embedding looks up; pixels and flags are what a layer multiplies.
    x = x.astype(np.int64) if x.dtype.kind in "iu" and x.itemsize > 1 else x.astype(np.float32)
    return Examples.of(x, y.astype(np.int64) if y.dtype.kind in "iub" else y.astype(np.float32))


def _as(output: Any, targets: Any) -> Any:
    """Targets [n] beside an output [n, 1]: subtracting them as they are would make [n, n]."""
    same = output.shape != targets.shape and output.shape == (*targets.shape, 1)
    return targets.reshape(output.shape) if same else targets
