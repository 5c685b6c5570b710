"""`edgewise retrain`: whenever a model's answers become worse, it is trained anew and rolled out, without a person."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgewise.cli.fleet_options import Deadline, Force, Ungated
from edgewise.cli.fleet_plan import plan_and_deploy
from edgewise.cli.fleet_plan_request import FleetPlanRequest, policy_of
from edgewise.cli.operator_options import AsOperator, ToFleet, operator_of
from edgewise.cli.output import AsJson, Output
from edgewise.cli.running import run_async
from edgewise.cli.train import TrainingSession, read_job, source_of

if TYPE_CHECKING:
    from edgewise.lifecycle.loop import LoopSettings, LoopState, TimelineNote
    from edgewise.models.task import Task
    from edgewise.training.job import JobFile


def command(
    job: Annotated[Path, typer.Argument(help="TOML: the task, and how it is trained anew.")],
    connect: ToFleet = "",
    identity: AsOperator = "",
    change: Annotated[list[str] | None, typer.Option("--set", help="Override a key, e.g. training.rounds=3.")] = None,
    labels: Annotated[
        str,
        typer.Option(
            "--labels", help="Who labels hard examples: feedback (if nothing is said), or teacher (the model in force)."
        ),
    ] = "",
    teacher: Annotated[int, typer.Option("--teacher", min=0, help="This version labels them, on the devices.")] = 0,
    min_labels: Annotated[
        int, typer.Option("--min-labels", min=1, help="Labelled examples in the fleet before it trains.")
    ] = 40,
    policy: Annotated[
        Path | None,
        typer.Option("--policy", help="TOML: limits that every new plan keeps; default: the policy in force."),
    ] = None,
    budget: Annotated[str, typer.Option("--budget", help="Time to measure each node of a new version for.")] = "3 s",
    deadline: Deadline = "",
    turns: Annotated[int, typer.Option("--turns", min=0, help="End after so many turns; 0 goes on until ctrl-C.")] = 0,
    force: Force = False,
    ungated: Ungated = False,
    as_json: AsJson = False,
) -> None:
    """Retrain a model of a running fleet whenever its answers become worse.

    The model is the one of the job's task. Waits until labels prove that answers are wrong more often, and enough hard examples have labels; a change of the inputs alone is
    told, and trained on only with a teacher, unless it is another mix of classes. Then tries versions that served before: one that is surely better on those examples, and passes the gate, is rolled out again. Else trains from the
    version in force, and, if the gate lets the new one pass, plans it and rolls it out. After three turns without success it ends with exit code 1.

    Example:
      edgewise retrain job.toml --connect tls/127.0.0.1:7447 --identity nodes/operator
    """
    from edgewise.lifecycle.loop import LoopSettings

    out, read = Output(as_json), read_job(job, change or [])
    source = source_of(True, labels, teacher)
    request = FleetPlanRequest(
        connect, identity, policy, budget=budget, deadline=deadline, deploy=True, force=force, ungated=ungated
    )
    policy_of(policy)  # what is wrong with it is said now, not at the first drift
    state = run_async(retrain(out, request, read, source, teacher, LoopSettings(min_labels), turns))
    out.result({"version": state.version, "outcomes": state.outcomes, "timeline": state.timeline})
    if state.is_given_up:
        raise typer.Exit(1)


async def retrain(
    out: Output,
    request: FleetPlanRequest,
    read: tuple[JobFile, Task],
    source: str,
    teacher: int,
    settings: LoopSettings,
    turns: int,
) -> LoopState:
    """Connects, and drives the loop.

    Args:
        out: Where to print.
        request: Where the fleet is, and what plans keep to.
        read: Job and task.
        source: Spec of the source of labels.
        teacher: Version that labels; 0 for the one in force.
        settings: Of the loop.
        turns: As `RetrainingLoop.run`.

    Returns:
        The loop at its end.
    """
    from edgewise.fleet.operator.retraining import RetrainingLoop

    def on_note(note: TimelineNote) -> None:
        if out.as_json:
            out.event("loop", time_s=note.time, phase=note.phase, text=note.text)
        else:
            out.line(f"{note.time:8.1f} s  {note.phase}: {note.text}")

    async with operator_of(request.connect, request.identity, "") as operator:

        async def train(parent: int) -> tuple[int, str]:
            session = TrainingSession(out)
            status = await session.train(operator, read, start_version=parent, labels=source, teacher_version=teacher)
            return status.version, status.cause or f"run {status.run} ended as {status.state} without a version"

        async def roll_out(number: int, why: str) -> None:
            version = next(v for v in (await operator.versions()).versions if v.number == number)
            found = await plan_and_deploy(out, replace(request, why=why), policy_of(request.policy), operator, version)
            out.event("deployed", **found["deployed"])

        loop = RetrainingLoop(
            operator,
            read[1].name,
            settings,
            labels=source,
            force=request.force,
            ungated=request.ungated,
            train=train,
            roll_out=roll_out,
            on_note=on_note,
            on_unreachable=lambda cause: out.event("coordinator_away", cause=cause),
        )
        return await loop.run(turns)
