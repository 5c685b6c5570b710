"""`edgewise rollback`: back to the version that served before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgewise.cli.operator_options import AsOperator, InFleet, ToFleet, operator_of
from edgewise.cli.output import AsJson, Output
from edgewise.cli.running import run_async
from edgewise.core.errors import RemoteError

if TYPE_CHECKING:
    from edgewise.fleet.messages import Ack
    from edgewise.fleet.operator.operator import Operator


def command(connect: ToFleet = "", identity: AsOperator = "", fleet: InFleet = "", as_json: AsJson = False) -> None:
    """Restore the version that served before, on every device.

    Example:
      edgewise rollback --connect tls/127.0.0.1:7447 --identity nodes/operator
    """
    out = Output(as_json)

    async def speak() -> Ack:
        async with operator_of(connect, identity, fleet) as operator:
            return await roll_back(operator)

    done = run_async(speak()).details
    out.line(f"version {done['version']} serves again, in place of version {done['from']} (plan epoch {done['epoch']})")
    out.result(done)


async def roll_back(operator: Operator) -> Ack:
    """Asks the coordinator.

    Args:
        operator: Connection to the fleet.

    Returns:
        Its answer; details: version, from, epoch.

    Raises:
        RemoteError: If there is nothing to go back to.
    """
    ack = await operator.rollback()
    if not ack.accepted:
        raise RemoteError(ack.reason)
    return ack
