"""`Task`: what a user writes, in one file: model, loss, metrics, and a function that gives this node's data.

This file imports torch only for type checking, so that a node which serves can read task metadata without it.
"""

from __future__ import annotations

import importlib.util
import traceback
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgewise.core.errors import EdgewiseError, TaskError
from edgewise.core.ids import ClientId
from edgewise.core.provenance import RAW, traced

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Examples:
    """Examples of one client, kept where they are.

    Attributes:
        inputs: float32[n, *input_shape]; traced as raw data.
        targets: int64[n] or float32[n, ...].
    """

    inputs: NDArray[Any]
    targets: NDArray[Any]

    @staticmethod
    def of(inputs: Any, targets: Any) -> Examples:
        """Marks both arrays as raw data of this node."""
        return Examples(traced(np.ascontiguousarray(inputs), RAW), traced(np.ascontiguousarray(targets), RAW))

    def __len__(self) -> int:
        return len(self.inputs)


class Task(ABC):
    """A learning task. Subclass it in one file; `load_task` finds the class.

    Attributes:
        name: Names the task in keys, reports and versions.
        input_shape: Shape of one example, without the batch axis.
        num_classes: Number of labels of a classification task; 0 otherwise.
        objective: "cross_entropy" if `loss` is the plain mean cross entropy of a single output, which lets
            an engine use its closed-form gradient; "" for anything else.
        settings: What the job's `[task]` table gives beside `file`.
    """

    name: str = "task"
    input_shape: tuple[int, ...] = ()
    num_classes: int = 0
    objective: str = ""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    @abstractmethod
    def model(self) -> nn.Module:
        """A fresh module. Its forward returns one tensor, or a tuple of one logits tensor per exit, first exit first."""

    @abstractmethod
    def loss(self, outputs: Tensor | tuple[Tensor, ...], targets: Tensor) -> Tensor:
        """The mean over a batch of a loss of each example; a scalar."""

    @abstractmethod
    def clients(self) -> Sequence[ClientId]:
        """Everyone who holds data of this task, for simulation and audits."""

    @abstractmethod
    def data(self, client: ClientId) -> Examples:
        """The examples of one client. On a device it is asked for the device's own client only."""

    def test_data(self) -> Examples | None:
        """Examples no client holds, where there are any."""
        return None

    def held_out(self) -> tuple[Examples, Examples] | None:
        """What a coordinator may have, to judge versions on: examples that choose thresholds, and those that gate.

        Returns:
            Two disjoint parts that no client holds; by default the halves of `test_data`. None without any.
        """
        found = self.test_data()
        if found is None or len(found) < 2:
            return None
        half = len(found) // 2
        first, second = slice(half), slice(half, None)
        return Examples(found.inputs[first], found.targets[first]), Examples(
            found.inputs[second], found.targets[second]
        )

    def metrics(self, outputs: tuple[NDArray[np.float32], ...], targets: NDArray[Any]) -> Mapping[str, float]:
        """Numbers that tell how good outputs are; by default the accuracy of each exit.

        Args:
            outputs: Per exit float32[n, num_classes].
            targets: int64[n].

        Returns:
            `accuracy` of the last exit, and `accuracy_exit_0`, … where there are several.
        """
        scores = [float((o.argmax(-1) == targets).mean()) for o in outputs]
        named = {f"accuracy_exit_{i}": s for i, s in enumerate(scores)} if len(scores) > 1 else {}
        return {"accuracy": scores[-1], **named}


@contextmanager
def user_code(what: str) -> Iterator[None]:
    """Turns what a user's own code raises into a sentence with the place; ours passes through.

    Args:
        what: What was asked of it, e.g. `task 'my' gives the data of client 'a'`.

    Raises:
        TaskError: With kind, text, file and line of the error.
    """
    try:
        yield
    except EdgewiseError:
        raise
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise TaskError(
            f"{what}: {type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno}). "
            "Fix the task and try again."
        ) from error


def load_task(path: str | Path, **settings: Any) -> Task:
    """Loads the one `Task` subclass of a file.

    Args:
        path: A Python file.
        **settings: Passed to the class.

    Returns:
        The task.

    Raises:
        TaskError: If the file is missing, does not import, has no or several tasks, or the class takes no such settings.
    """
    path = Path(path)
    if not path.is_file():
        raise TaskError(f"task file {str(path)!r} does not exist. Give the path of a Python file with a Task class.")
    spec = importlib.util.spec_from_file_location(f"edgewise_task_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise TaskError(
            f"task file {str(path)!r} does not import: {type(error).__name__}: {error}. Fix it and try again."
        ) from error
    found = [
        v
        for v in vars(module).values()
        if isinstance(v, type) and issubclass(v, Task) and v.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise TaskError(f"task file {str(path)!r} has {len(found)} Task classes, needed is exactly one.")
    with user_code(f"the task of {str(path)!r} is not made with settings {settings!r}"):
        return found[0](**settings)
