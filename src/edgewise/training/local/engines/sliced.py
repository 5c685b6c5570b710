"""Engines that work a whole cohort at once: in slices, so that the stack of models keeps to a bound."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.codecs.bundle import Bundle
from edgewise.core.layout import Layout
from edgewise.core.provenance import derived
from edgewise.core.seeds import Seeds
from edgewise.models.task import Examples
from edgewise.training.local.batches import Schedule, schedule
from edgewise.training.local.engines.engine import CohortRng, LocalEngine, LocalResult, Progress, bundle_of
from edgewise.training.local.local_loop import Driven, descend, kept_of, run_rules
from edgewise.training.local.rule import Array, Arrays, LocalWork, Loop

STACK_BYTES = 8 << 20
"""Bound of one stack of models; at least one model is worked at once."""


class SlicedEngine(LocalEngine):
    """Does the work of a cohort slice by slice; clients that hold the same kinds of sections share a slice."""

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
        stays = [kept_of(bundle, work) for bundle in kept]
        done, results = 0, dict[int, LocalResult]()

        def tick() -> None:
            nonlocal done
            done += 1
            if progress is not None:
                progress(done)

        for part in self._slices(received, stays):
            sizes, places = [len(examples[c]) for c in part], [seeds[c] for c in part]
            plan = schedule(sizes, work.loop, places)
            order = [part[row] for row in plan.order]
            oracle = self.oracle(plan, [examples[c] for c in order], [seeds[c] for c in order], places[0])
            mine: Bundle | list[Bundle]
            mine = received if isinstance(received, Mapping) else [bundle_of(received, c) for c in order]
            sent, keeps, losses = run_rules(
                work, oracle, _rows(oracle, mine), _rows(oracle, [stays[c] for c in order]), tick
            )
            for row, (place, c) in enumerate(zip(plan.order, order, strict=True)):
                results[c] = LocalResult(sent[row], keeps[row], losses[row], int(plan.num_steps[row]), sizes[place])
        return [results[client] for client in range(len(examples))]

    @abstractmethod
    def oracle(
        self, plan: Schedule, examples: Sequence[Examples], seeds: Sequence[Seeds], first: Seeds
    ) -> CohortOracle:
        """Who answers for the clients of one slice, all at once.

        Args:
            plan: Their batches; its rows are the clients.
            examples: Of each row.
            seeds: Of each row.
            first: Of the first client of the slice, in the cohort's order.

        Returns:
            The oracle.
        """

    def _slices(self, received: Bundle | Sequence[Bundle], kept: Sequence[Bundle]) -> Iterator[list[int]]:
        width = max(1, STACK_BYTES // (4 * self.layout.size))
        alike: dict[Any, list[int]] = {}
        for client, bundle in enumerate(kept):
            own = () if isinstance(received, Mapping) else _kind(received[client])
            alike.setdefault((own, _kind(bundle)), []).append(client)
        for clients in alike.values():
            yield from (clients[start : start + width] for start in range(0, len(clients), width))


class CohortOracle(Driven):
    """What the oracles of a slice share. Rows are clients, those with most steps first."""

    buffers = None
    trained = 1.0

    def __init__(self, layout: Layout, plan: Schedule, sizes: Sequence[int], seeds: Sequence[Seeds]) -> None:
        self.layout, self.plan, self.seeds = layout, plan, seeds
        self.longest = plan.indices.shape[1]
        # Of each step: how many rows still work, asked for several times a step.
        self._active = [plan.active(step) for step in range(self.longest)]
        self.num_steps = self.like(plan.num_steps.astype(np.float32)[:, None])
        self.offsets = np.cumsum([0, *sizes[:-1]])[:, None, None]
        self.indices = plan.indices + self.offsets
        self._seen = np.zeros(plan.indices.shape[:2], np.float32)
        self._of_all = np.full(len(sizes), np.nan)
        self._whole: tuple[NDArray[np.intp], NDArray[np.float32]] | None = None
        self._sizes = sizes

    def active(self, step: int) -> int | None:
        """As in `Driven`."""
        active = self._active[step]
        return None if active == len(self.seeds) else active

    def descend(self, weights: Array, step: int, rate: float) -> None:
        """As in `Driven`."""
        gradient = self.gradient(weights, step)
        descend(weights, gradient, rate, scratch=gradient)

    def entries(self, patterns: Sequence[str]) -> Array:
        """As in `Oracle`."""
        return self.like(self.layout.entries(patterns))

    def hold(self, patterns: Sequence[str]) -> Array:
        """As in `Oracle`; what these engines take has no running statistics."""
        return self.entries(patterns)

    def rng(self, *names: str | int) -> CohortRng:
        """As in `Oracle`."""
        return CohortRng([place.at(*names).rng() for place in self.seeds])

    def rows(self, batch: int | None) -> int:
        """How many clients a question is for."""
        return len(self.seeds) if batch is None else self._active[batch]

    def batch(self, batch: int | None) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        """Examples of a step, or all.

        Args:
            batch: The step; None for all examples.

        Returns:
            Indices into the slice's examples and the share of each in its mean, [rows, width].
        """
        if batch is not None:
            rows = self._active[batch]
            return self.indices[:rows, batch], self.plan.shares[:rows, batch]
        if self._whole is None:
            plan = schedule(self._sizes, Loop(1, 0), self.seeds)
            back = np.argsort(plan.order)
            self._whole = (plan.indices[back] + self.offsets)[:, 0], plan.shares[back, 0]
        return self._whole

    def saw(self, batch: int | None, losses: Any) -> None:
        """Notes the loss of a question; of all examples where no step is taken."""
        if batch is not None:
            self._seen[: len(losses), batch] = losses
        elif not self.longest:
            self._of_all = np.asarray(losses)

    def losses(self) -> list[float]:
        """As in `Driven`."""
        if not self.longest:
            return [float(loss) for loss in self._of_all]
        steps = np.arange(self.longest) < self.plan.num_steps[:, None]
        counts = np.where(steps, (self.plan.shares > 0).sum(axis=2), 0)
        return [float(mean) for mean in (self._seen * counts).sum(axis=1) / counts.sum(axis=1)]

    def take(self, arrays: Arrays) -> list[dict[str, Any]]:
        """As in `Driven`."""
        found = {name: np.asarray(array) for name, array in arrays.items()}
        return [{n: derived(a[row if len(a) > 1 else 0]) for n, a in found.items()} for row in range(len(self._sizes))]


def _kind(bundle: Bundle) -> tuple[Any, ...]:
    return tuple((name, array.shape, array.dtype) for name, array in bundle.items())


def _rows(oracle: CohortOracle, bundles: Bundle | Sequence[Bundle]) -> dict[str, Array]:
    """Sections of a slice with a leading axis; what all share is one row."""
    if isinstance(bundles, Mapping):
        return {name: oracle.like(np.asarray(array)[None]) for name, array in bundles.items()}
    rows = {}
    for name, first in bundles[0].items():
        shared = all(bundle[name] is first for bundle in bundles)
        rows[name] = oracle.like(np.asarray(first)[None] if shared else np.stack([b[name] for b in bundles]))
    return rows
