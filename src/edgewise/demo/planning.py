"""Stage 4: profile every tier and ask the planner three questions."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from statistics import median

import msgspec
import numpy as np

from edgewise.core.errors import EdgewiseError
from edgewise.core.ids import NodeId, Tier
from edgewise.datasets.digits_data import to_raw
from edgewise.demo.scenario import OPEN, PRIVATE, SLOW_BYTES_PER_S, TASK, Demo
from edgewise.demo.training_domains import OtherDomains
from edgewise.fleet.messages import BlobRef, Deploy, ProfileAnswer, ProfileOrder
from edgewise.inference.evidence import CODECS, plan_evidence
from edgewise.inference.serving_node import device_only_plan
from edgewise.models.compress.quantise import quantised
from edgewise.models.export import INPUT
from edgewise.models.graph.graph import Graph
from edgewise.models.version import ExitEvidence
from edgewise.planning.baselines import baselines, png_bytes
from edgewise.planning.choose import make_search
from edgewise.planning.explain import LEVEL_COLUMNS, explain, level_cells
from edgewise.planning.levels import plan_levels, recommend
from edgewise.planning.profile import LinkState, Profile
from edgewise.planning.search import Search
from edgewise.service.client import InferenceClient, Reply, open_loop
from edgewise.service.report import PlanSection
from edgewise.service.report.convert import baseline_rows, level_rows, planner_answer
from edgewise.simulation.emulated.emulated_fleet import CLOUD

DEADLINE_FACTOR = 3.0
CALIBRATION_REQUESTS = 64
CALIBRATION_DEADLINE_S = 10.0
OFFLOADED_FRACTION = 0.5
"""Of requests, before there is a plan that says so; sets the spacing at which the edge is profiled."""


async def plan_all(demo: Demo, others: OtherDomains) -> None:
    """Profiles, asks, prints; the first answer is the demo's plan.

    Args:
        demo: With its first version.
        others: Training of the models that other levels would serve.
    """
    graph = Graph.load(await demo.operator.graph(demo.version.number))
    evidence = {"hierarchical": demo.version.evidence, **await others.evidence()}
    demo.happened("planning", "models of the other training domains are trained, to compare the levels")
    profiles, links, int8 = await _profiles(demo, graph)
    demo.search = _search(demo, graph, profiles, links, demo.version.evidence)
    recommended = recommend(demo.search)
    demo.plan = recommended.plan
    demo.deadline_s = DEADLINE_FACTOR * recommended.plan.predicted.latency_p95_s
    open_search = replace(demo.search, policy=OPEN)
    slow = [msgspec.structs.replace(links[0], bytes_per_s=SLOW_BYTES_PER_S), links[1]]
    questions = (
        ("raw inputs never leave the device", recommended),
        ("no policy", recommend(open_search)),
        (
            "raw inputs never leave the device, link at 64 kbit/s",
            recommend(_search(demo, graph, profiles, slow, demo.version.evidence)),
        ),
    )
    rows = plan_levels(demo.search, evidence)
    compared = baselines(open_search, [int8])
    demo.show.table("Seven levels under 'raw inputs never leave the device'", LEVEL_COLUMNS, level_cells(rows))
    demo.show.table(
        "Without collaborating",
        ("way", "p50 ms", "allowed with no policy"),
        [(b.name, f"{b.predicted_p50_ms:.1f}", b.reason or "yes") for b in compared],
    )
    demo.show.table(
        "Three answers",
        ("question", "answer", "p50 ms", "p95 ms", "accuracy", "margin"),
        [
            (
                q,
                a.plan.name,
                f"{a.plan.predicted.latency_p50_s * 1e3:.1f}",
                f"{a.plan.predicted.latency_p95_s * 1e3:.1f}",
                f"{a.plan.predicted.accuracy:.3f}",
                f"{a.margin_fraction:.0%}",
            )
            for q, a in questions
        ],
    )
    for line in explain(demo.plan):
        demo.show.line(f"  {line}")
    demo.happened("planning", f"plan: {demo.plan.name}; {recommended.reason}")
    demo.change(
        answers=tuple(planner_answer(q, a) for q, a in questions),
        baselines=baseline_rows(compared),
        plan=PlanSection(
            recommended.level,
            tuple(str(t) for t in recommended.plan.tiers),
            recommended.margin_fraction,
            recommended.plan.predicted.latency_p50_s * 1e3,
            levels=level_rows(rows, recommended.level),
            name=recommended.plan.name,
            predicted_p95_ms=recommended.plan.predicted.latency_p95_s * 1e3,
            device_energy_j=recommended.plan.predicted.device_energy_j,
            egress_bytes=recommended.plan.predicted.egress_bytes,
            accuracy=recommended.plan.predicted.accuracy,
        ),
    )


def _search(
    demo: Demo, graph: Graph, profiles: dict[Tier, Profile], links: list[LinkState], evidence: tuple[ExitEvidence, ...]
) -> Search:
    image = np.asarray(to_raw(demo.task.parts.calibration.inputs[0]))[0]
    name = graph.inputs[0].name
    sizes = {("uint8", name): image.nbytes, ("png", name): png_bytes(image)}
    return make_search(graph, profiles, links, PRIVATE, evidence, codecs=CODECS, sizes=sizes)


async def _profiles(demo: Demo, graph: Graph) -> tuple[dict[Tier, Profile], list[LinkState], Search]:
    """Measures the graph on the nodes of each tier and the links between them, at the stream's own spacing.

    All devices and edges measure at once, as they will serve at once; of the devices the one in the middle counts.
    """
    *measuring, quantising = (NodeId(name) for name in demo.fleet.devices)
    cadence = demo.settings.gap_s * len(demo.fleet.devices)
    cadences = {Tier.DEVICE: cadence, Tier.EDGE: demo.settings.gap_s * len(demo.fleet.edges) / OFFLOADED_FRACTION}
    overhead_s = await _overhead(demo, graph)
    budget = demo.settings.profile_s
    ref = _offer(demo, graph.model_bytes)
    int8_graph = Graph.load(await asyncio.to_thread(_quantise, demo, graph))
    small_order = ProfileOrder(
        _offer(demo, int8_graph.model_bytes), budget, cadence, endpoint_overhead_s=overhead_s, measures_memory=False
    )
    homes = {r.info.node: r.info.parent for r in demo.nodes}
    edges = [NodeId(edge) for edge in demo.fleet.edges]
    with demo.show.progress("  profiling", len(measuring) + len(edges) + 2) as advance:

        async def measured(node: NodeId, tier: Tier, upward: str = "") -> ProfileAnswer:
            at_endpoint_s = overhead_s if tier is Tier.DEVICE else 0.0
            order = ProfileOrder(
                graph=ref,
                budget_s=budget,
                cadence_s=cadences.get(tier, 0.0),
                link_to=NodeId(upward),
                endpoint_overhead_s=at_endpoint_s,
                measures_memory=False,
            )
            answer = await demo.operator.profile(node, small_order if node == quantising else order)
            advance(f"{node}, int8" if node == quantising else str(node))
            return answer

        of_devices, of_edges, small = await asyncio.gather(
            asyncio.gather(*(measured(node, Tier.DEVICE, homes[node]) for node in measuring)),
            asyncio.gather(*(measured(node, Tier.EDGE, CLOUD) for node in edges)),
            measured(quantising, Tier.DEVICE),
        )
        of_cloud = await measured(NodeId(CLOUD), Tier.CLOUD)
    in_the_middle = sorted(of_devices, key=lambda a: a.profile.segments[0].seconds)[len(of_devices) // 2]
    answers = {Tier.DEVICE: in_the_middle, Tier.EDGE: of_edges[0], Tier.CLOUD: of_cloud}
    profiles = {t: a.profile for t, a in answers.items()}
    profiles[Tier.DEVICE], on_device = (
        msgspec.structs.replace(p, overhead_s=overhead_s) for p in (profiles[Tier.DEVICE], small.profile)
    )
    links = [a.link for t, a in answers.items() if a.link is not None]
    parts = demo.task.parts.calibration
    evidence = plan_evidence(int8_graph, parts.inputs, np.asarray(parts.targets), ("none",))
    int8 = make_search(int8_graph, {Tier.DEVICE: on_device}, [], OPEN, evidence, variant="int8")
    for number, link in enumerate(links):
        demo.show.line(
            f"  link {number}: {link.bytes_per_s * 8e-6:.1f} Mbit/s, round trip {link.rtt_s * 1e3:.1f} ms ({link.source})"
        )
    return profiles, links, int8


async def _overhead(demo: Demo, graph: Graph) -> float:
    """Median seconds a request takes beside computing, in our client, at the endpoint and in the session.

    The devices serve the whole model meanwhile, at the stream's own spacing; calibration examples, not the stream's.
    """
    plan = device_only_plan(graph)
    ack = await demo.operator.deploy(Deploy(demo.version.number, (plan,), CALIBRATION_DEADLINE_S))
    if not ack.accepted:
        raise EdgewiseError(f"version {demo.version.number} was not deployed to be calibrated: {ack.reason}")
    ports = [demo.fleet.children[d].ready["http_port"] for d in demo.fleet.devices]
    images = np.asarray(demo.task.parts.calibration.inputs, np.float32)
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(InferenceClient("127.0.0.1", port)) for port in ports]

        async def send(index: int, due_s: float) -> Reply:
            image = images[index % len(images)][None]
            return await clients[index % len(clients)].infer(TASK, {INPUT: image})

        replies = await open_loop(send, [i * demo.settings.gap_s for i in range(CALIBRATION_REQUESTS)])
    kept = [r for r in replies[2 * len(ports) :] if not r.error]
    return median(r.latency_s - 1e-3 * float(r.parameters["compute_ms"]) for r in kept)


def _offer(demo: Demo, data: bytes) -> BlobRef:
    """Puts bytes where nodes can pull them from the operator."""
    return BlobRef(demo.operator.node.blobs.put(data), len(data), demo.operator.node.name)


def _quantise(demo: Demo, graph: Graph) -> bytes:
    inputs = np.asarray(demo.task.parts.calibration.inputs)[:100]
    return quantised(graph, [{graph.inputs[0].name: inputs[i : i + 1]} for i in range(len(inputs))])
