"""The contract of a placement solver: a placement problem as plain numbers, and the cost it is about.

Tiers are 0 … K−1 from the device outward. Data only moves outward. The cost of an assignment ℓ is

    Σ_v reach[v]·seconds[v][ℓ(v)]                               every group runs where it is placed
  + Σ_t Σ_b crossing_s[t][b]·max{reach[u]: u reads t, ℓ(u) > b}  if t is made at or before tier b: each tensor once
  + Σ_b fixed_s[b]·max{reach[v]: ℓ(v) > b}                       a boundary costs its round trip if anything is beyond
  + local_s                                                      if anything runs on tier 0

`reach[v]` is the probability that a request has not left at an exit before v. Infinity forbids. Seconds may stand
for joules or bytes as well: the solver minimises whatever is put in.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


class Flow(msgspec.Struct, frozen=True):
    """A tensor that may cross.

    Attributes:
        producer: Index of the group that makes it; −1 for the model's input, which starts on tier 0.
        consumers: Indices of the groups that read it.
        crossing_s: Cost of crossing each boundary; infinity where it may not cross.
    """

    producer: int
    consumers: tuple[int, ...]
    crossing_s: tuple[float, ...]


class Problem(msgspec.Struct, frozen=True):
    """What a placement solver sees.

    Attributes:
        seconds: Per group, cost on each tier; infinity where it may not run.
        reach: Per group, probability that it runs (ρ).
        flows: Tensors.
        fixed_s: Per boundary, cost of using it.
        local_s: Cost of running anything on tier 0.
        order: Pairs (u, v) with ℓ(u) ≤ ℓ(v) beside the flows: an exit decides before what follows it runs.
        pinned: Groups with a fixed tier.
    """

    seconds: tuple[tuple[float, ...], ...]
    reach: tuple[float, ...]
    flows: tuple[Flow, ...]
    fixed_s: tuple[float, ...]
    local_s: float = 0.0
    order: tuple[tuple[int, int], ...] = ()
    pinned: tuple[tuple[int, int], ...] = ()

    @property
    def num_tiers(self) -> int:
        """K."""
        return len(self.fixed_s) + 1

    @property
    def num_groups(self) -> int:
        """n."""
        return len(self.seconds)


class Solution(msgspec.Struct, frozen=True):
    """An assignment.

    Attributes:
        tiers: Tier of each group; () if nothing is feasible.
        cost: Its cost; infinity if nothing is feasible.
    """

    tiers: tuple[int, ...]
    cost: float

    @property
    def is_feasible(self) -> bool:
        """Whether there is an assignment at all."""
        return bool(np.isfinite(self.cost))


PlacementSolver = Callable[[Problem], Solution]


def costs(problem: Problem, assignments: NDArray[np.int8]) -> FloatArray:
    """Evaluates assignments; the definition that every solver is held to.

    Args:
        problem: The problem.
        assignments: int8[rows, n], a tier per group.

    Returns:
        float64[rows]; infinity for what is not allowed.
    """
    rows, n = assignments.shape
    total = np.zeros(rows)
    seconds, reach = np.array(problem.seconds, float), np.array(problem.reach, float)
    for v in range(n):
        total += _times(reach[v], seconds[v])[assignments[:, v]]
    for flow in problem.flows:
        made = assignments[:, flow.producer] if flow.producer >= 0 else np.zeros(rows, np.int8)
        for u in flow.consumers:
            total[assignments[:, u] < made] = np.inf
        for b, crossing in enumerate(flow.crossing_s):
            beyond = [np.where((assignments[:, u] > b) & (made <= b), reach[u], -1.0) for u in flow.consumers]
            if beyond:
                total += _charged(crossing, np.max(beyond, axis=0))
    for b, fixed in enumerate(problem.fixed_s):
        total += _charged(fixed, np.where(assignments > b, reach, -1.0).max(axis=1, initial=-1.0))
    total += np.where((assignments == 0).any(axis=1), problem.local_s, 0.0)
    for u, v in problem.order:
        total[assignments[:, u] > assignments[:, v]] = np.inf
    for v, tier in problem.pinned:
        total[assignments[:, v] != tier] = np.inf
    return total


def cost_of(problem: Problem, tiers: tuple[int, ...]) -> float:
    """Cost of one assignment.

    Args:
        problem: The problem.
        tiers: A tier per group.

    Returns:
        The cost; infinity if it is not allowed.
    """
    return float(costs(problem, np.array([tiers], np.int8).reshape(1, problem.num_groups))[0])


def _times(weight: float, values: FloatArray) -> FloatArray:
    """weight · values, where 0 · ∞ stays forbidden."""
    return np.where(np.isfinite(values), weight * np.where(np.isfinite(values), values, 0.0), np.inf)


def _charged(price: float, weight: FloatArray) -> FloatArray:
    """price · weight where something is beyond (weight ≥ 0), else nothing."""
    if np.isinf(price):
        return np.where(weight >= 0, np.inf, 0.0)
    return price * np.maximum(weight, 0.0)
