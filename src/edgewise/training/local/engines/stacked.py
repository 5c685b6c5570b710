"""Many clients of any small module at once: `torch.func.vmap` over a stack of flat vectors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad, grad_and_value, jvp, vmap

from edgewise.codecs.bundle import Bundle
from edgewise.core.errors import MisfitError
from edgewise.core.layout import SlotKind
from edgewise.core.seeds import Seeds
from edgewise.models.examples import concatenated, map_arrays, take
from edgewise.models.flat import layout_of
from edgewise.models.forward import call, example_inputs, named_outputs, same_outputs
from edgewise.models.task import Examples, Task
from edgewise.training.local.batches import Schedule
from edgewise.training.local.engines.engine import LocalResult, Progress
from edgewise.training.local.engines.sequential import one_thread, to_array, to_tensors
from edgewise.training.local.engines.sliced import CohortOracle, SlicedEngine
from edgewise.training.local.rule import GRADIENT, HVP, LOSS, OUTPUTS, LocalWork


class StackedEngine(SlicedEngine):
    """Pays for small models, where one client's step is all overhead.

    The task's loss must be a mean over examples of a loss of each example: the last, smaller batch of a client is
    padded and its examples weighted. Modules that draw random numbers draw other ones than `sequential`.

    Args:
        task: Gives model and loss.

    Raises:
        MisfitError: If the model has frozen parameters or buffers, or an example's output depends on the rest of its batch,
            which padding would disturb.
    """

    name = "stacked"
    offers = frozenset((GRADIENT, LOSS, HVP, OUTPUTS))

    def __init__(self, task: Task) -> None:
        self._task = task
        self._module = task.model().train()
        self.layout = layout_of(self._module)
        if any(slot.kind is SlotKind.BUFFER for slot in self.layout.slots):
            raise MisfitError(
                f"the model of task {task.name!r} keeps running statistics, which the padded batches of engine 'stacked' "
                "would disturb. Use engine 'sequential'."
            )
        if self.layout.num_trained < self.layout.size:
            raise MisfitError(
                f"engine 'stacked' trains every parameter, the model of task {task.name!r} has frozen ones. "
                "Use engine 'sequential'."
            )
        if _mixes_examples(task, self._module):
            raise MisfitError(
                f"in the model of task {task.name!r} an example's output depends on the rest of its batch, which the padding "
                "of engine 'stacked' would disturb. Use engine 'sequential'."
            )
        loss = self._weighted_loss
        self.step = vmap(grad_and_value(loss), randomness="different")
        self.loss = vmap(loss, randomness="different")
        self.hvp = vmap(_hvp_of(loss), randomness="different")

    @one_thread()
    def work_cohort(
        self,
        work: LocalWork,
        received: Bundle | Sequence[Bundle],
        kept: Sequence[Bundle],
        examples: Sequence[Examples],
        seeds: Sequence[Seeds],
        *,
        progress: Progress | None = None,
    ) -> list[LocalResult]:
        with torch.random.fork_rng(devices=[]), _quiet_fallback():
            return super().work_cohort(work, received, kept, examples, seeds, progress=progress)

    def oracle(
        self, plan: Schedule, examples: Sequence[Examples], seeds: Sequence[Seeds], first: Seeds
    ) -> CohortOracle:
        torch.manual_seed(first.at("torch").integer() % 2**63)
        return _StackOracle(self, plan, examples, seeds)

    def outputs(self, weights: Tensor, inputs: Any) -> Any:
        """What stacked models answer to the same inputs."""
        made = vmap(lambda flat: self._answer(self._module.eval(), flat, inputs))(weights)
        self._module.train()
        return made

    def _views(self, flat: Tensor) -> dict[str, Tensor]:
        return {s.name: flat[s.offset : s.offset + s.size].view(s.shape) for s in self.layout.slots}

    def _weighted_loss(self, flat: Tensor, inputs: Any, targets: Any, shares: Tensor) -> Tensor:
        outputs = self._answer(self._module, flat, inputs)
        return (vmap(self._loss_of_one)(outputs, targets) * shares).sum()

    def _answer(self, module: Any, flat: Tensor, inputs: Any) -> Any:
        several = isinstance(inputs, Mapping)
        return functional_call(module, self._views(flat), () if several else (inputs,), inputs if several else {})

    def _loss_of_one(self, outputs: Any, target: Any) -> Tensor:
        several = isinstance(outputs, (tuple, list))
        batch = tuple(exit_[None] for exit_ in outputs) if several else map_arrays(lambda array: array[None], outputs)
        return self._task.loss(batch, map_arrays(lambda array: array[None], target))


class _StackOracle(CohortOracle):
    """Answers for a slice of clients."""

    def __init__(self, engine: StackedEngine, plan: Schedule, held: Sequence[Examples], seeds: Sequence[Seeds]) -> None:
        super().__init__(engine.layout, plan, [len(h) for h in held], seeds)
        self._engine = engine
        tensors = [to_tensors(h) for h in held]
        self._inputs, self._targets = (concatenated([t[i] for t in tensors], torch.cat) for i in range(2))

    def begin(self, weights: Tensor) -> Tensor:
        return weights.expand(len(self.seeds), -1).clone()

    def gradient(self, weights: Tensor, batch: int | None = None) -> Tensor:
        gradient, losses = self._engine.step(self._wide(weights, batch), *self._examples(batch))
        self.saw(batch, losses)
        return gradient

    def loss(self, weights: Tensor, batch: int | None = None) -> Tensor:
        with torch.no_grad():
            losses = self._engine.loss(self._wide(weights, batch), *self._examples(batch))
        self.saw(batch, losses)
        return losses

    def hvp(self, weights: Tensor, vector: Tensor, batch: int | None = None) -> Tensor:
        wide = self._wide(weights, batch)
        return self._engine.hvp(wide, vector.expand_as(wide), *self._examples(batch))

    def outputs(self, weights: Tensor, inputs: Any) -> tuple[Tensor, ...]:
        with torch.no_grad():
            made = self._engine.outputs(self._wide(weights, None), map_arrays(self.like, inputs))
        return tuple(named_outputs(made).values())

    def like(self, array: Any) -> Tensor:
        return array if isinstance(array, Tensor) else to_array(array)

    def joined(self, head: Tensor, tail: Tensor) -> Tensor:
        return torch.cat((head, tail))

    def _wide(self, weights: Tensor, batch: int | None) -> Tensor:
        """Where all share one row: that row for each."""
        return weights.expand(self.rows(batch), -1)

    def _examples(self, batch: int | None) -> tuple[Any, Any, Tensor]:
        indices, shares = (torch.from_numpy(array) for array in self.batch(batch))
        return take(self._inputs, indices), take(self._targets, indices), shares


@contextmanager
def _quiet_fallback() -> Iterator[None]:
    """An operation that vmap does one client at a time is no news to the user: engines are chosen by their time."""
    says = torch._C._functorch._set_vmap_fallback_warning_enabled
    says(False)
    try:
        yield
    finally:
        says(True)


def _mixes_examples(task: Task, module: torch.nn.Module) -> bool:
    """Whether an example's output depends on the rest of its batch, as with batch norm."""
    inputs = example_inputs(task, module, rows=3)
    moved = map_arrays(lambda array: torch.cat([array[:1], array[:1], array[:1]]), inputs)
    firsts = []
    for each in (inputs, moved):
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            firsts.append({name: out[:1] for name, out in named_outputs(call(module, each)).items()})
    return not same_outputs(*firsts)


def _hvp_of(loss: Any) -> Any:
    def hvp(flat: Tensor, vector: Tensor, inputs: Any, targets: Any, shares: Tensor) -> Tensor:
        slope = grad(loss)
        found: Tensor = jvp(lambda weights: slope(weights, inputs, targets, shares), (flat,), (vector,))[1]
        return found

    return hvp
