"""Tries every assignment: the oracle that the other solvers are checked against."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgewise.core.errors import InputError
from edgewise.planning.placement.problem import Problem, Solution, costs

_MAX_ASSIGNMENTS = 1 << 22


def exhaustive(problem: Problem) -> Solution:
    """Returns the best of all Kⁿ assignments.

    Costs O(Kⁿ) time and memory: for tests and for graphs of a dozen groups.

    Args:
        problem: At most 2²² assignments.

    Returns:
        The best; the first in counting order among equals.

    Raises:
        InputError: If the problem is too large to try everything.
    """
    number = problem.num_tiers**problem.num_groups
    if number > _MAX_ASSIGNMENTS:
        raise InputError(
            f"{problem.num_groups} groups on {problem.num_tiers} tiers have {number:,} assignments, exhaustive tries "
            f"up to {_MAX_ASSIGNMENTS:,}. Use the solver 'min_cut', which is exact too."
        )
    assignments = all_assignments(problem.num_groups, problem.num_tiers)
    found = costs(problem, assignments)
    best = int(np.argmin(found))
    if not np.isfinite(found[best]):
        return Solution((), float("inf"))
    return Solution(tuple(int(t) for t in assignments[best]), float(found[best]))


def all_assignments(num_groups: int, num_tiers: int) -> NDArray[np.int8]:
    """Every assignment, in counting order.

    Args:
        num_groups: n.
        num_tiers: K.

    Returns:
        int8[Kⁿ, n].
    """
    numbers = np.arange(num_tiers**num_groups)[:, None]
    return (numbers // num_tiers ** np.arange(num_groups)[None, ::-1] % num_tiers).astype(np.int8)
