"""One client after the other, any module: a flat buffer, `autograd.grad`, no optimizer object."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from edgewise.core.layout import Vector
from edgewise.core.provenance import derived
from edgewise.core.seeds import Seeds
from edgewise.models.flat import layout_of
from edgewise.models.task import Examples, Task
from edgewise.training.algorithm import LocalWork, plain_gradient
from edgewise.training.local.engines.engine import LocalEngine, LocalResult, Progress, batches


class SequentialEngine(LocalEngine):
    """Serves every module; the one to pin where runs must be byte-equal.

    Args:
        task: Gives model and loss.
    """

    name = "sequential"

    def __init__(self, task: Task) -> None:
        self._task = task
        self._module = task.model().train()
        self.layout = layout_of(self._module)
        self._weights = torch.zeros(self.layout.size)
        self._parameters = list(self._module.parameters())
        # The module's parameters become views of one buffer: loading and reading a model is one copy.
        self._views = [
            self._weights[slot.offset : slot.offset + slot.size].view(slot.shape) for slot in self.layout.slots
        ]
        for parameter, view in zip(self._parameters, self._views, strict=True):
            parameter.data = view

    def train_cohort(
        self,
        received: Vector,
        work: LocalWork,
        examples: Sequence[Examples],
        seeds: Sequence[Seeds],
        *,
        progress: Progress | None = None,
    ) -> list[LocalResult]:
        rows = self.rows(received, len(examples))
        done = 0
        results = []
        with one_thread():
            for row, held, place in zip(rows, examples, seeds, strict=True):
                results.append(self._one(row, work, held, place, progress, done))
                done += results[-1].num_steps
        return results

    def _one(
        self, received: Vector, work: LocalWork, examples: Examples, seeds: Seeds, progress: Progress | None, done: int
    ) -> LocalResult:
        inputs, targets = to_tensors(examples)
        start = torch.tensor(received)
        self._weights.copy_(start)
        total, seen, steps = torch.zeros(()), 0, batches(len(examples), work, seeds)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeds.at("torch").integer() % 2**63)
            for step, part in enumerate(steps, start=1):
                chosen = torch.from_numpy(part)
                loss = self._task.loss(self._module(inputs[chosen]), targets[chosen])
                gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True, materialize_grads=True)
                self._descend(work, gradients, start)
                total += loss.detach() * len(part)
                seen += len(part)
                if progress is not None:
                    progress(done + step)
        update = derived((self._weights - start).numpy())
        return LocalResult(update, float(len(examples)), float(total) / seen, len(steps))

    def _descend(self, work: LocalWork, gradients: Sequence[Tensor], start: Tensor) -> None:
        if work.direction is plain_gradient:
            torch._foreach_add_(self._views, list(gradients), alpha=-work.learning_rate)
            return
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        self._weights.add_(work.direction(flat, self._weights, start), alpha=-work.learning_rate)


def to_tensors(examples: Examples) -> tuple[Tensor, Tensor]:
    """The arrays of examples as tensors that share their memory.

    Args:
        examples: Any.

    Returns:
        Inputs and targets.
    """
    plain = (np.require(a.view(np.ndarray), requirements=["C", "W"]) for a in (examples.inputs, examples.targets))
    inputs, targets = (torch.from_numpy(array) for array in plain)
    return inputs, targets


@contextmanager
def one_thread() -> Iterator[None]:
    """Runs torch on one thread inside: several threads add up gradients in another order, and collapse under load."""
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
