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
from edgewise.fleet.node.probe import usual_p95
from edgewise.inference.evidence import CODECS, plan_evidence
from edgewise.inference.serving_node import device_only_plan
from edgewise.models.compress.quantise import quantised
from edgewise.models.forward import INPUT
from edgewise.models.graph.graph import Graph
from edgewise.models.version import ExitEvidence
from edgewise.planning.baselines import png_bytes
from edgewise.planning.choose import make_search
from edgewise.planning.plan import FLOAT32
from edgewise.planning.profile import LinkState, Profile
from edgewise.planning.search import Search
from edgewise.service.client import InferenceClient, Reply, open_loop
from edgewise.simulation.emulated.emulated_fleet import CLOUD

CALIBRATION_REQUESTS = 80
CALIBRATION_DEADLINE_S = 10.0
PROBING_TURNS = 2
LITTLE_S = 0.05
"""Of measuring, where a node is asked about its link only."""
NO_ENDPOINT_S = 1e-9
"""What an endpoint takes is measured from outside, so a node need not."""


@dataclass(frozen=True, slots=True)
class ServableGraph:
    """One graph that could be served.

    Attributes:
        name: Of the variant.
        graph: The graph.
        evidence: Of its exits, on the calibration data.
    """

    name: str
    graph: Graph
    evidence: tuple[ExitEvidence, ...]


async def measured_candidates(demo: Demo, narrow: bytes) -> list[Search]:
    """Measures every candidate where it could run, and the links between.

    Args:
        demo: With its first version.
        narrow: The narrower model.

    Returns:
        What plans are made from, under the demo's policy: of the model, then of each variant.
    """
    graph = Graph.load(await demo.operator.graph(demo.trained.number))
    await _serve_whole(demo, graph)
    beside = await _beside_computing(demo)
    candidates = [
        ServableGraph(FLOAT32, graph, demo.trained.evidence),
        *await _passing(demo, await asyncio.to_thread(_variants, demo, graph, narrow)),
    ]
    demo.graphs = {candidate.graph.digest: candidate.graph.model_bytes for candidate in candidates}
    profiles = await _profiles(demo, candidates)
    links = await _links(demo, candidates[-1])
    beside += await _beside_computing(demo)
    overhead_s, overhead_p95_s = median(beside), usual_p95(beside)
    for by_tier in profiles.values():
        by_tier[Tier.DEVICE] = msgspec.structs.replace(
            by_tier[Tier.DEVICE], overhead_s=overhead_s, overhead_p95_s=overhead_p95_s
        )
    for number, link in enumerate(links):
        speed = f"{link.bytes_per_s * 8e-6:.1f} Mbit/s, round trip {link.rtt_s * 1e3:.1f} ms"
        demo.show.line(f"  link {number}: {speed}, p95 {link.rtt_p95_s * 1e3:.1f} ms ({link.source})")
    return [searched(demo, candidate, profiles[candidate.name], links) for candidate in candidates]


def searched(demo: Demo, candidate: ServableGraph, profiles: dict[Tier, Profile], links: Sequence[LinkState]) -> Search:
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


def _variants(demo: Demo, graph: Graph, narrow: bytes) -> list[ServableGraph]:
    """The model in int8, and the narrower one."""
    parts = demo.task.parts.calibration
    inputs, targets = np.asarray(parts.inputs), np.asarray(parts.targets)
    name = graph.inputs[0].name
    int8 = quantised(graph, [{name: inputs[i : i + 1]} for i in range(min(100, len(inputs)))])
    graphs = {"int8": Graph.load(int8), "narrow": Graph.load(narrow)}
    return [ServableGraph(name, each, plan_evidence(each, inputs, targets)) for name, each in graphs.items()]


async def _passing(demo: Demo, variants: Sequence[ServableGraph]) -> list[ServableGraph]:
    """The variants that may serve: what its gate would refuse is no candidate."""
    refused = await demo.operator.refusals({v.name: v.graph.model_bytes for v in variants}, task=TASK)
    for sentence in refused.values():
        demo.happened("planning", sentence)
    return [variant for variant in variants if variant.name not in refused]


async def _profiles(demo: Demo, candidates: Sequence[ServableGraph]) -> dict[str, dict[Tier, Profile]]:
    """Profiles by candidate and tier. All devices and edges measure at once, as they will serve at once."""
    refs = {c.name: _offer(demo, c.graph.model_bytes) for c in candidates}
    names, answers = list(refs), dict[tuple[str, Tier], list[ProfileAnswer]]()
    settings, gap_s = demo.settings, _gap_s(demo)
    work: dict[NodeId, tuple[Tier, list[str]]] = {
        NodeId(device): (Tier.DEVICE, [names[number % len(names)]]) for number, device in enumerate(demo.fleet.devices)
    }
    for number, edge in enumerate(demo.fleet.edges):
        work[NodeId(edge)] = (Tier.EDGE, names[number :: len(demo.fleet.edges)])
    with demo.show.progress("  profiling", sum(len(wanted) for _, wanted in work.values()) + len(names)) as advance:

        async def measure(node: NodeId, tier: Tier, wanted: Sequence[str]) -> None:
            for name in wanted:
                order = ProfileOrder(
                    graph=refs[name],
                    budget_s=settings.profile_s / len(wanted),
                    cadence_s=0.0 if tier is Tier.CLOUD else gap_s,
                    endpoint_overhead_s=NO_ENDPOINT_S,
                    measures_memory=False,
                )
                answers.setdefault((name, tier), []).append(await demo.operator.profile(node, order))
                advance(f"{node}, {name}")

        await asyncio.gather(*(measure(node, *what) for node, what in work.items()))
        await measure(NodeId(CLOUD), Tier.CLOUD, names)
    profiles: dict[str, dict[Tier, Profile]] = {name: {} for name in names}
    for (name, tier), given in answers.items():
        profiles[name][tier] = sorted((a.profile for a in given), key=lambda p: p.segments[0].seconds)[len(given) // 2]
    return profiles


async def _links(demo: Demo, small: ServableGraph) -> list[LinkState]:
    """The links of each class, while nobody computes much; at each edge one device after the other, as requests come."""
    ref, homes = _offer(demo, small.graph.model_bytes), {r.info.node: r.info.parent for r in demo.nodes}

    async def probed(name: str) -> LinkState:
        node = NodeId(name)
        order = ProfileOrder(
            graph=ref,
            budget_s=LITTLE_S,
            cadence_s=_gap_s(demo),
            link_to=homes[node],
            endpoint_overhead_s=NO_ENDPOINT_S,
            measures_memory=False,
        )
        link = (await demo.operator.profile(node, order)).link
        assert link is not None, "it was asked for one"
        return link

    edges = asyncio.gather(*map(probed, demo.fleet.edges))
    per_edge, devices = demo.fleet.file.devices.per_edge, list[LinkState]()
    for turn in range(min(PROBING_TURNS, per_edge)):
        devices += await asyncio.gather(*map(probed, demo.fleet.devices[turn::per_edge]))
    return [merged(devices), merged(await edges)]


def _gap_s(demo: Demo) -> float:
    """Between two requests at an edge."""
    return demo.settings.gap_s * len(demo.fleet.edges)


async def _serve_whole(demo: Demo, graph: Graph) -> None:
    """Lets the devices serve the whole model, to see what a request takes beside computing."""
    ack = await demo.operator.deploy(Deploy(demo.trained.number, (device_only_plan(graph),), CALIBRATION_DEADLINE_S))
    if not ack.accepted:
        raise EdgewiseError(f"version {demo.trained.number} was not deployed to be calibrated: {ack.reason}")


async def _beside_computing(demo: Demo) -> list[float]:
    """Seconds that requests take beside computing, in our client, at the endpoint and in the session.

    At the stream's own spacing; calibration examples, not the stream's.
    """
    ports = [demo.fleet.children[d].ready["http_port"] for d in demo.fleet.devices]
    images = np.asarray(demo.task.parts.calibration.inputs, np.float32)
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(InferenceClient("127.0.0.1", port)) for port in ports]

        async def send(index: int, due_s: float) -> Reply:
            image = images[index % len(images)][None]
            return await clients[index % len(clients)].infer(TASK, {INPUT: image})

        replies = await open_loop(send, [i * demo.settings.gap_s for i in range(CALIBRATION_REQUESTS)])
    answered = [r for r in replies[2 * len(ports) :] if not r.error]
    if not answered:
        raise EdgewiseError(f"no calibration request was answered: {replies[-1].error}")
    kept = did_not_wait(replies, len(ports)) or answered
    return [r.latency_s - 1e-3 * float(r.parameters["compute_ms"]) for r in kept]


def did_not_wait(replies: Sequence[Reply], num_devices: int) -> list[Reply]:
    """The answers to requests that came when their device had answered the one before.

    Waiting for another request is no cost of handling one: a plan that leaves the device more time has none of it.

    Args:
        replies: In order of arrival; consecutive ones are of different devices.
        num_devices: How many take turns; the first two of each warm it up.

    Returns:
        Those answers, in order.
    """
    pairs = zip(replies[num_devices:], replies[2 * num_devices :], strict=False)
    return [r for before, r in pairs if not r.error and before.scheduled_s + before.latency_s <= r.scheduled_s]


def _offer(demo: Demo, data: bytes) -> BlobRef:
    """Puts bytes where nodes can pull them from the operator."""
    return demo.operator.offer(data)
