"""Every exit, codec and set of tiers, each with its exactly best placement: `search.py`, as a planner."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from edgewise.core.ids import TIERS
from edgewise.models.graph.graph import Graph
from edgewise.models.version import FEDERATED
from edgewise.planning.choose import find_best, make_search
from edgewise.planning.levels import single_node_plans
from edgewise.planning.plan import Plan, Site
from edgewise.planning.planner import Evidence, Planner, Sites
from edgewise.planning.policy import Policy


def chain(
    codecs: Sequence[str] = ("none",),
    solver: str = "min_cut",
    training_domain: str = FEDERATED,
    max_accuracy_loss: float = 0.02,
) -> Planner:
    """Plans along device, edge and cloud, one site each.

    Args:
        codecs: Spec texts tried at each hand-over.
        solver: Name in `PLACEMENT_SOLVERS`.
        training_domain: Of the model.
        max_accuracy_loss: How far exits and codecs may fall below the whole model's own accuracy, 0…1.

    Returns:
        The planner: it yields the best plan first, then the best on each tier alone; nothing if none is allowed.
    """

    def plans(graph: Graph, sites: Sites, policy: Policy, evidence: Evidence) -> Iterator[Plan]:
        tiers = {tier: sites.profiles[Site(tier)] for tier in TIERS if Site(tier) in sites.profiles}
        ways = ((Site(a), Site(b)) for a, b in pairwise(TIERS))
        search = make_search(
            graph=graph,
            profiles=tiers,
            links=[sites.links[way] for way in ways if way in sites.links],
            policy=policy,
            evidence=evidence.exits,
            codecs=codecs,
            training_domain=training_domain,
            sizes=evidence.sizes,
            solver=solver,
            max_accuracy_loss=max_accuracy_loss,
        )
        found = [plan for plan in (find_best(search), *single_node_plans(search)) if plan is not None]
        yield from {plan.digest: plan for plan in found}.values()

    return plans
