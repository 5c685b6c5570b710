"""Which examples each local step uses: decided by the seed tree alone, so every engine does the same steps.

`batches` is one client's, `schedule` lays those of a cohort out as rectangles.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.core.errors import DataError
from edgewise.core.seeds import Seeds
from edgewise.training.local.rule import Loop


def orders(num_examples: int, loop: Loop, seeds: Seeds) -> list[NDArray[np.intp]]:
    """In which order each epoch visits the examples: a fresh permutation, or as they are if a step takes all.

    Args:
        num_examples: Examples of the client.
        loop: Says how many epochs.
        seeds: The client's place in the seed tree.

    Returns:
        A permutation per epoch.

    Raises:
        DataError: If there are no examples.
    """
    if num_examples < 1:
        raise DataError("the client holds no examples, so it cannot train. Give it data or leave it out.")
    if loop.batch_size == 0:
        return [np.arange(num_examples) for _ in range(loop.epochs)]
    rng = seeds.at("batches").rng()
    return [rng.permutation(num_examples) for _ in range(loop.epochs)]


def batches(num_examples: int, loop: Loop, seeds: Seeds) -> list[NDArray[np.intp]]:
    """Which examples each local step uses; the last batch of an epoch may be smaller.

    Args:
        num_examples: Examples of the client.
        loop: Epochs, batch size, most steps.
        seeds: The client's place in the seed tree.

    Returns:
        Indices per step.

    Raises:
        DataError: If there are no examples.
    """
    width = loop.batch_size or num_examples
    every = orders(num_examples, loop, seeds)
    return [order[i : i + width] for order in every for i in range(0, num_examples, width)][: loop.max_steps]


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


def schedule(sizes: Sequence[int], loop: Loop, seeds: Sequence[Seeds]) -> Schedule:
    """Lays the batches of a cohort out; the same batches as `batches` gives each client.

    Args:
        sizes: Examples of each client.
        loop: Epochs, batch size, most steps.
        seeds: Each client's place in the seed tree.

    Returns:
        The schedule.

    Raises:
        DataError: If a client has no examples.
    """
    held = np.array(sizes)
    width = loop.batch_size or int(held.max())
    per_epoch = -(-held // width)
    ranks = np.argsort(-per_epoch, kind="stable")
    longest = int(per_epoch.max())
    # Each epoch of a client is one run of `longest` batches here; `_packed` then closes the gaps behind shorter ones.
    indices = np.zeros((len(held), loop.epochs, longest * width), np.intp)
    for row, client in enumerate(ranks):
        for epoch, order in enumerate(orders(sizes[client], loop, seeds[client])):
            indices[row, epoch, : len(order)] = order
    sizes_of = np.clip(held[ranks, None] - np.arange(longest) * width, 0, width)
    filled = np.arange(width) < sizes_of[:, :, None]
    shares = np.where(filled, 1 / np.maximum(sizes_of, 1)[:, :, None], 0).astype(np.float32)
    steps = slice(None, loop.max_steps)
    return Schedule(
        ranks,
        np.minimum(per_epoch[ranks] * loop.epochs, loop.max_steps or sys.maxsize),
        _packed(indices.reshape(len(held), loop.epochs, longest, width), per_epoch[ranks])[:, steps],
        _packed(np.repeat(shares[:, None], loop.epochs, axis=1), per_epoch[ranks])[:, steps],
    )


def _packed(every: NDArray[Any], per_epoch: NDArray[np.intp]) -> NDArray[Any]:
    """[clients, epochs, batches, width] -> [clients, steps, width], a client's own steps first."""
    clients, epochs, longest, width = every.shape
    flat = every.reshape(clients, epochs * longest, width)
    if epochs < 2:
        return flat
    steps = np.arange(epochs * longest)
    epoch, batch = steps // per_epoch[:, None], steps % per_epoch[:, None]
    source = np.minimum(epoch, epochs - 1) * longest + batch
    return np.take_along_axis(flat, source[:, :, None], axis=1)
