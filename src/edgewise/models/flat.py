"""Between a torch module and a flat vector: layout, initial values, loading. Imports torch when called."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgewise.core.errors import TaskError
from edgewise.core.layout import Layout, SlotKind, Vector
from edgewise.core.seeds import Seeds
from edgewise.models.task import Task, user_code

if TYPE_CHECKING:
    from torch import Tensor, nn


def layout_of(module: nn.Module) -> Layout:
    """How a module's tensors lie in one vector: trained parameters, frozen ones, floating buffers, each in the module's order.

    Tied parameters are one, under their first name. A frozen parameter is one that does not require a gradient. A buffer is what the forward pass writes, as batch norm's running statistics; it travels and is averaged. Left out are
    integer buffers (`num_batches_tracked`: every client starts it anew) and those that are not in the module's `state_dict`.

    Args:
        module: Of float32. A parameter with the attribute `kind = "adapter"` is laid out as one.

    Returns:
        The layout; its slot names are the tensors' names.

    Raises:
        TaskError: If a tensor is not float32, or there is no parameter that is trained.
    """
    from torch.nn.parameter import is_lazy

    named, buffers = parameters_of(module), buffers_of(module)
    if not any(parameter.requires_grad for parameter in named.values()):
        raise TaskError(
            f"the task's model has no parameters{' that require a gradient' * bool(named)}, so there is nothing to train. "
            "Give it at least one."
        )
    if lazy := [name for name, tensor in module.state_dict(keep_vars=True).items() if is_lazy(tensor)]:
        raise TaskError(
            f"{lazy[0]!r} of the task's model has no shape yet: a lazy layer learns it from its first input. Give its size, or "
            "call the module once on zeros of input_shape in model()."
        )
    for what, tensors in (("parameter", named), ("buffer", buffers)):
        for name, tensor in tensors.items():
            if str(tensor.dtype) != "torch.float32":
                raise TaskError(f"{what} {name!r} is {tensor.dtype}, needed is torch.float32. Call .float() on it.")
    kinds = {
        name: SlotKind(getattr(parameter, "kind", SlotKind.PARAMETER)) if parameter.requires_grad else SlotKind.FROZEN
        for name, parameter in named.items()
    }
    kinds |= dict.fromkeys(buffers, SlotKind.BUFFER)
    return Layout.of([(name, tuple(tensor.shape)) for name, tensor in (named | buffers).items()], kinds)


def parameters_of(module: nn.Module) -> dict[str, Tensor]:
    """The parameters of a module in the order of its layout: those that are trained, then those that are frozen.

    Args:
        module: Any.

    Returns:
        By name; tied ones stand once.
    """
    return dict(sorted(module.named_parameters(), key=lambda named: not named[1].requires_grad))


def buffers_of(module: nn.Module) -> dict[str, Tensor]:
    """The buffers that are part of a module's layout.

    Args:
        module: Any.

    Returns:
        By name, in the module's order.
    """
    stays = module.state_dict().keys()
    return {n: buffer for n, buffer in module.named_buffers() if buffer.is_floating_point() and n in stays}


def initial_vector(task: Task, seeds: Seeds) -> Vector:
    """The model everyone starts from: a fresh module's tensors, drawn by the seed tree.

    Args:
        task: Makes the module.
        seeds: The job's seeds; the place `model` below them is used.

    Returns:
        float32[d].
    """
    import torch

    with torch.random.fork_rng(devices=[]), user_code(f"task {task.name!r} makes no model"):
        torch.manual_seed(seeds.at("model").integer() % 2**63)
        module = task.model()
    return vector_of(module)


def vector_of(module: nn.Module) -> Vector:
    """The parameters and buffers of a module as one vector.

    Args:
        module: As in `layout_of`.

    Returns:
        float32[d]; a copy.
    """
    tensors = parameters_of(module) | buffers_of(module)
    return layout_of(module).flatten({n: tensor.detach().cpu().numpy() for n, tensor in tensors.items()})


def load_vector(module: nn.Module, vector: Vector) -> nn.Module:
    """Writes a vector into the parameters and buffers of a module.

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
        for name, tensor in (parameters_of(module) | buffers_of(module)).items():
            tensor.copy_(torch.from_numpy(tensors[name]))
    return module
