"""What can be served, and what it costs: the model and its variants, profiled on the nodes of every tier with the links.

searches = await measured_candidates(demo, narrow)       # of the model, then of int8 and of the narrower one
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from statistics import median

import msgspec
import numpy as np

from edgewise.core.errors import EdgewiseError
from edgewise.core.ids import NodeId, Tier
from edgewise.datasets.digits_data import to_raw
from edgewise.demo.scenario import PRIVATE, TASK, Demo
from edgewise.fleet.messages import BlobRef, Deploy, ProfileAnswer, ProfileOrder
from edgewise.inference.evidence import CODECS, plan_evidence
from edgewise.inference.serving_node import device_only_plan
from edgewise.models.compress.quantise import quantised
from edgewise.models.export import INPUT
from edgewise.models.graph.graph import Graph
from edgewise.models.version import ExitEvidence
from edgewise.planning.baselines import png_bytes
from edgewise.planning.choose import make_search
from edgewise.planning.plan import FLOAT32
from edgewise.planning.profile import LinkState, Profile
from edgewise.planning.search import Search
from edgewise.service.client import InferenceClient, Reply, open_loop
from edgewise.simulation.emulated.emulated_fleet import CLOUD

CALIBRATION_REQUESTS = 96
CALIBRATION_DEADLINE_S = 10.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """One graph that could be served.

    Attributes:
        name: Of the variant.
        graph: The graph.
        evidence: Of its exits, on the calibration data.
    """

    name: str
    graph: Graph
    evidence: tuple[ExitEvidence, ...]


@dataclass(frozen=True, slots=True)
class Overhead:
    """Seconds that a request takes beside computing: median and 95th percentile."""

    p50_s: float
    p95_s: float


async def measured_candidates(demo: Demo, narrow: bytes) -> list[Search]:
    """Measures every candidate where it could run, and the links between.

    Args:
        demo: With its first version.
        narrow: The narrower model.

    Returns:
        What plans are made from, under the demo's policy: of the model, then of each variant.
    """
    graph = Graph.load(await demo.operator.graph(demo.trained.number))
    overhead = await _overhead(demo, graph)
    candidates = [
        Candidate(FLOAT32, graph, demo.trained.evidence),
        *await asyncio.to_thread(_variants, demo, graph, narrow),
    ]
    demo.graphs = {candidate.graph.digest: candidate.graph.model_bytes for candidate in candidates}
    profiles, links = await _profiles(demo, candidates, overhead)
    for number, link in enumerate(links):
        speed = f"{link.bytes_per_s * 8e-6:.1f} Mbit/s, round trip {link.rtt_s * 1e3:.1f} ms"
        demo.show.line(f"  link {number}: {speed}, p95 {link.rtt_p95_s * 1e3:.1f} ms ({link.source})")
    return [searched(demo, candidate, profiles[candidate.name], links) for candidate in candidates]


def searched(demo: Demo, candidate: Candidate, profiles: dict[Tier, Profile], links: Sequence[LinkState]) -> Search:
    """What plans of a candidate are made from, under the demo's policy.

    Args:
        demo: Knows how large an input is as it comes.
        candidate: What is planned.
        profiles: Its costs, by tier.
        links: Device–edge, edge–cloud.

    Returns:
        The search.
    """
    image = np.asarray(to_raw(demo.task.parts.calibration.inputs[0]))[0]
    name = candidate.graph.inputs[0].name
    sizes = {("uint8", name): image.nbytes, ("png", name): png_bytes(image)}
    return make_search(
        candidate.graph,
        profiles,
        links,
        PRIVATE,
        candidate.evidence,
        codecs=CODECS,
        sizes=sizes,
        variant=candidate.name,
    )


def merged(links: Iterable[LinkState]) -> LinkState:
    """One link that stands for several of its class: the median of each quantity."""
    links = list(links)
    names = ("bytes_per_s", "rtt_s", "rtt_p95_s")
    return msgspec.structs.replace(links[0], **{name: median(getattr(link, name) for link in links) for name in names})


def _variants(demo: Demo, graph: Graph, narrow: bytes) -> list[Candidate]:
    """The model in int8, and the narrower one."""
    parts = demo.task.parts.calibration
    inputs, targets = np.asarray(parts.inputs), np.asarray(parts.targets)
    name = graph.inputs[0].name
    int8 = quantised(graph, [{name: inputs[i : i + 1]} for i in range(min(100, len(inputs)))])
    graphs = {"int8": Graph.load(int8), "narrow": Graph.load(narrow)}
    return [Candidate(name, each, plan_evidence(each, inputs, targets)) for name, each in graphs.items()]


async def _profiles(
    demo: Demo, candidates: Sequence[Candidate], overhead: Overhead
) -> tuple[dict[str, dict[Tier, Profile]], list[LinkState]]:
    """Profiles by candidate and tier. All devices and edges measure at once, as they will serve at once."""
    refs = {c.name: _offer(demo, c.graph.model_bytes) for c in candidates}
    names, answers = list(refs), dict[tuple[str, Tier], list[ProfileAnswer]]()
    homes = {r.info.node: r.info.parent for r in demo.nodes}
    settings = demo.settings
    gap_s = settings.gap_s * len(demo.fleet.edges)  # between two requests at an edge
    work: dict[NodeId, tuple[Tier, list[str]]] = {
        NodeId(device): (Tier.DEVICE, [names[number % len(names)]]) for number, device in enumerate(demo.fleet.devices)
    }
    for number, edge in enumerate(demo.fleet.edges):
        work[NodeId(edge)] = (Tier.EDGE, names[number :: len(demo.fleet.edges)])
    with demo.show.progress("  profiling", sum(len(wanted) for _, wanted in work.values()) + len(names)) as advance:

        async def measure(node: NodeId, tier: Tier, wanted: Sequence[str]) -> None:
            for number, name in enumerate(wanted):
                order = ProfileOrder(
                    graph=refs[name],
                    budget_s=settings.profile_s / len(wanted),
                    cadence_s=0.0 if tier is Tier.CLOUD else gap_s,
                    link_to=homes[node] if number == 0 and tier is not Tier.CLOUD else NodeId(""),
                    endpoint_overhead_s=overhead.p50_s if tier is Tier.DEVICE else 0.0,
                    measures_memory=False,
                )
                answers.setdefault((name, tier), []).append(await demo.operator.profile(node, order))
                advance(f"{node}, {name}")

        await asyncio.gather(*(measure(node, *what) for node, what in work.items()))
        await measure(NodeId(CLOUD), Tier.CLOUD, names)
    profiles: dict[str, dict[Tier, Profile]] = {name: {} for name in names}
    for (name, tier), given in answers.items():
        middle = sorted((a.profile for a in given), key=lambda p: p.segments[0].seconds)[len(given) // 2]
        if tier is Tier.DEVICE:
            middle = msgspec.structs.replace(middle, overhead_s=overhead.p50_s, overhead_p95_s=overhead.p95_s)
        profiles[name][tier] = middle
    links = [
        merged(a.link for (_, tier), given in answers.items() if tier is wanted for a in given if a.link is not None)
        for wanted in (Tier.DEVICE, Tier.EDGE)
    ]
    return profiles, links


async def _overhead(demo: Demo, graph: Graph) -> Overhead:
    """What a request takes beside computing, in our client, at the endpoint and in the session.

    The devices serve the whole model meanwhile, at the stream's own spacing; calibration examples, not the stream's.
    """
    plan = device_only_plan(graph)
    ack = await demo.operator.deploy(Deploy(demo.trained.number, (plan,), CALIBRATION_DEADLINE_S))
    if not ack.accepted:
        raise EdgewiseError(f"version {demo.trained.number} was not deployed to be calibrated: {ack.reason}")
    ports = [demo.fleet.children[d].ready["http_port"] for d in demo.fleet.devices]
    images = np.asarray(demo.task.parts.calibration.inputs, np.float32)
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(InferenceClient("127.0.0.1", port)) for port in ports]

        async def send(index: int, due_s: float) -> Reply:
            image = images[index % len(images)][None]
            return await clients[index % len(clients)].infer(TASK, {INPUT: image})

        replies = await open_loop(send, [i * demo.settings.gap_s for i in range(CALIBRATION_REQUESTS)])
    kept = [r for r in replies[2 * len(ports) :] if not r.error]
    if not kept:
        raise EdgewiseError(f"no calibration request was answered: {replies[-1].error}")
    beside = np.asarray([r.latency_s - 1e-3 * float(r.parameters["compute_ms"]) for r in kept])
    return Overhead(float(np.median(beside)), float(np.quantile(beside, 0.95)))


def _offer(demo: Demo, data: bytes) -> BlobRef:
    """Puts bytes where nodes can pull them from the operator."""
    return demo.operator.offer(data)
