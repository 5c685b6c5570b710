"""Engines that work a whole cohort at once: in slices, so that the stack of models keeps to a bound."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np

from edgewise.core.layout import Vector
from edgewise.core.provenance import derived
from edgewise.core.seeds import Seeds
from edgewise.models.task import Examples
from edgewise.training.algorithm import LocalWork
from edgewise.training.local.engines.engine import LocalEngine, LocalResult, Progress, Schedule

STACK_BYTES = 8 << 20
"""Bound of one stack of models; at least one model is worked at once."""


class SlicedEngine(LocalEngine):
    """Does the work of a cohort slice by slice."""

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
        width = max(1, STACK_BYTES // (4 * self.layout.size))
        results: list[LocalResult] = []
        for start in range(0, len(examples), width):
            part = slice(start, start + width)
            results += self.work_slice(rows[part], work, examples[part], seeds[part], _continued(progress, results))
        return results

    @abstractmethod
    def work_slice(
        self,
        received: Vector,
        work: LocalWork,
        examples: Sequence[Examples],
        seeds: Sequence[Seeds],
        progress: Progress | None,
    ) -> list[LocalResult]:
        """Does the work of the clients of one slice, all at once.

        Args:
            received: float32[clients, d].
            work: What each client does.
            examples: Per client.
            seeds: Per client.
            progress: Called with the steps done in this slice.

        Returns:
            One result per client, in order.
        """


def to_results(plan: Schedule, updates: Vector, losses: Vector, sizes: Sequence[int]) -> list[LocalResult]:
    """Results in the cohort's own order.

    Args:
        plan: The schedule the rows follow.
        updates: float32[clients, d], rows as in the schedule; each is copied, so the stack may be used again.
        losses: float32[clients, steps], mean loss of each batch.
        sizes: Examples of each client, in the cohort's order.

    Returns:
        One per client, in the cohort's order.
    """
    counts = np.where(np.arange(losses.shape[1]) < plan.num_steps[:, None], (plan.shares > 0).sum(axis=2), 0)
    means = (losses * counts).sum(axis=1) / counts.sum(axis=1)
    made = {
        int(client): LocalResult(
            derived(updates[row]), float(sizes[client]), float(means[row]), int(plan.num_steps[row])
        )
        for row, client in enumerate(plan.order)
    }
    return [made[client] for client in range(len(sizes))]


def _continued(progress: Progress | None, before: Sequence[LocalResult]) -> Progress | None:
    """A callback for the next slice: it goes on counting where the slices before ended."""
    done = sum(result.num_steps for result in before)
    return None if progress is None else lambda steps: progress(done + steps)
