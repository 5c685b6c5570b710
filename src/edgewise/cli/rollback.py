"""`edgewise rollback`: back to the version of a model that served before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgewise.cli.operator_options import AsOperator, InFleet, ModelName, ToFleet, operator_of
from edgewise.cli.output import AsJson, Output
from edgewise.cli.running import run_async
from edgewise.core.errors import RemoteError

if TYPE_CHECKING:
    from edgewise.fleet.messages import RollbackAck
    from edgewise.fleet.operator.operator import Operator


def command(
    connect: ToFleet = "",
    identity: AsOperator = "",
    fleet: InFleet = "",
    model: ModelName = "",
    as_json: AsJson = False,
) -> None:
    """Restore the version of a model that served before, on every device; a rollout in progress is taken back.

    Example:
      edgewise rollback --connect tls/127.0.0.1:7447 --identity nodes/operator
    """
    out = Output(as_json)

    async def speak() -> RollbackAck:
        async with operator_of(connect, identity, fleet) as operator:
            return await roll_back(operator, model)

    done = run_async(speak())
    again = f"version {done.version} serves again (plan revision {done.revision})" if done.version else "nothing serves"
    out.line(f"{done.model}: {again}, in place of version {done.taken_back}")
    numbers = {"version": done.version, "from": done.taken_back, "revision": done.revision}
    out.result({"model": done.model, **numbers})


async def roll_back(operator: Operator, model: str = "") -> RollbackAck:
    """Asks the coordinator.

    Args:
        operator: Connection to the fleet.
        model: Which model; "" for the only one there is.

    Returns:
        Its answer.

    Raises:
        RemoteError: If there is nothing to go back to.
    """
    ack = await operator.rollback(model)
    if not ack.accepted:
        raise RemoteError(ack.reason)
    return ack
