"""`edgewise versions`: the model versions of a fleet, what became of them at the gate, and what served when."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgewise.cli.operator_options import AsOperator, InFleet, ToFleet, operator_of
from edgewise.cli.output import AsJson, Output
from edgewise.cli.running import run_async

if TYPE_CHECKING:
    from edgewise.fleet.messages import Versions
    from edgewise.models.version import ModelVersion

COLUMNS = ("version", "model", "from", "parent", "accuracy", "gate", "in force")


def command(
    connect: ToFleet = "",
    identity: AsOperator = "",
    fleet: InFleet = "",
    model: Annotated[str, typer.Option("--model", help="Only this model's.")] = "",
    as_json: AsJson = False,
) -> None:
    """List the model versions of a fleet, and the history of what served.

    Example:
      edgewise versions --connect tls/127.0.0.1:7447 --identity nodes/operator
    """

    async def speak() -> None:
        async with operator_of(connect, identity, fleet) as operator:
            show(Output(as_json), await operator.versions(), model)

    run_async(speak())


def show(out: Output, known: Versions, model: str = "") -> None:
    """Prints versions and history.

    Args:
        out: Where to.
        known: The coordinator's answer.
        model: Only this one; "" for all.
    """
    from edgewise.models.model_choice import choose_model

    if model:
        choose_model({v.task for v in known.versions}, model, are="there")
    versions = [v for v in known.versions if model in ("", v.task)]
    history = [line for line in known.history if model in ("", line.model)]
    out.table(f"{len(versions)} versions", COLUMNS, [cells(v, known) for v in versions])
    for version in versions:
        for text in (version.gate.reason if version.gate is not None else "", version.caution):
            if text:
                out.line(f"version {version.number}: {text}")
    for text in known.damaged.values():
        out.line(f"damaged: {text}")
    for line in history:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(line.time_s))
        note = f"; {line.note}" if line.note else ""
        out.line(f"{when}  version {line.version} of {line.model} came into force{note}")
    out.result(
        {
            "versions": [plain(v, known) for v in versions],
            "history": history,
            "policies": known.policies,
            "damaged": known.damaged,
        }
    )


def cells(version: ModelVersion, known: Versions) -> tuple[str, ...]:
    """A version as a row of `COLUMNS`."""
    found = plain(version, known)
    accuracy = "" if found["accuracy"] is None else f"{found['accuracy']:.3f}"
    gate = "" if version.gate is None else "passed" if version.gate.passed else "refused"
    against = f", against {version.gate.reference}" if version.gate is not None and version.gate.reference else ""
    is_in_force = "yes" if found["in_force"] else ""
    source = str(version.run) or version.origin
    return (str(version.number), version.task, source, str(version.parent or ""), accuracy, gate + against, is_in_force)


def plain(version: ModelVersion, known: Versions) -> dict[str, Any]:
    """A version as `--json` prints it."""
    end = max(version.evidence, key=lambda e: e.exit_index, default=None)
    return {
        "version": version.number,
        "model": version.task,
        "run": version.run,
        "origin": version.origin,
        "parent": version.parent,
        "accuracy": None if end is None else end.accuracy_all,
        "gate": version.gate,
        "in_force": known.in_force.get(version.task) == version.number,
        "caution": version.caution,
        "graph": version.graph,
        "examples": version.data,
    }
