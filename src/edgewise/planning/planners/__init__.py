"""Whole planners, one file each; the contract is `planner.py`.

To add one: a function of its settings that returns a `Planner`, in a file of its own, and one line in `PLANNERS`; the
contract suite `tests/contracts/test_planners.py` then tests it. Plug-ins: entry points `edgewise.planners`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from edgewise.core.spec import build
from edgewise.models.graph.graph import Graph
from edgewise.planning.choose import OBJECTIVES, violations
from edgewise.planning.plan import Plan
from edgewise.planning.planner import Evidence, Move, Planner, Sites
from edgewise.planning.planners.pipeline import pipeline
from edgewise.planning.planners.tier_chain import chain
from edgewise.planning.policy import Policy

PLANNERS: dict[str, Callable[..., Planner]] = {"chain": chain, "pipeline": pipeline}


def candidates(
    spec: Any, graph: Graph, sites: Sites, policy: Policy, evidence: Evidence, moves: Sequence[Move] = ()
) -> Iterator[Plan]:
    """The plans of a planner, and what moves make of each.

    Args:
        spec: Name of the planner or a table of its settings; anything `Spec.of` reads.
        graph: What is laid over sites.
        sites: Where it may run.
        policy: Objective and limits.
        evidence: What is known of the model.
        moves: `Plan -> Iterable[Plan]`, each asked for every plan, also for those of the moves before it.

    Yields:
        Plans, with predictions; a limit on a prediction may be broken.

    Raises:
        InputError: If no planner has that name.
    """
    found = build("planners", PLANNERS, spec)(graph, sites, policy, evidence)
    for move in moves:
        found = _moved(found, move)
    yield from found


def _moved(plans: Iterable[Plan], move: Move) -> Iterator[Plan]:
    for plan in plans:
        yield plan
        yield from move(plan)


def best_of(plans: Iterable[Plan], policy: Policy) -> Plan | None:
    """The best plan that keeps a policy's limits.

    Args:
        plans: With predictions.
        policy: Objective and limits.

    Returns:
        The plan; None if none keeps them.
    """
    allowed = [plan for plan in plans if not violations(plan, policy)]
    return min(allowed, key=OBJECTIVES[policy.objective], default=None)


__all__ = ["PLANNERS", "best_of", "candidates", "chain", "pipeline"]
