"""The contract of a local engine: who turns (received model, work, examples, seeds) into an update, and how.

    received float32[d] ─▶ for each local step: gradient on a batch ─▶ direction ─▶ weights −= η · direction
                           update = weights − received,  weight = number of examples

The work is data and a rule (`LocalWork`); the order of examples comes from the seed tree alone, so every engine
does the same steps on the same batches. The direction is called with flat torch tensors or numpy arrays, one
client (`[d]`) or a cohort (`[clients, d]`), and may use only arithmetic operators. The smallest complete engine
is `sequential.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.core.errors import DataError, InputError
from edgewise.core.layout import Layout, Vector
from edgewise.core.seeds import Seeds
from edgewise.models.task import Examples
from edgewise.training.algorithm import LocalWork

Progress = Callable[[int], None]
"""Called after every step of the engine with a growing count; raising from it stops the work."""


@dataclass(frozen=True, slots=True)
class LocalResult:
    """What local work on one client gave.

    Attributes:
        update: float32[d], local − received; no longer traced as raw data.
        weight: Number of examples; the weight of the update in a mean.
        loss: Mean training loss over all examples seen, before each step.
        num_steps: Local steps done.
        metrics: What else was measured, by name.
    """

    update: Vector
    weight: float
    loss: float
    num_steps: int
    metrics: Mapping[str, float] = field(default_factory=dict)


class LocalEngine(ABC):
    """Does local work for one model. Not safe for use by two threads at once.

    Attributes:
        name: The registry's word.
        layout: How the model's parameters lie in a vector.
    """

    name: str
    layout: Layout

    @abstractmethod
    def train_cohort(
        self,
        received: Vector,
        work: LocalWork,
        examples: Sequence[Examples],
        seeds: Sequence[Seeds],
        *,
        progress: Progress | None = None,
    ) -> list[LocalResult]:
        """Does the work of several clients.

        Args:
            received: float32[d], the same for all, or float32[clients, d].
            work: What each client does.
            examples: Per client; none may be empty.
            seeds: Per client its own place, e.g. `seeds.at("round", r, "client", c, "local")`.
            progress: Liveness; see `Progress`.

        Returns:
            One result per client, in order.

        Raises:
            DataError: If a client has no examples.
            InputError: If `received` is not of this layout.
        """

    def train(
        self,
        received: Vector,
        work: LocalWork,
        examples: Examples,
        seeds: Seeds,
        *,
        progress: Progress | None = None,
    ) -> LocalResult:
        """Does the work of one client: `train_cohort` with one."""
        return self.train_cohort(received, work, [examples], [seeds], progress=progress)[0]

    def rows(self, received: Vector, num_clients: int) -> Vector:
        """`received` as one row per client, without copying.

        Args:
            received: float32[d] or float32[clients, d].
            num_clients: Rows wanted.

        Returns:
            float32[clients, d]; read-only where one vector serves all.

        Raises:
            InputError: If the shape fits neither.
        """
        wanted = (num_clients, self.layout.size)
        if received.shape not in (wanted, wanted[1:]):
            raise InputError(
                f"the received model has shape {received.shape}, this task's model needs {wanted[1:]} "
                f"or {wanted}. Start from a version of the same task."
            )
        return np.broadcast_to(np.asarray(received, np.float32), wanted)


def orders(num_examples: int, work: LocalWork, seeds: Seeds) -> list[NDArray[np.intp]]:
    """In which order each epoch visits the examples: every epoch a fresh permutation.

    Args:
        num_examples: Examples of the client.
        work: Says how many epochs.
        seeds: The client's place in the seed tree.

    Returns:
        A permutation per epoch.

    Raises:
        DataError: If there are no examples.
    """
    if num_examples < 1:
        raise DataError("the client holds no examples, so it cannot train. Give it data or leave it out.")
    rng = seeds.at("batches").rng()
    return [rng.permutation(num_examples) for _ in range(work.epochs)]


def batches(num_examples: int, work: LocalWork, seeds: Seeds) -> list[NDArray[np.intp]]:
    """Which examples each local step uses; the last batch of an epoch may be smaller.

    Args:
        num_examples: Examples of the client.
        work: Epochs and batch size.
        seeds: The client's place in the seed tree.

    Returns:
        Indices per step.

    Raises:
        DataError: If there are no examples.
    """
    width = work.batch_size
    every = orders(num_examples, work, seeds)
    return [order[start : start + width] for order in every for start in range(0, num_examples, width)]


@dataclass(frozen=True, slots=True)
class Schedule:
    """Batches of a cohort as rectangles, clients with most steps first.

    Attributes:
        order: Position in the cohort of each row.
        num_steps: Steps of each row, descending, so the active rows of a step are a prefix.
        indices: int[clients, steps, batch]; padding repeats the client's example 0. Steps beyond a client's own are
            not meant to be read.
        shares: float32[clients, steps, batch]; 1 / size of the batch, 0 for padding.
    """

    order: NDArray[np.intp]
    num_steps: NDArray[np.intp]
    indices: NDArray[np.intp]
    shares: NDArray[np.float32]

    def active(self, step: int) -> int:
        """How many rows still work in this step."""
        return int(np.searchsorted(-self.num_steps, -step, side="left"))


def schedule(sizes: Sequence[int], work: LocalWork, seeds: Sequence[Seeds]) -> Schedule:
    """Lays the batches of a cohort out; the same batches as `batches` gives each client.

    Args:
        sizes: Examples of each client.
        work: Epochs and batch size.
        seeds: Each client's place in the seed tree.

    Returns:
        The schedule.

    Raises:
        DataError: If a client has no examples.
    """
    width = work.batch_size
    held = np.array(sizes)
    per_epoch = -(-held // width)
    ranks = np.argsort(-per_epoch, kind="stable")
    longest = int(per_epoch.max())
    # Each epoch of a client is one run of `longest` batches here; `_packed` then closes the gaps behind shorter ones.
    indices = np.zeros((len(held), work.epochs, longest * width), np.intp)
    for row, client in enumerate(ranks):
        for epoch, order in enumerate(orders(sizes[client], work, seeds[client])):
            indices[row, epoch, : len(order)] = order
    sizes_of = np.clip(held[ranks, None] - np.arange(longest) * width, 0, width)
    filled = np.arange(width) < sizes_of[:, :, None]
    shares = np.where(filled, 1 / np.maximum(sizes_of, 1)[:, :, None], 0).astype(np.float32)
    return Schedule(
        ranks,
        per_epoch[ranks] * work.epochs,
        _packed(indices.reshape(len(held), work.epochs, longest, width), per_epoch[ranks]),
        _packed(np.repeat(shares[:, None], work.epochs, axis=1), per_epoch[ranks]),
    )


def _packed(every: NDArray[Any], per_epoch: NDArray[np.intp]) -> NDArray[Any]:
    """[clients, epochs, batches, width] -> [clients, steps, width], a client's own steps first."""
    clients, epochs, longest, width = every.shape
    flat = every.reshape(clients, epochs * longest, width)
    if epochs == 1:
        return flat
    steps = np.arange(epochs * longest)
    epoch, batch = steps // per_epoch[:, None], steps % per_epoch[:, None]
    source = np.minimum(epoch, epochs - 1) * longest + batch
    return np.take_along_axis(flat, source[:, :, None], axis=1)
