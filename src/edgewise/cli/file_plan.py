"""`edgewise plan FILE`: a user's own model, measured on this machine and stretched to the speeds of a fleet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgewise.cli.evaluate import evaluate, quality_of
from edgewise.cli.output import Output
from edgewise.core.errors import DataError, InputError, PlanInfeasible
from edgewise.core.files import write_atomic
from edgewise.core.ids import NodeId, Tier
from edgewise.core.units import parse_duration, parse_rate

if TYPE_CHECKING:
    from edgewise.cli.source import Source
    from edgewise.models.graph.graph import Graph
    from edgewise.models.version import ExitEvidence
    from edgewise.planning.levels import Recommendation
    from edgewise.planning.plan import Plan
    from edgewise.planning.profile import LinkState, Profile
    from edgewise.planning.search import Search
    from edgewise.simulation.emulated.class_speeds import MachineSpeed
    from edgewise.simulation.emulated.fleet_file import FleetFile

FLOAT32 = "float32"
DOMAIN = "cloud"
"""A model that was trained elsewhere counts as trained in the cloud: levels 0 to 3."""


@dataclass(frozen=True, slots=True)
class FilePlan:
    """What is asked of a user's own model.

    Attributes:
        graph: The model.
        data: Real inputs.
        policy: TOML file; None for no limits.
        fleet: TOML file of links, speeds and powers; None for the defaults.
        profile: Profiles measured on other machines.
        budget_s: Time to measure this machine for.
        limit: Use at most so many examples.
        planner: Spec text of another planner, asked too; "" for none.
        variant: ONNX files that may stand in for the model.
        int8: Where to write the model in int8; None to write nothing.
    """

    graph: Graph
    data: Path
    policy: Path | None = None
    fleet: Path | None = None
    profile: tuple[Path, ...] = ()
    budget_s: float = 3.0
    limit: int = 500
    planner: str = ""
    variant: tuple[Path, ...] = ()
    int8: Path | None = None


def plan_file(out: Output, wanted: FilePlan) -> None:
    """Plans a user's own model.

    Args:
        out: Where to print.
        wanted: What.
    """
    from edgewise.cli.source import read_source
    from edgewise.core.config import load_toml
    from edgewise.inference.evidence import CODECS
    from edgewise.planning.choose import make_search
    from edgewise.planning.policy import Policy
    from edgewise.simulation.emulated.class_speeds import machine_speed, with_speeds
    from edgewise.simulation.emulated.fleet_file import FleetFile

    graph = wanted.graph
    policy = Policy() if wanted.policy is None else load_toml(wanted.policy, Policy)
    file = FleetFile() if wanted.fleet is None else load_toml(wanted.fleet, FleetFile)
    source = read_source(wanted.data, graph.inputs).first(wanted.limit)
    given = read_profiles(wanted.profile)
    here = machine_speed(graph, source.example(0))
    file = with_speeds(file, here)
    variants, notes = variants_of(wanted, source)
    budget_s = wanted.budget_s / (1 + len(variants))
    evidence, meaning = evaluate(graph, source)

    def searched(each: Graph, name: str, rows: tuple[ExitEvidence, ...], known: Mapping[Tier, Profile]) -> Search:
        profiles = {**measure(out, each, file, source, budget_s, known), **known}
        codecs = CODECS if rows else CODECS[:1]
        return make_search(
            each, profiles, links_of(file), policy, rows, codecs=codecs, training_domain=DOMAIN, variant=name
        )

    search = searched(graph, FLOAT32, evidence, given)
    others = [searched(each, name, evaluate(each, source, graph)[0], {}) for name, each in variants.items()]
    for line in assumptions(wanted, file, here, given):
        out.line(line)
    for note in notes:
        out.line(note)
    other = None if not wanted.planner else _other_plan(wanted.planner, search, evidence)
    _print(out, search, evidence, meaning, other, others)


def variants_of(wanted: FilePlan, source: Source) -> tuple[dict[str, Graph], list[str]]:
    """The graphs that may stand in for a model: it in int8, and the files that were given.

    Args:
        wanted: What is asked.
        source: Real inputs; the first hundred tell the ranges of activations.

    Returns:
        Graphs by name, and what to say of one that is no candidate.

    Raises:
        InputError: If a given file has other inputs or outputs than the model.
    """
    from edgewise.models.compress.quantise import quantised
    from edgewise.models.graph.graph import Graph

    graph, found, notes = wanted.graph, dict[str, "Graph"](), list[str]()
    if wanted.profile:
        notes.append(
            "int8 and variants are no candidates where tiers have a profile of their own: it is of this model only"
        )
        return found, notes
    try:
        data = quantised(graph, [source.example(i) for i in range(min(100, len(source)))])
        found["int8"] = Graph.load(data, exits=graph.exits if len(graph.exits) > 1 else ())
    except Exception as error:  # the quantiser knows fewer operators than the runtime, and says so in many ways
        notes.append(f"int8 is no candidate: the model cannot be quantised ({type(error).__name__}: {_brief(error)})")
    else:
        if wanted.int8 is not None:
            write_atomic(wanted.int8, data)
            notes.append(f"wrote the model in int8: {wanted.int8}")
    for path in wanted.variant:
        other = Graph.load(path)
        for what in ("inputs", "outputs"):
            mine, its = ([(t.name, t.dtype, t.shape) for t in getattr(g, what)] for g in (graph, other))
            if mine != its:
                raise InputError(
                    f"{str(path)!r} has {what} {its}, the model has {mine}. A variant answers the same requests: export it "
                    "with the same names and shapes."
                )
        found[path.stem] = other
    return found, notes


def _brief(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no word"])[0][:160]


def assumptions(wanted: FilePlan, file: FleetFile, here: MachineSpeed, given: Mapping[Tier, Profile]) -> list[str]:
    """What a plan of a file assumes, and where that comes from.

    Args:
        wanted: What is asked.
        file: With the dilations that follow.
        here: What the model takes on this machine.
        given: Profiles from elsewhere.

    Returns:
        Lines.
    """
    from edgewise.simulation.emulated.class_speeds import speed_lines

    where = f"declared in {wanted.fleet}" if wanted.fleet is not None else "default, nothing was declared: --fleet"
    lines = [f"assumed, policy: {'no limits; --policy' if wanted.policy is None else wanted.policy}"]
    for line, tier in zip(speed_lines(file, here), Tier, strict=True):
        profile = given.get(tier)
        known = (
            f"{tier}: measured on {profile.node!r}, {profile.fingerprint.machine}" if profile else f"{line} ({where})"
        )
        lines.append(f"assumed, {known}")
    for way, link in (("device–edge", file.devices.link), ("edge–cloud", file.edges.link)):
        lines.append(f"assumed, link {way}: {link.rate}, round trip {link.rtt} ({where})")
    return lines


def _other_plan(planner: str, search: Search, evidence: tuple[ExitEvidence, ...]) -> Plan:
    """The best plan of another planner; for those over several edges there is a second one, like the first and as far
    from it as the cloud.
    """
    from edgewise.planning.plan import Site
    from edgewise.planning.planner import Evidence, Sites
    from edgewise.planning.planners import best_of, candidates

    table, first, second = search.table, Site(Tier.EDGE), Site(Tier.EDGE, 1)
    chain = Sites.chain(table.profiles, table.links)
    sites = Sites(
        {**chain.profiles, second: table.profiles[Tier.EDGE]}, {**chain.links, (first, second): table.links[1]}
    )
    found = best_of(candidates(planner, table.graph, sites, search.policy, Evidence(evidence)), search.policy)
    if found is None:
        raise PlanInfeasible(
            f"planner {planner!r} finds no plan that meets the policy. Relax it, or leave --planner out."
        )
    return found


def measure(
    out: Output, graph: Graph, file: FleetFile, source: Source, budget_s: float, given: Mapping[Tier, Profile]
) -> dict[Tier, Profile]:
    """Profiles the model here, once, and stretches the result to the tiers that have no profile of their own.

    Args:
        out: Shows progress.
        graph: The model.
        file: Dilation and power of each tier.
        source: Real inputs.
        budget_s: Time to measure for.
        given: Profiles that were measured elsewhere.

    Returns:
        A profile for each tier that is not in `given`.
    """
    from edgewise.inference.evidence import CODECS
    from edgewise.inference.profiler import profile_graph

    tiers = {
        Tier.DEVICE: (file.devices.dilation, file.devices.active_power_w),
        Tier.EDGE: (file.edges.dilation, file.edges.active_power_w),
        Tier.CLOUD: (file.cloud.dilation, file.cloud.active_power_w),
    }
    missing = [tier for tier in tiers if tier not in given]
    if not missing:
        return {}
    with out.progress(f"measuring for {budget_s:g} s", 1) as advance:
        here = profile_graph(
            graph, NodeId("local"), Tier.DEVICE, budget_s=budget_s, codecs=CODECS, inputs=source.example(0)
        )
        advance("")
    return {tier: stretched(here, tier, *tiers[tier]) for tier in missing}


def stretched(profile: Profile, tier: Tier, dilation: float, power_w: float) -> Profile:
    """A profile of this machine as that of a slower one.

    Args:
        profile: Measured here, undilated.
        tier: Whom it shall stand for.
        dilation: How many times slower segments run; codecs and overhead are not stretched.
        power_w: Modelled power while computing.

    Returns:
        The profile.
    """
    change = msgspec.structs.replace
    groups = (change(g, seconds=g.seconds * dilation, p95_seconds=g.p95_seconds * dilation) for g in profile.groups)
    segments = (
        change(
            s, seconds=s.seconds * dilation, p95_seconds=s.p95_seconds * dilation, mad_seconds=s.mad_seconds * dilation
        )
        for s in profile.segments
    )
    return change(
        profile,
        node=NodeId(f"emulated-{tier}"),
        tier=tier,
        groups=tuple(groups),
        segments=tuple(segments),
        active_power_w=power_w,
        call_s=profile.call_s * dilation,
        fingerprint=change(profile.fingerprint, dilation=dilation),
    )


def read_profiles(paths: Sequence[Path]) -> dict[Tier, Profile]:
    """Reads profiles that `edgewise profile --out` wrote.

    Args:
        paths: Files.

    Returns:
        By tier.

    Raises:
        DataError: If a file is no profile.
    """
    from edgewise.planning.profile import Profile

    found = {}
    for path in paths:
        try:
            read = msgspec.json.decode(path.read_bytes(), type=Profile)
        except msgspec.DecodeError as error:
            raise DataError(
                f"{str(path)!r} is not a profile: {error}. Make one with 'edgewise profile --out'."
            ) from error
        found[read.tier] = read
    return found


def links_of(file: FleetFile) -> tuple[LinkState, LinkState]:
    """The links a fleet file declares: device–edge, edge–cloud.

    Args:
        file: The fleet file.
    """
    from edgewise.fleet.node.probe import JOULES_PER_BYTE
    from edgewise.planning.profile import LinkState

    first, second = (
        LinkState(parse_rate(link.rate), parse_duration(link.rtt), joules_per_byte=JOULES_PER_BYTE)
        for link in (file.devices.link, file.edges.link)
    )
    return first, second


def _print(
    out: Output,
    search: Search,
    evidence: tuple[ExitEvidence, ...],
    meaning: str,
    other: Plan | None = None,
    variants: Sequence[Search] = (),
) -> None:
    from edgewise.planning.baselines import baselines
    from edgewise.planning.explain import explain, level_cells, level_columns
    from edgewise.planning.levels import plan_levels, recommend

    quality = quality_of(meaning)
    found: dict[str, Any] = {"accuracy_means": meaning}
    found["levels"] = rows = plan_levels(search, {DOMAIN: evidence})
    found["recommendation"] = chosen = recommend(search, variants)
    found["one_node"] = alone = baselines(search, variants)
    out.table("levels of edge intelligence, predicted", level_columns(quality), level_cells(rows))
    out.table(
        "the whole model on one node, and its variants",
        ("way", "mean ms", quality, "allowed"),
        [(row.name, *_numbers(row.plan), row.reason or "yes") for row in alone],
    )
    out.line(f"{quality} is {meaning}" if quality not in meaning else meaning)
    out.line(f"recommended, level {chosen.level}: {chosen.reason}")
    for line in explain(chosen.plan, quality):
        out.line(line)
    if other is not None:
        out.line("asked too:")
        for line in explain(other, quality):
            out.line(line)
        found["other"] = other
    out.result({**found, "recommendation": _with_old_words(chosen)})


def _numbers(plan: Plan | None) -> tuple[str, str]:
    if plan is None:
        return "–", "–"
    return f"{plan.predicted.latency_mean_s * 1e3:.2f}", f"{plan.predicted.accuracy:.3f}"


def _with_old_words(chosen: Recommendation) -> dict[str, Any]:
    """A recommendation whose plan says its stages and exits in the words of 0.1.0 too, for this release."""
    said: dict[str, Any] = msgspec.to_builtins(chosen)
    plan = said["plan"]
    plan["segments"] = [
        {"tier": s["site"]["tier"], "inputs": s["inputs"], "outputs": s["outputs"]} for s in plan["stages"]
    ]
    plan["exits"] = [
        {"index": gate.index, "tensor": gate.tensors[-1], "tier": gate.at, "threshold": gate.threshold}
        for gate in chosen.plan.exits
    ]
    return said
