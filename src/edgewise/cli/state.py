"""`edgewise state`: what nodes keep on their disks and for whom; what nobody needs goes now if that is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from edgewise.cli.operator_options import AsOperator, InFleet, ToFleet, operator_of
from edgewise.cli.output import AsJson, Output
from edgewise.cli.running import run_async
from edgewise.core.units import format_bytes

if TYPE_CHECKING:
    from edgewise.fleet.messages import StateAnswer
    from edgewise.fleet.operator.operator import Operator

COLUMNS = ("held by", "blobs", "bytes", "")


def command(
    node: Annotated[str, typer.Argument(help="Which node; by default the coordinator.")] = "",
    prune: Annotated[bool, typer.Option("--prune", help="Let go of what can go, now.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --prune: only say what would go.")] = False,
    keep_bytes: Annotated[
        int, typer.Option("--keep-bytes", min=0, help="Judge by this budget, this once; 0 for the node's own.")
    ] = 0,
    connect: ToFleet = "",
    identity: AsOperator = "",
    fleet: InFleet = "",
    as_json: AsJson = False,
) -> None:
    """Print what a node keeps on its disk and for whom, and what can go.

    A node lets go of that by itself: at its start, when a run has ended, when another version serves, and twice an hour.

    Example:
      edgewise state edge-1 --connect tls/127.0.0.1:7447 --identity nodes/operator

    Example:
      edgewise state --prune --dry-run --keep-bytes 500000000 --connect tls/127.0.0.1:7447 --identity nodes/operator
    """
    if dry_run and not prune:
        raise typer.BadParameter("--dry-run says what --prune would let go of; say both.")

    async def speak() -> None:
        async with operator_of(connect, identity, fleet) as operator:
            await show(Output(as_json), operator, node, prune=prune and not dry_run, keep_bytes=keep_bytes)

    run_async(speak())


async def show(out: Output, operator: Operator, node: str = "", *, prune: bool = False, keep_bytes: int = 0) -> None:
    """Prints what a node keeps.

    Args:
        out: Where to.
        operator: Connection to the fleet.
        node: Which; "" for the coordinator.
        prune: Whether what can go goes.
        keep_bytes: Budget to judge by; 0 for the node's own.
    """
    from edgewise.core.ids import NodeId
    from edgewise.fleet.messages import StateRequest

    asked = NodeId(node) or operator.coordinator
    found = await operator.state(asked, StateRequest(prune, keep_bytes))
    rows = [
        (row.what, str(row.num_blobs), format_bytes(row.size_bytes), _says(row.is_needed, row.stays))
        for row in found.rows
    ]
    rows.append(("logs, registry", "", format_bytes(found.records_bytes), "needed"))
    kept = sum(row.size_bytes for row in found.rows if row.stays)
    title = f"{asked} keeps {format_bytes(kept)} of blobs, its budget is {format_bytes(found.keep_bytes)}"
    out.table(title, COLUMNS, rows)
    out.line(_going(found, prune=prune))
    out.result({"node": asked, **msgspec.structs.asdict(found), "rows": [*map(msgspec.structs.asdict, found.rows)]})


def _says(is_needed: bool, stays: bool) -> str:
    return "needed" if is_needed else "fits" if stays else "goes"


def _going(found: StateAnswer, *, prune: bool) -> str:
    if found.cause:
        return f"nothing goes: {found.cause}"
    amount = f"{found.num_going} blobs, {format_bytes(found.going_bytes)}"
    if not found.num_going:
        return "nothing is there that could go"
    if not prune:
        return f"{amount}, can go: `edgewise state --prune`"
    later = found.num_going - found.num_gone
    return f"{found.num_gone} of {amount}, went" + (f"; {later} were just asked for and stay a while" if later else "")
