"""Candidates of `plan --connect` beside the version itself: it in int8, and other files, measured where they would run.

A variant that is recommended becomes a version of its own, made from the one that was planned, and goes through its gate.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgewise.api.own_evidence import evaluate
from edgewise.api.stand_ins import StandIns, stand_ins
from edgewise.core.errors import InputError, RemoteError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgewise.api.source import Source
    from edgewise.fleet.messages import NodeInfo
    from edgewise.fleet.operator.operator import Operator
    from edgewise.fleet.serving.fleet_planning import Measured
    from edgewise.models.graph.graph import Graph
    from edgewise.models.version import ExitEvidence, ModelVersion
    from edgewise.planning.plan import Plan
    from edgewise.planning.search import Search

NO_INPUTS = "int8 is no candidate: what its activations' ranges are is told by real inputs; give --data"


@dataclass(frozen=True, slots=True)
class Beside:
    """Candidates beside a version.

    Attributes:
        searches: What their plans are made from.
        graphs: By variant.
        evidence: Of their exits, by variant.
        int8_bytes: The version in int8; empty if it cannot be made, or was not.
        notes: Why something is no candidate.
    """

    searches: tuple[Search, ...] = ()
    graphs: dict[str, Graph] = field(default_factory=dict)
    evidence: dict[str, tuple[ExitEvidence, ...]] = field(default_factory=dict)
    int8_bytes: bytes = b""
    notes: tuple[str, ...] = ()


async def make_stand_ins(graph: Graph, source: Source | None, files: Sequence[Path]) -> StandIns:
    """Makes the variants of a version.

    Args:
        graph: Of the version.
        source: Real inputs; None makes no int8.
        files: Other ONNX files.

    Returns:
        The graphs, or why there are none.

    Raises:
        InputError: If there are files and nothing to evaluate them on, or as `stand_ins`.
    """
    if source is not None:
        return await asyncio.to_thread(stand_ins, graph, source, files)
    if files:
        raise InputError("how accurate a variant is cannot be told without inputs. Give --data too.")
    return StandIns(notes=(NO_INPUTS,))


async def passing(operator: Operator, found: StandIns, model: str) -> StandIns:
    """Leaves the variants that may serve: one that its gate would refuse is no candidate.

    Args:
        operator: Connection to the fleet.
        found: As of `make_stand_ins`.
        model: Whose variants they are.

    Returns:
        The others, with a sentence of each that is left out.
    """
    refused = await operator.refusals({name: each.model_bytes for name, each in found.graphs.items()}, task=model)
    graphs = {name: graph for name, graph in found.graphs.items() if name not in refused}
    return replace(found, graphs=graphs, notes=(*found.notes, *refused.values()))


async def measure_beside(
    operator: Operator,
    graph: Graph,
    found: StandIns,
    source: Source | None,
    chain: Sequence[NodeInfo],
    of_version: tuple[Search, Measured],
    *,
    budget_s: float,
    done: Callable[[str], None],
) -> Beside:
    """Lets the nodes measure the variants as they measured the version.

    Args:
        operator: Connection to the fleet.
        graph: Of the version.
        found: Its variants.
        source: What they are evaluated on; without labels by their agreement with the version.
        chain: Who measures.
        of_version: What the version's plans are made from, and what was measured of it: links are measured once.
        budget_s: Seconds of measuring per node and variant.
        done: Takes each node that is done.

    Returns:
        The candidates.
    """
    from edgewise.fleet.serving.fleet_planning import Measured, measure, search_of
    from edgewise.models.graph.input_hints import hints_of

    search, measured = of_version
    searches: list[Search] = []
    evidence: dict[str, tuple[ExitEvidence, ...]] = {}
    for name, each in found.graphs.items():
        assert source is not None, "variants are made from it"

        def told(node: str, name: str = name) -> None:
            done(f"{node}, {name}")

        taken = await measure(
            operator,
            each.model_bytes,
            chain,
            budget_s=budget_s,
            probes_links=False,
            hints=hints_of(each),
            done=told,
        )
        evidence[name], _ = await asyncio.to_thread(evaluate, each, source, graph)
        costs = Measured(taken.profiles, measured.links)
        searches.append(search_of(each, costs, search.policy, evidence[name], search.training_domain, variant=name))
    return Beside(tuple(searches), found.graphs, evidence, found.int8_bytes, found.notes)


async def version_of(operator: Operator, version: ModelVersion, plan: Plan, beside: Beside) -> ModelVersion:
    """The version that a plan serves: the one that was planned, or its variant as a version of its own.

    Args:
        operator: Connection to the fleet.
        version: What was planned.
        plan: What is recommended.
        beside: The candidates.

    Returns:
        The version; a variant that the fleet knows already is not registered again.

    Raises:
        RemoteError: If the fleet does not take it.
    """
    if plan.graph == version.graph or plan.variant not in beside.graphs:
        return version
    known = (await operator.versions()).versions
    same = next((v for v in known if v.graph == plan.graph and v.task == version.task), None)
    if same is not None:
        return same
    origin = f"{plan.variant} of version {version.number}"
    data = beside.graphs[plan.variant].model_bytes
    ack = await operator.register(data, task=version.task, origin=origin, parent=version.number)
    if not ack.accepted:
        raise RemoteError(f"{origin} was not registered: {ack.reason}")
    return next(v for v in (await operator.versions()).versions if v.number == ack.version)
