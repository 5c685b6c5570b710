"""How far raw data may travel by the word of the nodes that hold it: plans keep to it before they are made, and say whose it is.

A policy says what an operator wants of plans; a grant (`--raw-may-reach`) says what a node lets happen to its own data,
whatever it is asked. Along a plan beyond its grant a node would answer every request by itself, so none is made or deployed;
where a grant has become narrower since, `edgewise nodes` says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from edgewise.core.ids import NodeId, Tier
from edgewise.fleet.messages import NodeInfo
from edgewise.planning.plan import Handover, Plan
from edgewise.planning.policy import Policy


def granted(policy: Policy, infos: Iterable[NodeInfo]) -> tuple[Policy, str]:
    """A policy under the grants of the devices that will answer along its plans.

    Args:
        policy: What an operator asks for.
        infos: Nodes of the fleet; only devices hold inputs of requests.

    Returns:
        The policy with the nearer of both bounds, and a sentence that says whose grant it is; "" where it changes nothing.
    """
    nearest: dict[Tier, list[NodeId]] = {}
    for info in infos:
        if info.tier is Tier.DEVICE:
            nearest.setdefault(info.raw_may_reach, []).append(info.node)
    bound = min(nearest, key=lambda tier: tier.rank, default=Tier.CLOUD)
    if bound.rank >= policy.raw_may_reach.rank:
        return policy, ""
    names = nearest[bound]
    who = ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    grants = "grants" if len(names) == 1 else "grant"
    sentence = (
        f"raw inputs may reach {bound}, not {policy.raw_may_reach}: {who} {grants} no more. "
        "For plans that send them further start devices with --raw-may-reach."
    )
    return msgspec.structs.replace(policy, raw_may_reach=bound), sentence


def refusal_of(plans: Sequence[Plan], tier: Tier, grants: Mapping[NodeId, Tier]) -> str:
    """Why nodes of a tier will not send what plans ask of them; "" if they will.

    Args:
        plans: The plans.
        tier: Where the nodes stand.
        grants: What each of them grants.

    Returns:
        The sentence, with its cure.
    """
    for plan in plans:
        for handover in plan.handovers:
            if not handover.carries_raw or not _leaves(plan, handover, tier):
                continue
            target = plan.site_of(handover.target).tier
            refusing = [n for n, grant in grants.items() if grant is Tier.DEVICE or target.rank > grant.rank]
            if refusing:
                node = min(refusing)
                return (
                    f"plan {plan.name!r} sends the raw input ({', '.join(handover.tensors)}) to {target}, and {node} lets "
                    f"it reach {grants[node]} only. Plan again, which keeps to that, or start {node} with "
                    f"--raw-may-reach {target}."
                )
    return ""


def _leaves(plan: Plan, handover: Handover, tier: Tier) -> bool:
    source = plan.site_of(handover.source)
    return source.tier is tier and source != plan.site_of(handover.target)
