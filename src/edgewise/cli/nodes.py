"""`edgewise nodes`: who is in a running fleet, and what they can do."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from edgewise.cli.operator_options import AsOperator, InFleet, ToFleet, operator_of
from edgewise.cli.output import AsJson, Output
from edgewise.cli.running import run_async

if TYPE_CHECKING:
    from edgewise.fleet.messages import DriftStatus, FleetAnswer, NodeRow, Versions

COLUMNS = (
    "node",
    "tier",
    "state",
    "parent",
    "GFLOP/s",
    "dilation",
    "client",
    "task",
    "examples",
    "models",
    "http",
)
WATCH_EVERY_S = 0.5


def command(
    connect: ToFleet = "",
    identity: AsOperator = "",
    fleet: InFleet = "",
    watch: Annotated[bool, typer.Option("--watch", help="Go on, and say what changes; ctrl-C ends it.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the nodes of a running fleet and what they can do.

    Example:
      edgewise nodes --connect tls/127.0.0.1:7447 --identity nodes/operator
    """
    with suppress(KeyboardInterrupt) if watch else nullcontext():
        run_async(list_nodes(Output(as_json), connect, identity, fleet, watch))


async def list_nodes(out: Output, connect: str, identity: str, fleet: str, watch: bool) -> None:
    """Prints the fleet, once or until ctrl-C.

    Args:
        out: Where to.
        connect: Endpoint of the fleet.
        identity: The operator's folder.
        fleet: Its name; "" for the certificate's.
        watch: Whether to go on.
    """
    async with operator_of(connect, identity, fleet) as operator:
        answer = await operator.nodes(fresh=True)
        show(out, answer, cautions(await operator.versions()))
        while watch:
            await asyncio.sleep(WATCH_EVERY_S)
            before, answer = answer, await operator.nodes(fresh=True)
            for name, change in changes(before, answer).items():
                out.event("node_changed", node=name, **change)


def cautions(known: Versions) -> dict[str, str]:
    """What to know of the versions in force, by model; one that is whole is not named."""
    in_force = set(known.in_force.values())
    return {v.task: v.caution for v in known.versions if v.number in in_force and v.caution}


def show(out: Output, answer: FleetAnswer, caution: Mapping[str, str] = MappingProxyType({})) -> None:
    """Prints a table of nodes, who is not well and why, and what was refused.

    Args:
        out: Where to.
        answer: The coordinator's view.
        caution: As from `cautions`.
    """
    tiers = ("cloud", "edge", "device")
    rows = sorted(answer.nodes, key=lambda row: (tiers.index(row.info.tier), row.info.node))
    out.table(f"{len(rows)} nodes", COLUMNS, [cells(row) for row in rows])
    for row in rows:
        if row.cause:
            out.line(f"{row.info.node}: {row.cause}")
    for what, times in answer.refused.items():
        out.line(f"refused {times} times: {what}")
    for name, known in answer.monitors.items():
        out.line(f"{name}: {monitored(known)}")
    for name, sentence in caution.items():
        out.line(f"{name}: {sentence}")
    out.result(
        {
            "nodes": [plain(row) for row in rows],
            "refused": answer.refused,
            "drift": answer.drift,
            "monitors": {name: msgspec.to_builtins(known) for name, known in answer.monitors.items()},
            "caution": dict(caution),
        }
    )


def monitored(known: DriftStatus) -> str:
    """What the drift monitors of a version know, in a line or two.

    Args:
        known: The numbers.

    Returns:
        What was found, the evidence with its threshold, the labels held, and what is waited for.
    """
    evidence = [
        f"{name} {value:.3g} of {known.threshold:g}"
        for name, value in (("harm", known.harm_statistic), ("change", known.change_statistic))
        if value is not None
    ]
    risk = "" if known.risk is None else f", {known.risk:.1%} wrong (held-out {known.risk_reference or 0.0:.1%})"
    found = known.sentence or "no drift found."
    return (
        f"{found} Version {known.version}: evidence of {' and of '.join(evidence) or 'nothing'}; {known.num_requests} requests, "
        f"{known.num_labels} labels{risk}. Waits for {known.waits_for}."
    )


def plain(row: NodeRow) -> dict[str, Any]:
    """A node as `--json` prints it, without its certificate."""
    info = row.info
    return {
        "node": info.node,
        "tier": info.tier,
        "state": row.state,
        "cause": row.cause,
        "parent": info.parent,
        "coordinator": info.coordinator,
        "capability": info.capability,
        "client": info.client,
        "task": info.task,
        "examples": info.num_examples,
        "label_counts": info.label_counts,
        "models": info.models,
        "http_port": info.http_port,
    }


def cells(row: NodeRow) -> tuple[str, ...]:
    """A node as a row of `COLUMNS`."""
    info, can = row.info, row.info.capability
    examples, port = (str(number) if number else "" for number in (info.num_examples, info.http_port))
    models = ", ".join(f"{name} {of.version} (plan {of.revision})" for name, of in info.models.items())
    return (
        info.node,
        str(info.tier),
        row.state,
        info.parent,
        f"{can.flops / 1e9:.1f}",
        f"{can.dilation:g}",
        info.client,
        info.task,
        examples,
        models,
        port,
    )


def changes(before: FleetAnswer, after: FleetAnswer) -> dict[str, dict[str, Any]]:
    """What is new since the last look.

    Args:
        before: The last view.
        after: This one.

    Returns:
        By node, the fields that have other values.
    """
    known = {row.info.node: plain(row) for row in before.nodes}
    found = {}
    for row in after.nodes:
        now, was = plain(row), known.get(row.info.node, {})
        fields = ("state", "cause", "parent", "models", "http_port", "examples")
        change = {name: now[name] for name in fields if now[name] != was.get(name)}
        if change:
            found[str(row.info.node)] = change
    return found
