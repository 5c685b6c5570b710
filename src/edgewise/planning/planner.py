"""`Planner`: the contract of what makes plans. Given a graph, sites, a policy and evidence, it yields plans with predictions.

    for plan in candidates("chain", graph, sites, policy, evidence, moves=[filters(rows, graph)]): ...
    best = best_of(plans, policy)                          # `planners/`, which has a file per planner

A planner owns one way to lay a graph over sites. What can be done to any plan (a filter in front, state that stays) is
a move, `Plan -> Iterable[Plan]`, in `moves/`: so the ways do not multiply.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from edgewise.core.ids import TIERS, Tier
from edgewise.models.graph.graph import Graph
from edgewise.models.version import ExitEvidence
from edgewise.planning.plan import Plan, Site
from edgewise.planning.policy import Policy
from edgewise.planning.profile import LinkState, Profile


@dataclass(frozen=True, slots=True)
class Sites:
    """Where stages may run.

    Attributes:
        profiles: What the graph costs at each site.
        links: Between pairs of sites, from the device outward.
    """

    profiles: Mapping[Site, Profile]
    links: Mapping[tuple[Site, Site], LinkState] = field(default_factory=dict)

    @staticmethod
    def chain(profiles: Mapping[Tier, Profile], links: Iterable[LinkState]) -> Sites:
        """One site on each tier: the usual chain.

        Args:
            profiles: By tier.
            links: Device–edge, edge–cloud.

        Returns:
            The sites.
        """
        ways = {(Site(a), Site(b)): link for (a, b), link in zip(pairwise(TIERS), links, strict=False)}
        return Sites({Site(tier): profile for tier, profile in profiles.items()}, ways)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of a model beside its graph.

    Attributes:
        exits: Accuracy and shares of its exits, as `measure_exits` makes them.
        sizes: Measured coded bytes by (codec, tensor).
    """

    exits: tuple[ExitEvidence, ...] = ()
    sizes: Mapping[tuple[str, str], int] = field(default_factory=dict)


Planner = Callable[[Graph, Sites, Policy, Evidence], Iterable[Plan]]
Move = Callable[[Plan], Iterable[Plan]]
