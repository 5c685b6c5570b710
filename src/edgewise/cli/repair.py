"""`edgewise repair`: what is damaged in a state folder, and who gives it again."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgewise.cli.operator_options import AsOperator, InFleet, ToFleet, operator_of
from edgewise.cli.output import AsJson, Output
from edgewise.cli.running import run_async

if TYPE_CHECKING:
    from edgewise.fleet.store.repair import StateCheck


def command(
    state: Annotated[Path, typer.Option("--state", help="A node's state folder, on its machine.")],
    connect: ToFleet = "",
    identity: AsOperator = "",
    fleet: InFleet = "",
    as_json: AsJson = False,
) -> None:
    """Check every blob and row of a state folder, also while its node runs; fetch damaged blobs again with --connect.

    A damaged blob is moved aside, so that its node takes it for missing. Ends with code 1 while something is damaged.

    Example:
      edgewise repair --state cloud-state --connect tls/127.0.0.1:7447 --identity nodes/operator
    """
    from edgewise.fleet.store.repair import check_state

    found = check_state(state)
    if connect and found.damages:
        found = run_async(_fetched(found, connect, identity, fleet))
    show(Output(as_json), found)
    raise typer.Exit(1 if found.unmended else 0)


def show(out: Output, found: StateCheck) -> None:
    """Prints what was found, one thing after the other."""
    for damage in found.damages:
        users = f"; needed by {', '.join(damage.needed_by)}" if damage.needed_by else ""
        end = f"It was fetched again from {damage.mended_by}." if damage.mended_by else damage.cure
        out.line(f"{damage.kind} {damage.name[:12]} in {damage.path}: {damage.cause}{users}. {end}")
    wrong = len(found.unmended)
    out.line(f"{found.state}: {found.blobs} blobs, {found.rows} rows, {wrong} damaged" if wrong else
             f"{found.state}: {found.blobs} blobs, {found.rows} rows, all as they were written")  # fmt: skip
    out.result(found)


async def _fetched(found: StateCheck, connect: str, identity: str, fleet: str) -> StateCheck:
    from edgewise.fleet.operator.refetch import fetch_from_anybody
    from edgewise.fleet.store.repair import fetch_damaged

    async with operator_of(connect, identity, fleet) as operator:
        return await fetch_damaged(found, partial(fetch_from_anybody, operator))
