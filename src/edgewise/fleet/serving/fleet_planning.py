"""Planning for a fleet that runs: whom to measure, measuring them and their links, and what a deployment is made of.

chain = choose_chain(answer.nodes)
measured = await measure(operator, graph.model_bytes, chain, budget_s=3.0)
search = search_of(graph, measured, policy, version.evidence, version.training_domain)
recommended = recommend(search)
await operator.deploy(deployment(version, search, recommended.plan))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import msgspec

from edgewise.core.errors import InputError
from edgewise.core.ids import NodeId, Tier
from edgewise.fleet.messages import Deploy, NodeInfo, NodeRow, PlanInputs, ProfileOrder
from edgewise.fleet.operator.operator import Operator
from edgewise.inference.evidence import CODECS
from edgewise.models.graph.graph import Graph
from edgewise.models.graph.input_hints import NO_HINTS, InputHints
from edgewise.models.model_choice import choose_model
from edgewise.models.version import ExitEvidence, ModelVersion
from edgewise.planning.choose import make_search
from edgewise.planning.levels import single_node_plans
from edgewise.planning.plan import FLOAT32, Plan
from edgewise.planning.policy import Policy
from edgewise.planning.profile import LinkState, Profile
from edgewise.planning.replan.plan_map import plan_map
from edgewise.planning.search import Search

DEADLINE_FACTOR = 3.0
"""A request may take so many times the plan's predicted 95th percentile."""
LEAST_DEADLINE_S = 0.1
"""Below this a deadline would measure the operating system, not the plan."""
_NO_LINK = LinkState(bytes_per_s=1e15, rtt_s=0.0, frame_overhead_bytes=0, answer_overhead_bytes=0)
"""Between two tiers that are one machine: where no edge stands between a device and the cloud."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a fleet's nodes and links cost for one graph.

    Attributes:
        profiles: One per tier of the chain.
        links: Device-edge, edge-cloud.
    """

    profiles: dict[Tier, Profile]
    links: tuple[LinkState, ...]


def choose_chain(rows: Sequence[NodeRow], device: str = "") -> tuple[NodeInfo, ...]:
    """Chooses one node of each tier: a device that can be asked, and its parents up to the root.

    Args:
        rows: The coordinator's view.
        device: Which device; "" takes the slowest one with an inference endpoint, as a plan must suit it too.

    Returns:
        Infos, the device first.

    Raises:
        InputError: If there is no such device.
    """
    alive = {row.info.node: row.info for row in rows if row.state == "alive"}
    devices = [info for info in alive.values() if info.tier is Tier.DEVICE and info.http_port]
    if device and NodeId(device) not in {info.node for info in devices}:
        names = ", ".join(info.node for info in devices) or "none"
        raise InputError(f"{device!r} is no live device with an inference endpoint; those are: {names}.")
    if not devices:
        raise InputError(
            "no live device of the fleet has an inference endpoint. Start one with: edgewise agent --http 127.0.0.1:8000"
        )
    chain = [alive[NodeId(device)] if device else min(devices, key=_speed)]
    while chain[-1].parent in alive:
        chain.append(alive[chain[-1].parent])
    return tuple({info.tier: info for info in chain}.values())


async def measure(
    operator: Operator,
    graph: bytes,
    chain: Sequence[NodeInfo],
    *,
    budget_s: float = 3.0,
    cadence_s: float = 0.0,
    endpoint_overhead_s: float = 0.0,
    hints: InputHints = NO_HINTS,
    probes_links: bool = True,
    done: Callable[[str], None] = lambda _: None,
) -> Measured:
    """Lets the nodes of a chain measure a graph and the links between them, one after the other.

    Args:
        operator: Connection to the fleet.
        graph: The ONNX bytes.
        chain: As from `choose_chain`.
        budget_s: Seconds of measuring per node.
        cadence_s: Gap between a device's runs, as between requests in serving.
        endpoint_overhead_s: Seconds a request spends at the device's HTTP endpoint.
        hints: What the graph is loaded with.
        probes_links: Whether to measure the links too.
        done: Takes each node that is done.

    Returns:
        Profiles and links.
    """
    ref = operator.offer(graph)
    upward = {inner.node: outer.node for inner, outer in pairwise(chain)} if probes_links else {}
    profiles, links = {}, []
    for info in chain:
        served = (cadence_s, endpoint_overhead_s) if info.tier is Tier.DEVICE else (0.0, 0.0)
        order = ProfileOrder(ref, budget_s, served[0], upward.get(info.node, NodeId("")), served[1], hints=hints)
        answer = await operator.profile(info.node, order)
        profiles[info.tier] = answer.profile
        links += [answer.link] if answer.link is not None else []
        done(str(info.node))
    if Tier.CLOUD in profiles and Tier.EDGE not in profiles:
        links.append(_NO_LINK)
    return Measured(profiles, tuple(links))


def search_of(
    graph: Graph,
    measured: Measured,
    policy: Policy,
    evidence: Sequence[ExitEvidence],
    training_domain: str,
    variant: str = FLOAT32,
) -> Search:
    """What plans are made from.

    Args:
        graph: The version's graph.
        measured: As from `measure`.
        policy: Objective and limits.
        evidence: Of the version; without any the model runs to its end, uncoded.
        training_domain: Of the version.
        variant: What the graph is of the version's model.

    Returns:
        The search.
    """
    codecs = CODECS if evidence else CODECS[:1]
    return make_search(
        graph,
        measured.profiles,
        measured.links,
        policy,
        evidence,
        codecs=codecs,
        training_domain=training_domain,
        variant=variant,
    )


def alternatives(search: Search, plan: Plan) -> tuple[Plan, ...]:
    """A plan, then those that are the best at another bandwidth, then the best on each tier alone.

    Args:
        search: What it was made from.
        plan: The plan to use.

    Returns:
        Plans with different names, the given one first; kept warm beside it.
    """
    policy = search.policy
    mapped = policy.objective == "latency" and policy.max_latency_s is None and search.table.links
    others = [*(plan_map(search).plans if mapped else ()), *single_node_plans(search)]
    found = {plan.name: plan}
    for other in others:
        found.setdefault(other.name, other)
    return tuple(found.values())


def deployment(
    version: ModelVersion,
    search: Search,
    plan: Plan,
    deadline_s: float | None = None,
    policy: Policy | None = None,
    hints: InputHints = NO_HINTS,
) -> Deploy:
    """The order that puts a plan in force.

    Args:
        version: What is served.
        search: What the plan was made from; devices weigh its alternatives anew when their link changes.
        plan: The plan.
        deadline_s: Of a request; None takes `DEADLINE_FACTOR` times the predicted 95th percentile.
        policy: What was asked for, where the search's is narrower by what devices grant; None for the search's.
        hints: What the graph was planned with.

    Returns:
        The order.
    """
    table = search.table
    inputs = PlanInputs(
        tuple(table.profiles.values()), tuple(table.links), search.policy, tuple(version.evidence), tuple(search.codecs)
    )
    limit_s = max(LEAST_DEADLINE_S, DEADLINE_FACTOR * plan.predicted.latency_p95_s)
    policy = policy or search.policy
    return Deploy(version.number, alternatives(search, plan), deadline_s or limit_s, inputs, policy=policy, hints=hints)


def choose_version(versions: Sequence[ModelVersion], number: int = 0, model: str = "") -> ModelVersion:
    """A version by number, or the newest of a model that may serve.

    Args:
        versions: The registry.
        number: Which; 0 for the newest that its gate did not refuse.
        model: Of which model; "" for the only one there is.

    Returns:
        The version.

    Raises:
        InputError: If there is none, or no model is named and there are several.
    """
    if model or not number:
        may_serve = {v.task for v in versions if v.gate is None or v.gate.passed}
        name = choose_model(may_serve, model, are="there") if model or len(may_serve) > 1 else ""
        versions = [v for v in versions if not name or v.task == name]
    found = [v for v in versions if v.number == number or (not number and (v.gate is None or v.gate.passed))]
    if not found:
        known = ", ".join(str(v.number) for v in versions) or "none; train one first"
        raise InputError(f"there is no model version {number or 'that may serve'}. Known: {known}.")
    return found[-1]


def with_evidence(version: ModelVersion, evidence: Sequence[ExitEvidence]) -> ModelVersion:
    """The version with evidence measured elsewhere, e.g. on an operator's own labelled examples."""
    return msgspec.structs.replace(version, evidence=tuple(evidence))


def _speed(info: NodeInfo) -> tuple[float, str]:
    return info.capability.flops, info.node  # its dilation is in it; ties go by name
