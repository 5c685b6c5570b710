"""`Task`: what a user writes, in one file: model, loss, metrics, and a function that gives this node's data.

This file imports torch only for type checking, so that a node which serves can read task metadata without it.
"""

from __future__ import annotations

import importlib.util
import sysconfig
import traceback
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise.core.errors import EdgewiseError, TaskError
from edgewise.core.ids import ClientId
from edgewise.models.examples import Examples

if TYPE_CHECKING:
    from torch import Tensor, nn


__all__ = ["Examples", "Task", "clients_of", "load_task", "user_code"]


class Task(ABC):
    """A learning task. Subclass it in one file; `load_task` finds the class.

    Attributes:
        name: Names the task in keys, reports and versions.
        input_shape: Shape of one example, without the batch axis; where the model takes several inputs, a dict of shapes by
            the names of forward's arguments.
        input_dtype: "float32" or "int64", or a dict of them by name; "" finds out what the model takes.
        num_classes: Number of labels of a classification task; 0 otherwise.
        objective: "cross_entropy" if `loss` is the plain mean cross entropy of a single output, which lets
            an engine use its closed-form gradient; "" for anything else.
        settings: What the job's `[task]` table gives beside `file`.
    """

    name: str = "task"
    input_shape: tuple[int, ...] | Mapping[str, tuple[int, ...]] = ()
    input_dtype: str | Mapping[str, str] = ""
    num_classes: int = 0
    objective: str = ""

    source: str = ""
    """File it was loaded from; "" if it was imported."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    @abstractmethod
    def model(self) -> nn.Module:
        """A fresh module.

        Returns:
            A module whose forward takes the inputs (one tensor, or several by name) and returns one tensor, a tuple of one
            logits tensor per exit, first exit first, or a dict or named tuple of tensors; these names are the outputs of the served model.
            What does not require a gradient stays as it is.
        """

    @abstractmethod
    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """The mean over a batch of a loss of each example.

        Args:
            outputs: As the model's forward returns them.
            targets: A tensor, or a dict of tensors where the examples have several targets.

        Returns:
            A scalar.
        """

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
        return found.take(slice(half)), found.take(slice(half, None))

    def metrics(self, outputs: Any, targets: Any) -> Mapping[str, float]:
        """Numbers that tell how good outputs are; by default the accuracy of each exit, where targets are labels.

        Args:
            outputs: Per exit float32[n, num_classes], as a tuple; a dict or named tuple of arrays where forward returns one.
            targets: int64[n], float32[n, ...], or a dict of such arrays.

        Returns:
            By name; by default `accuracy` of the last exit, `accuracy_exit_0`, … where there are several, and nothing where
            outputs or targets are named or targets are no labels of an example.
        """
        labels = not isinstance(targets, Mapping) and targets.ndim == 1 and targets.dtype.kind in "iu"
        is_named = isinstance(outputs, Mapping) or hasattr(outputs, "_fields")
        if is_named or not labels or outputs[-1].ndim != 2 or outputs[-1].shape[1] < 2:
            return {}
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
        raise TaskError(f"{what}: {described(error)}. Fix the task and try again.") from error


def clients_of(task: Task) -> tuple[ClientId, ...]:
    """Who holds data of a task.

    Args:
        task: Names them.

    Returns:
        Their names, each once.

    Raises:
        TaskError: If its code raises, or gives what cannot be names of clients.
    """
    with user_code(f"task {task.name!r} does not name its clients"):
        found = tuple(task.clients())
    for place, client in enumerate(found):
        if not isinstance(client, str):
            raise TaskError(
                f"clients() of task {task.name!r} gives {client!r}, a {type(client).__name__}; a client's name is text, and its "
                "device asks for its data by it. Give str(…)."
            )
        if client in found[:place]:
            raise TaskError(f"clients() of task {task.name!r} names {client!r} twice. Name each once.")
    return found


def described(error: BaseException) -> str:
    """What a user's own code raised: kind, first line of the text, and the file and line of the user's that it came from."""
    return f"{type(error).__name__}: {_first_line(error)} ({_place(error)})"


def _first_line(error: BaseException) -> str:
    """What an error says, as one line: torch adds pages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else "no text"


def _place(error: BaseException) -> str:
    """File and line of the last frame that is neither ours nor a library's."""
    frames = traceback.extract_tb(error.__traceback__)
    ours, libraries = Path(__file__).parents[1], [Path(sysconfig.get_path(n)) for n in ("purelib", "platlib", "stdlib")]
    own = [f for f in frames if not any(Path(f.filename).is_relative_to(at) for at in (ours, *libraries))]
    last = (own or list(frames))[-1]
    return f"{Path(last.filename).name}:{last.lineno}"


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
        what = "is no file" if path.exists() else "does not exist"
        raise TaskError(f"task file {str(path)!r} {what}. Give the path of a Python file with a Task class.")
    spec = importlib.util.spec_from_file_location(f"edgewise_task_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        where = f", line {error.lineno}" if isinstance(error, SyntaxError) else f" ({_place(error)})"
        raise TaskError(
            f"task file {str(path)!r} does not import: {type(error).__name__}: {_first_line(error)}{where}. "
            "Fix it and try again."
        ) from error
    found = [
        v
        for v in vars(module).values()
        if isinstance(v, type) and issubclass(v, Task) and v.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise TaskError(f"task file {str(path)!r} has {len(found)} Task classes, needed is exactly one.")
    with user_code(f"the task of {str(path)!r} is not made with settings {settings!r}"):
        task = found[0](**settings)
    task.source = str(path)
    return task
