"""Placement solvers: a `Problem` in numbers in, the cheapest assignment of groups to tiers out. One file each.

To add one: a function `Problem -> Solution` in a file of its own, one line in `PLACEMENT_SOLVERS`; the contract suite
`tests/contracts/test_planners.py` then tests it. `exhaustive` is the oracle. Whole planners are in `planners/`.
"""

from edgewise.planning.placement.exhaustive import exhaustive
from edgewise.planning.placement.min_cut import min_cut
from edgewise.planning.placement.problem import PlacementSolver

PLACEMENT_SOLVERS: dict[str, PlacementSolver] = {"min_cut": min_cut, "exhaustive": exhaustive}

__all__ = ["PLACEMENT_SOLVERS", "exhaustive", "min_cut"]
