"""`edgewise runs`: all training runs of a fleet; one of them stopped, or gone on with."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
import typer

from edgewise.cli.main import help_text, make_app
from edgewise.cli.operator_options import AsOperator, InFleet, ToFleet, operator_of
from edgewise.cli.output import AsJson, Output
from edgewise.cli.running import run_async

if TYPE_CHECKING:
    from edgewise.fleet.messages import RunList
    from edgewise.fleet.operator.operator import Operator

F = TypeVar("F", bound=Callable[..., Any])
app = make_app()
COLUMNS = ("run", "task", "protocol", "state", "rounds", "loss", "accuracy", "version", "submitted")
RunName = Annotated[str, typer.Argument(help="The run's name, as `edgewise runs` lists it.")]


@app.callback(invoke_without_command=True, help="List all training runs of a fleet, or cancel or resume one.")
def listed(
    ctx: typer.Context,
    connect: ToFleet = "",
    identity: AsOperator = "",
    fleet: InFleet = "",
    as_json: AsJson = False,
) -> None:
    """Lists all runs where no verb is said."""
    if ctx.invoked_subcommand is None:
        list_runs(connect, identity, fleet, as_json)


def _verb(name: str) -> Callable[[F], F]:
    return lambda function: app.command(name, help=help_text(function))(function)


@_verb("list")
def list_runs(connect: ToFleet = "", identity: AsOperator = "", fleet: InFleet = "", as_json: AsJson = False) -> None:
    """List all runs, oldest first; `edgewise runs` alone does the same.

    Example:
      edgewise runs list --connect tls/127.0.0.1:7447 --identity nodes/operator
    """

    async def speak() -> None:
        async with operator_of(connect, identity, fleet) as operator:
            show(Output(as_json), await operator.runs())

    run_async(speak())


@_verb("cancel")
def cancel(
    run: RunName, connect: ToFleet = "", identity: AsOperator = "", fleet: InFleet = "", as_json: AsJson = False
) -> None:
    """Stop a run; its rounds so far stay, and it can be resumed.

    Example:
      edgewise runs cancel digits-1 --connect tls/127.0.0.1:7447 --identity nodes/operator
    """

    async def speak() -> None:
        async with operator_of(connect, identity, fleet) as operator:
            await stop(Output(as_json), operator, run)

    run_async(speak())


@_verb("resume")
def resume(
    run: RunName,
    name: Annotated[
        str, typer.Option("--name", help="Of the run that goes on; by default the task's and a number.")
    ] = "",
    connect: ToFleet = "",
    identity: AsOperator = "",
    fleet: InFleet = "",
    as_json: AsJson = False,
) -> None:
    """Go on with a run that ended early, as a new run from its last closed round.

    It does the rounds that are left, with the same job and what server and clients kept; a client whose kept state is gone is
    named, and begins anew. A run whose coordinator was started again goes on by itself.

    Example:
      edgewise runs resume digits-1 --connect tls/127.0.0.1:7447 --identity nodes/operator
    """

    async def speak() -> None:
        async with operator_of(connect, identity, fleet) as operator:
            await go_on(Output(as_json), operator, run, name, f"--connect {connect} --identity {identity}")

    run_async(speak())


def show(out: Output, found: RunList) -> None:
    """Prints all runs, and why those ended that did not complete.

    Args:
        out: Where to.
        found: The coordinator's answer.
    """
    rows = []
    for row in found.runs:
        numbers = ["" if value != value else f"{value:.4f}" for value in (row.loss, row.accuracy)]
        submitted = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row.submitted_s))
        of = f"{row.rounds_done}/{row.num_rounds}"
        words = (row.run, row.task, row.protocol, row.state, of)
        rows.append((*words, *numbers, str(row.version or ""), submitted))
    out.table(f"{len(rows)} runs", COLUMNS, rows)
    for row in found.runs:
        if row.cause and row.state != "completed":
            out.line(f"{row.run}: {row.cause}")
    out.result({"runs": [msgspec.structs.asdict(row) for row in found.runs]})


async def stop(out: Output, operator: Operator, run: str) -> None:
    """Stops a run.

    Args:
        out: Where to print how it stands.
        operator: Connection to the fleet.
        run: Which.
    """
    from edgewise.core.ids import RunId

    await operator.cancel(RunId(run))
    async for status in operator.watch(RunId(run)):
        if status.state != "running":
            break
    out.line(f"{run} {status.state}: {status.cause} {len(status.rounds)} rounds stay.")
    out.result({"run": run, "state": status.state, "cause": status.cause, "rounds": len(status.rounds)})


async def go_on(out: Output, operator: Operator, run: str, name: str, where: str) -> None:
    """Goes on with a run.

    Args:
        out: Where to print the new run's name.
        operator: Connection to the fleet.
        run: Which.
        name: Of the new run; "" lets the coordinator name it.
        where: Options that lead to the fleet.
    """
    from edgewise.core.ids import RunId

    new = await operator.resume(RunId(run), name)
    out.line(f"{run} goes on as {new}; look at it: edgewise train --follow {new} {where}")
    out.result({"run": new, "resumed": run})
