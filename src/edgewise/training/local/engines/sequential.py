"""One client after the other, any module: a flat buffer, `autograd.grad`, no optimizer object. Answers every question."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgewise.codecs.bundle import Bundle
from edgewise.core.errors import DataError, TaskError
from edgewise.core.provenance import derived
from edgewise.core.seeds import Seeds
from edgewise.models.examples import count, map_arrays, take
from edgewise.models.flat import buffers_of, layout_of, parameters_of
from edgewise.models.forward import call, like_tuple, named_outputs
from edgewise.models.task import Examples, Task
from edgewise.training.local.batches import batches
from edgewise.training.local.engines.engine import LocalEngine, LocalResult, Progress, bundle_of
from edgewise.training.local.local_loop import kept_of, run_rules
from edgewise.training.local.rule import ALONE, GRADIENT, HVP, LOSS, OUTPUTS, PRECISIONS, Array, Arrays, LocalWork

_MEAN = "running_mean"
PIECE = 4096
"""Examples that a question about all of a client's is put to at a time."""


class SequentialEngine(LocalEngine):
    """Serves every module; the one to pin where runs must be byte-equal.

    Args:
        task: Gives model and loss.
    """

    name = "sequential"
    offers = frozenset((ALONE, GRADIENT, LOSS, HVP, OUTPUTS, *PRECISIONS))

    def __init__(self, task: Task) -> None:
        module = task.model()
        self.layout = layout_of(module)
        self._model = _FlatModel(task, module.train())

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
        self.check(work, received)
        shared = to_arrays(received) if isinstance(received, Mapping) else None
        done, results = 0, []

        def tick() -> None:
            nonlocal done
            done += 1
            if progress is not None:
                progress(done)

        self._model.train()  # a task may give the same module to whoever evaluates it
        with one_thread(), torch.random.fork_rng(devices=[]):
            for client, (held, stays, place) in enumerate(zip(examples, kept, seeds, strict=True)):
                torch.manual_seed(place.at("torch").integer() % 2**63)
                oracle = _ClientOracle(
                    self._model, held, batches(len(held), work.loop, place), place, work.loop.precision
                )
                arrays = to_arrays(bundle_of(received, client)) if shared is None else shared
                sent, keeps, losses = run_rules(work, oracle, arrays, to_arrays(kept_of(stays, work)), tick)
                results.append(LocalResult(sent[0], keeps[0], losses[0], oracle.longest, len(held)))
        return results


class _FlatModel:
    """A module whose tensors are views of one buffer: loading and reading a model is one copy."""

    def __init__(self, task: Task, module: torch.nn.Module) -> None:
        self.task, self.module, self.layout = task, module, layout_of(module)
        self.weights = torch.zeros(self.layout.size)
        every = list(parameters_of(module).values())
        self.parameters = [parameter for parameter in every if parameter.requires_grad]
        num_trained = self.layout.num_trained
        self.buffers = slice(num_trained, None) if num_trained < self.layout.size else None
        floating = buffers_of(module)
        # What a forward pass changes beside the vector, as `num_batches_tracked`: every client starts it anew.
        inner = [buffer for name, buffer in module.named_buffers() if name not in floating]
        self._counters = [(buffer, buffer.clone()) for buffer in inner]
        views = [self.weights[slot.offset : slot.offset + slot.size].view(slot.shape) for slot in self.layout.slots]
        for tensor, view in zip([*every, *floating.values()], views, strict=True):
            tensor.data = view
        self.views = views[: len(self.parameters)]
        self._held: list[torch.nn.Module] = []

    def train(self) -> None:
        """The module as it trains, but for what is held."""
        self.module.train()
        for norm in self._held:
            norm.eval()

    def hold(self, names: Collection[str]) -> None:
        """Layers with these running statistics use them until `reset`."""
        self._held += [m for name, m in self.module.named_modules() if f"{name}.{_MEAN}".lstrip(".") in names]
        self.train()

    def reset(self) -> None:
        """Sets what is beside the vector to its first values, and holds nothing any more."""
        if self._held:
            self._held = []
            self.train()
        for buffer, first in self._counters:
            buffer.copy_(first)

    def flat(self, gradients: Sequence[Tensor]) -> Tensor:
        """Gradients of the trained parameters as one vector, 0 for the rest."""
        parts = [gradient.reshape(-1) for gradient in gradients]
        if self.buffers is not None:
            parts.append(torch.zeros(self.layout.size - self.layout.num_trained))
        return torch.cat(parts)


class _ClientOracle:
    """Answers for one client (`local_loop.Driven`)."""

    def __init__(self, model: _FlatModel, held: Examples, parts: list[Any], seeds: Seeds, precision: str) -> None:
        self._model, self._parts, self._seeds = model, parts, seeds
        self._is_mixed = precision != PRECISIONS[0]
        self._inputs, self._targets = to_tensors(held)
        self.longest = len(parts)
        self.num_steps = torch.tensor([float(len(parts))])
        self.buffers = model.buffers
        self.trained: Any = 1.0
        if model.buffers is not None:
            self.trained = torch.ones(model.layout.size)
            self.trained[model.buffers] = 0
        model.reset()
        self._total, self._seen = torch.zeros(()), 0

    def begin(self, weights: Tensor) -> Tensor:
        """As in `Driven`: the buffer that the module's tensors are views of."""
        self._model.weights.copy_(weights)
        if self.longest:
            self._total, self._seen = torch.zeros(()), 0
        return self._model.weights

    def active(self, step: int) -> None:
        """As in `Driven`."""

    def descend(self, weights: Tensor, step: int, rate: float) -> None:
        """As in `Driven`, without joining the gradients."""
        assert weights is self._model.weights
        torch._foreach_add_(self._model.views, list(self._slopes(self._loss(step))), alpha=-rate)

    def gradient(self, weights: Tensor, batch: int | None = None) -> Tensor:
        """As in `Oracle`."""
        with self._at(weights, batch):
            return self._mean(batch, lambda loss: self._model.flat(self._slopes(loss)))

    def loss(self, weights: Tensor, batch: int | None = None) -> Tensor:
        """As in `Oracle`."""
        with self._at(weights, batch), torch.no_grad():
            return self._mean(batch, lambda loss: loss.detach())

    def hvp(self, weights: Tensor, vector: Tensor, batch: int | None = None) -> Tensor:
        """As in `Oracle`: the gradient of ⟨gradient, vector⟩."""

        def product(loss: Tensor) -> Tensor:
            slopes = self._slopes(loss, create_graph=True)
            along = (torch.cat([s.reshape(-1) for s in slopes]) * vector[: self._model.layout.num_trained]).sum()
            # A loss that is linear in the weights has no second derivative, and no graph to it.
            return self._model.flat(
                self._slopes(along) if along.requires_grad else [torch.zeros_like(s) for s in slopes]
            )

        with self._at(weights, batch):
            return self._mean(batch, product)

    def outputs(self, weights: Tensor, inputs: Any) -> tuple[Tensor, ...]:
        """As in `Oracle`."""
        module = self._model.module
        with self._at(weights, None), torch.no_grad():
            try:
                made = call(module.eval(), map_arrays(self.like, inputs))
            finally:
                self._model.train()
        return tuple(named_outputs(made).values())

    def entries(self, patterns: Sequence[str]) -> Tensor:
        """As in `Oracle`."""
        return torch.from_numpy(self._model.layout.entries(patterns))

    def hold(self, patterns: Sequence[str]) -> Tensor:
        """As in `Oracle`."""
        layout = self._model.layout
        held = layout.entries(patterns)
        self._model.hold({slot.name for slot in layout.slots if slot.size and held[slot.offset]})
        return torch.from_numpy(held)

    def rng(self, *names: str | int) -> np.random.Generator:
        """As in `Oracle`."""
        return self._seeds.at(*names).rng()

    def like(self, array: Any) -> Tensor:
        """As in `Oracle`."""
        return array if isinstance(array, Tensor) else to_array(np.asarray(array))

    def joined(self, head: Tensor, tail: Tensor) -> Tensor:
        """As in `Driven`."""
        return torch.cat((head, tail))

    def take(self, arrays: Arrays) -> list[dict[str, Any]]:
        """As in `Driven`."""
        return [{name: derived(array.detach().numpy()) for name, array in arrays.items()}]

    def losses(self) -> list[float]:
        """As in `Driven`."""
        return [float(self._total) / self._seen if self._seen else float("nan")]

    def _mean(self, batch: int | None, ask: Callable[[Tensor], Tensor]) -> Tensor:
        """What is asked of a loss; of all examples in pieces, for a graph of very many takes their memory."""
        num_examples = count(self._targets)
        if batch is not None or num_examples <= PIECE or self.buffers is not None:
            return ask(self._loss(batch))
        pieces = [slice(start, min(start + PIECE, num_examples)) for start in range(0, num_examples, PIECE)]
        shares = [(piece.stop - piece.start) / num_examples for piece in pieces]
        first, *rest = (ask(self._loss(None, p)) * share for p, share in zip(pieces, shares, strict=True))
        return sum(rest, start=first)

    def _loss(self, batch: int | None, piece: slice = slice(None)) -> Tensor:
        chosen = piece if batch is None else torch.from_numpy(self._parts[batch])
        inputs, targets = take(self._inputs, chosen), take(self._targets, chosen)
        num = count(targets)
        try:
            with torch.autocast("cpu", torch.bfloat16, enabled=self._is_mixed):
                outputs = call(self._model.module, inputs)
        except ValueError as error:
            if num > 1 or "more than 1 value per channel" not in str(error):
                raise
            raise DataError(
                f"a batch of a single example has no variance for batch norm: {error}. Choose a batch_size that leaves no "
                f"single example of this client's {count(self._targets)}, batch_size=0 for all at once, batch_norm = 'frozen', or group norm."
            ) from error
        loss = self._model.task.loss(_widened(outputs) if self._is_mixed else outputs, targets)
        if batch is not None or not self.longest:
            self._total += loss.detach() * num
            self._seen += num
        return loss

    def _slopes(self, loss: Tensor, *, create_graph: bool = False) -> Sequence[Tensor]:
        if not loss.requires_grad:
            raise TaskError(
                "the loss does not depend on what is trained: outputs are detached, rounded or left out of it. Write it with "
                "tensor operations on the outputs, or train by zeroth_order, which needs no gradient."
            )
        made: Sequence[Tensor] = torch.autograd.grad(
            loss, self._model.parameters, create_graph=create_graph, allow_unused=True, materialize_grads=True
        )
        return [slope.to_dense() if slope.is_sparse else slope for slope in made]

    @contextmanager
    def _at(self, weights: Tensor, batch: int | None) -> Iterator[None]:
        """The module at these weights; afterwards it is where it was, but for buffers that a step moved on."""
        own, buffers = self._model.weights, self.buffers
        if weights is own and (batch is not None or buffers is None):
            yield
            return
        before = own.clone()
        own.copy_(weights)
        yield
        if batch is not None and buffers is not None:
            weights[buffers] = own[buffers]
        own.copy_(before)


def _widened(outputs: Any) -> Any:
    """What a module gave, in float32 again: losses are written for it."""
    if isinstance(outputs, Mapping):
        return {name: _widened(value) for name, value in outputs.items()}
    if isinstance(outputs, (tuple, list)):
        return like_tuple(outputs, [_widened(value) for value in outputs])
    return outputs.float() if isinstance(outputs, Tensor) and outputs.is_floating_point() else outputs


def to_array(array: Any) -> Tensor:
    """A numpy array as a tensor of its own memory, or sharing it where it may be written.

    Args:
        array: Any.

    Returns:
        The tensor.
    """
    return torch.from_numpy(np.require(np.asarray(array).view(np.ndarray), requirements=["C", "W"]))


def to_arrays(bundle: Bundle) -> dict[str, Array]:
    """Sections as tensors.

    Args:
        bundle: Numpy arrays by section.

    Returns:
        By section.
    """
    return {name: to_array(array) for name, array in bundle.items()}


def to_tensors(examples: Examples) -> tuple[Any, Any]:
    """The arrays of examples as tensors that share their memory.

    Args:
        examples: Any.

    Returns:
        Inputs and targets: a tensor each, or a dict of tensors.
    """
    return map_arrays(to_array, examples.inputs), map_arrays(to_array, examples.targets)


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
