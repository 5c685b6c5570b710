"""`edgewise plan`: where a user's own model should run, and whether collaborating is worth it at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from edgewise.cli.evaluate import evaluate
from edgewise.cli.fleet_plan import (
    Deadline,
    DeviceName,
    FleetPlanRequest,
    Force,
    MinRequests,
    RolloutStages,
    Share,
    VersionNumber,
    fleet_only,
    parse_shares,
    plan_on_fleet,
)
from edgewise.cli.operator_options import AsOperator, ModelName, ToFleet
from edgewise.cli.output import AsJson, Output
from edgewise.cli.running import run_async
from edgewise.cli.serve import Exits, Shapes, load_with_examples
from edgewise.core.errors import DataError, InputError, PlanInfeasible
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
    from edgewise.simulation.emulated.fleet_file import FleetFile

DOMAIN = "cloud"
"""A model that was trained elsewhere counts as trained in the cloud: levels 0 to 3."""


def command(
    onnx: Annotated[Path | None, typer.Argument(help="The model; none to plan a version of a running fleet.")] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Real inputs: npz (labels as `y`), npy or a folder.")
    ] = None,
    policy: Annotated[Path | None, typer.Option("--policy", help="TOML: objective and limits; default: none.")] = None,
    fleet: Annotated[
        Path | None, typer.Option("--fleet", help="TOML: links, dilations and powers of the tiers.")
    ] = None,
    profile: Annotated[
        list[Path] | None, typer.Option("--profile", help="A profile measured on another tier's machine; repeat.")
    ] = None,
    budget: Annotated[str, typer.Option("--budget", help="Time to measure this machine for.")] = "3 s",
    limit: Annotated[int, typer.Option("--limit", min=1, help="Use at most so many examples for accuracy.")] = 500,
    input_shape: Shapes = None,
    exits: Exits = "",
    planner: Annotated[
        str, typer.Option("--planner", help="Show another planner's best plan too, e.g. pipeline, or a plug-in's.")
    ] = "",
    connect: ToFleet = "",
    identity: AsOperator = "",
    version: VersionNumber = 0,
    model: ModelName = "",
    device: DeviceName = "",
    deadline: Deadline = "",
    deploy: Annotated[bool, typer.Option("--deploy", help="On a fleet: put the plan in force.")] = False,
    stages: RolloutStages = "",
    min_requests: MinRequests = 0,
    share: Share = 1.0,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Say where a model should run: seven levels with predictions, and the plan to use.

    Of an ONNX file: tiers without a profile of their own are this machine's, stretched by the fleet file's dilation.
    Without labels the accuracy is the agreement with the whole model. With --connect: of a version of a running fleet,
    measured on its own nodes and links.

    Example:
      edgewise plan model.onnx --data test.npz --policy policy.toml --fleet fleet.toml

    Example:
      edgewise plan --connect tls/127.0.0.1:7447 --identity nodes/operator --policy policy.toml --deploy
    """
    out = Output(as_json)
    fleet_only(
        connect,
        identity=identity,
        version=version,
        model=model,
        device=device,
        deadline=deadline,
        deploy=deploy,
        stages=stages,
        min_requests=min_requests,
        force=force,
    )
    parse_shares(stages)
    if connect:
        if onnx is not None:
            raise InputError("a fleet plans its own versions. To bring a file there: edgewise serve FILE --connect …")
        request = FleetPlanRequest(
            connect,
            identity,
            policy=policy,
            data=data,
            version=version,
            device=device,
            budget=budget,
            deadline=deadline,
            deploy=deploy,
            model=model,
            stages=stages,
            min_requests=min_requests,
            force=force,
            share=share,
        )
        run_async(plan_on_fleet(out, request))
        return
    if onnx is None or data is None:
        raise InputError("give a model and --data with real inputs, or --connect to plan a version of a fleet.")
    graph = load_with_examples(onnx, input_shape, exits, data)
    plan_file(out, graph, data, policy, fleet, profile or (), parse_duration(budget), limit, planner)


def plan_file(
    out: Output,
    graph: Graph,
    data: Path,
    policy: Path | None,
    fleet: Path | None,
    profile: Sequence[Path],
    budget_s: float,
    limit: int,
    planner: str = "",
) -> None:
    """Plans a user's own model.

    Args:
        out: Where to print.
        graph: The model.
        data: Real inputs.
        policy: TOML file; None for no limits.
        fleet: TOML file of links, dilations and powers; None for the defaults.
        profile: Profiles measured on other machines.
        budget_s: Time to measure this machine for.
        limit: Use at most so many examples.
        planner: Spec text of another planner, asked too; "" for none.
    """
    from edgewise.cli.source import read_source
    from edgewise.core.config import load_toml
    from edgewise.inference.evidence import CODECS
    from edgewise.planning.choose import make_search
    from edgewise.planning.policy import Policy
    from edgewise.simulation.emulated.fleet_file import FleetFile

    wanted = Policy() if policy is None else load_toml(policy, Policy)
    file = FleetFile() if fleet is None else load_toml(fleet, FleetFile)
    source = read_source(data, graph.inputs).first(limit)
    given = read_profiles(profile)
    profiles = {**measure(out, graph, file, source, budget_s, given), **given}
    evidence, meaning = evaluate(graph, source)
    codecs = CODECS if evidence else CODECS[:1]
    search = make_search(graph, profiles, links_of(file), wanted, evidence, codecs=codecs, training_domain=DOMAIN)
    other = None if not planner else _other_plan(planner, search, evidence)
    _print(out, search, evidence, meaning, other)


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
    out: Output, search: Search, evidence: tuple[ExitEvidence, ...], meaning: str, other: Plan | None = None
) -> None:
    from edgewise.planning.explain import LEVEL_COLUMNS, explain, level_cells
    from edgewise.planning.levels import plan_levels, recommend

    found: dict[str, Any] = {"accuracy_means": meaning}
    found["levels"] = rows = plan_levels(search, {DOMAIN: evidence})
    found["recommendation"] = chosen = recommend(search)
    out.table("levels of edge intelligence, predicted", LEVEL_COLUMNS, level_cells(rows))
    out.line(f"accuracy is {meaning}")
    out.line(f"recommended, level {chosen.level}: {chosen.reason}")
    for line in explain(chosen.plan):
        out.line(line)
    if other is not None:
        out.line("asked too:")
        for line in explain(other):
            out.line(line)
        found["other"] = other
    out.result({**found, "recommendation": _with_old_words(chosen)})


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
