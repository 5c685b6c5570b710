"""Many clients of any small module at once: `torch.func.vmap` over a stack of flat vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, grad_and_value, vmap

from edgewise.core.layout import Vector
from edgewise.core.seeds import Seeds
from edgewise.models.flat import layout_of
from edgewise.models.task import Examples, Task
from edgewise.training.algorithm import LocalWork
from edgewise.training.local.engines.engine import LocalResult, Progress, schedule
from edgewise.training.local.engines.sequential import one_thread, to_tensors
from edgewise.training.local.engines.sliced import SlicedEngine, to_results


class StackedEngine(SlicedEngine):
    """Pays for small models, where one client's step is all overhead.

    The task's loss must be a mean over examples of a loss of each example: the last, smaller batch of a client is
    padded and its examples weighted. Modules that draw random numbers draw other ones than `sequential`.

    Args:
        task: Gives model and loss.
    """

    name = "stacked"

    def __init__(self, task: Task) -> None:
        self._task = task
        self._module = task.model().train()
        self.layout = layout_of(self._module)
        self._step = vmap(grad_and_value(self._weighted_loss), randomness="different")

    @one_thread()
    def work_slice(
        self,
        received: Vector,
        work: LocalWork,
        examples: Sequence[Examples],
        seeds: Sequence[Seeds],
        progress: Progress | None,
    ) -> list[LocalResult]:
        plan = schedule([len(held) for held in examples], work, seeds)
        inputs, targets, offsets = _pooled(examples)
        indices = torch.from_numpy(plan.indices + offsets[plan.order][:, None, None])
        shares = torch.from_numpy(plan.shares)
        start = torch.from_numpy(np.ascontiguousarray(received[plan.order]))
        weights = start.clone()
        losses = torch.zeros(plan.indices.shape[:2])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeds[0].at("torch").integer() % 2**63)
            for step in range(int(plan.num_steps[0])):
                active, chosen = plan.active(step), indices[:, step]
                batch = inputs[chosen[:active]], targets[chosen[:active]], shares[:active, step]
                flat = weights[:active]
                gradient, losses[:active, step] = self._step(flat, *batch)
                flat -= work.learning_rate * work.direction(gradient, flat, start[:active])
                if progress is not None:
                    progress(step + 1)
        return to_results(plan, (weights - start).numpy(), losses.numpy(), [len(held) for held in examples])

    def _weighted_loss(self, flat: Tensor, inputs: Tensor, targets: Tensor, shares: Tensor) -> Tensor:
        views = {s.name: flat[s.offset : s.offset + s.size].view(s.shape) for s in self.layout.slots}
        outputs = functional_call(self._module, views, (inputs,))
        return (vmap(self._loss_of_one)(outputs, targets) * shares).sum()

    def _loss_of_one(self, outputs: Any, target: Tensor) -> Tensor:
        batch = outputs[None] if isinstance(outputs, Tensor) else tuple(exit_[None] for exit_ in outputs)
        return self._task.loss(batch, target[None])


def _pooled(examples: Sequence[Examples]) -> tuple[Tensor, Tensor, np.ndarray[Any, Any]]:
    tensors = [to_tensors(held) for held in examples]
    offsets = np.cumsum([0, *(len(held) for held in examples[:-1])])
    return torch.cat([t[0] for t in tensors]), torch.cat([t[1] for t in tensors]), offsets
