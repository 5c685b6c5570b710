"""What a module takes and gives: example inputs of a task, a call with one or several inputs, outputs by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

from edgewise.core.errors import TaskError
from edgewise.models.examples import map_arrays
from edgewise.models.task import Task, user_code

if TYPE_CHECKING:
    from torch import Tensor, nn

INPUT = "input"
MOST_TRIALS = 16


def exit_name(index: int) -> str:
    """The graph output of an exit: `exit_0`, `exit_1`, …"""
    return f"exit_{index}"


def call(module: nn.Module, inputs: Any) -> Any:
    """Asks a module: with one tensor, or with several by the names of its forward's arguments."""
    return module(**inputs) if isinstance(inputs, Mapping) else module(inputs)


def like_tuple(outputs: Any, values: Sequence[Any]) -> Any:
    """Other values in the kind of tuple or list that a forward gave, a named tuple among them."""
    return type(outputs)(*values) if hasattr(outputs, "_fields") else type(outputs)(values)


def named_outputs(outputs: Any) -> dict[str, Tensor]:
    """What a module gave, by the names that a served model gives it.

    Args:
        outputs: A tensor, a tuple of one tensor an exit, or a dict or named tuple.

    Returns:
        By name, in order: `exit_0`, … or the names that the dict or named tuple has.

    Raises:
        TaskError: If something in it is no tensor.
    """
    import torch

    if isinstance(outputs, Mapping):
        found = {str(name): value for name, value in outputs.items() if value is not None}
    elif isinstance(outputs, torch.Tensor):
        found = {exit_name(0): outputs}
    elif hasattr(outputs, "_fields"):
        found = dict(zip(outputs._fields, outputs, strict=True))
    elif isinstance(outputs, (tuple, list)):
        found = {exit_name(index): value for index, value in enumerate(outputs)}
    else:
        found = {"": outputs}
    for name, value in found.items():
        if not isinstance(value, torch.Tensor):
            raise TaskError(
                f"the model's forward gives {name or 'its output'!r} as a {type(value).__name__}. "
                "It is to return a tensor, a tuple of one tensor an exit, or a dict of tensors."
            )
    return found


def example_inputs(task: Task, module: nn.Module, rows: int = 2) -> Any:
    """Inputs that the task's model takes, of the task's `input_shape` and `input_dtype`.

    Where the task names no dtype, float32 is tried, then int64.

    Args:
        task: Says the shapes.
        module: Its model; asked in evaluation mode, and left in the mode it was in.
        rows: Examples.

    Returns:
        A tensor [rows, *input_shape] of small random values or zeros; or a dict of them.

    Raises:
        TaskError: If the model takes none of them; with the text of its error, file and line.
    """
    import torch

    shapes: Any = task.input_shape
    names = list(shapes) if isinstance(shapes, Mapping) else [""]
    declared = task.input_dtype if isinstance(task.input_dtype, Mapping) else dict.fromkeys(names, task.input_dtype)
    free = [name for name in names if not declared.get(name)]
    trials = [chosen for n in range(len(free) + 1) for chosen in combinations(free, n)][:MOST_TRIALS]
    given = ", ".join(f"{n + ' ' if n else ''}{[rows, *(shapes[n] if n else shapes)]}" for n in names)
    was_training, failed = module.training, None
    module.eval()
    try:
        for whole in trials:
            dtypes = {n: declared.get(n) or ("int64" if n in whole else "float32") for n in names}
            made = {n: _drawn((rows, *(shapes[n] if n else shapes)), dtypes[n]) for n in names}
            inputs: Any = made if isinstance(shapes, Mapping) else made[""]
            try:
                with torch.no_grad(), torch.random.fork_rng(devices=[]):
                    call(module, inputs)
            except Exception as error:  # the user's forward, on inputs it may not take
                failed = failed or error
                continue
            return inputs
    finally:
        module.train(was_training)
    with user_code(f"the model of task {task.name!r} does not take inputs of its input_shape, {given}"):
        raise failed or TypeError("nothing to try")
    raise AssertionError  # user_code raises


def same_outputs(one: Any, other: Any) -> bool:
    """Whether two answers of a module are equal to the last bit."""
    import torch

    pairs = zip(named_outputs(one).values(), named_outputs(other).values(), strict=True)
    return all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pairs)


def as_numpy(inputs: Any) -> dict[str, Any]:
    """Inputs by the names that a served model gives them, as numpy arrays."""
    arrays = map_arrays(lambda tensor: tensor.numpy(), inputs)
    return dict(arrays) if isinstance(arrays, Mapping) else {INPUT: arrays}


def _drawn(shape: tuple[int, ...], dtype: str) -> Tensor:
    import torch

    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype):
        raise TaskError(f"input_dtype {dtype!r} is no dtype. Give 'float32' or 'int64'.")
    if not kind.is_floating_point:
        return torch.zeros(shape, dtype=kind)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(kind)
