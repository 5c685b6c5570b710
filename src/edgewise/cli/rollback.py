"""`edgewise rollback`: back to the version that served before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgewise.cli.operator_options import AsOperator, InFleet, ToFleet, operator_of, run_async
from edgewise.cli.output import AsJson, Output
from edgewise.core.errors import RemoteError

if TYPE_CHECKING:
    from edgewise.fleet.messages import Ack


def command(connect: ToFleet = "", identity: AsOperator = "", fleet: InFleet = "", as_json: AsJson = False) -> None:
    """Restore the version that served before, on every device.

    Example:
      edgewise rollback --connect tls/127.0.0.1:7447 --identity nodes/operator
    """
    out = Output(as_json)
    done = run_async(roll_back(connect, identity, fleet)).details
    out.line(f"version {done['version']} serves again, in place of version {done['from']} (plan epoch {done['epoch']})")
    out.result(done)


async def roll_back(connect: str, identity: str, fleet: str) -> Ack:
    """Asks the coordinator.

    Args:
        connect: Endpoint of the fleet.
        identity: The operator's folder.
        fleet: Its name; "" for the certificate's.

    Returns:
        Its answer; details: version, from, epoch.

    Raises:
        RemoteError: If there is nothing to go back to.
    """
    async with operator_of(connect, identity, fleet) as operator:
        ack = await operator.rollback()
    if not ack.accepted:
        raise RemoteError(ack.reason)
    return ack
