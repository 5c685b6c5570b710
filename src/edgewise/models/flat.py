"""Between a torch module and a flat vector: layout, initial values, loading. Imports torch when called."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgewise.core.errors import TaskError
from edgewise.core.layout import Layout, Vector
from edgewise.core.seeds import Seeds
from edgewise.models.task import Task

if TYPE_CHECKING:
    from torch import nn


def layout_of(module: nn.Module) -> Layout:
    """How the parameters of a module lie in one vector, in the order of `named_parameters`.

    Args:
        module: float32 parameters, no buffers that training changes.

    Returns:
        The layout; its slot names are the parameters' names.

    Raises:
        TaskError: If a parameter is not float32, there is none, or there are floating-point buffers.
    """
    named = list(module.named_parameters())
    if not named:
        raise TaskError("the task's model has no parameters, so there is nothing to train. Give it at least one.")
    for name, parameter in named:
        if str(parameter.dtype) != "torch.float32":
            raise TaskError(f"parameter {name!r} is {parameter.dtype}, needed is torch.float32. Call .float() on it.")
    for name, buffer in module.named_buffers():
        if buffer.is_floating_point():
            raise TaskError(
                f"the task's model keeps state beside its parameters ({name!r}), which is not averaged over clients. "
                "Replace batch norm by group or layer norm."
            )
    return Layout.of([(name, tuple(parameter.shape)) for name, parameter in named])


def initial_vector(task: Task, seeds: Seeds) -> Vector:
    """The model everyone starts from: a fresh module's parameters, drawn by the seed tree.

    Args:
        task: Makes the module.
        seeds: The job's seeds; the place `model` below them is used.

    Returns:
        float32[d].
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.at("model").integer() % 2**63)
        module = task.model()
    return vector_of(module)


def vector_of(module: nn.Module) -> Vector:
    """The parameters of a module as one vector.

    Args:
        module: As in `layout_of`.

    Returns:
        float32[d]; a copy.
    """
    return layout_of(module).flatten({n: p.detach().cpu().numpy() for n, p in module.named_parameters()})


def load_vector(module: nn.Module, vector: Vector) -> nn.Module:
    """Writes a vector into the parameters of a module.

    Args:
        module: As in `layout_of`; changed in place.
        vector: float32[d].

    Returns:
        The same module.

    Raises:
        InputError: If the vector has another length.
    """
    import torch

    tensors = layout_of(module).unflatten(np.array(vector, np.float32))  # a copy: torch wants a writable one
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.from_numpy(tensors[name]))
    return module
