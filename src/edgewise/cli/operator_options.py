"""Options of verbs that speak to a running fleet, and the connection they share."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgewise.core.errors import InputError

if TYPE_CHECKING:
    from edgewise.fleet.operator.operator import Operator

ToFleet = Annotated[str, typer.Option("--connect", help="A router of the fleet, e.g. tls/10.0.0.5:7447.")]
AsOperator = Annotated[str, typer.Option("--identity", help="Folder of a certificate of tier cloud.")]
ModelName = Annotated[str, typer.Option("--model", help="Which model; needed where there are several.")]
InFleet = Annotated[str, typer.Option("--fleet", help="Name of the fleet; by default the certificate's.")]


def fleet_of(identity: str, fleet: str) -> str:
    """The fleet a certificate is of.

    Args:
        identity: Folder of the certificate.
        fleet: What the user said; "" for the certificate's own.

    Returns:
        The name.

    Raises:
        InputError: If both are said and differ, or there is no certificate.
    """
    from edgewise.security.identity import Identity

    if not identity:
        raise InputError(
            "no identity given. Say --identity FOLDER with ca.pem, node.pem and node.key; `edgewise ca issue` makes one."
        )
    own = Identity.load(identity).fleet
    if fleet and fleet != own:
        raise InputError(
            f"the certificate in {identity!r} is of fleet {own!r}, --fleet says {fleet!r}. "
            "Leave --fleet out, or use a certificate of that fleet's authority."
        )
    return own


@asynccontextmanager
async def operator_of(connect: str, identity: str, fleet: str) -> AsyncIterator[Operator]:
    """Connects to a fleet.

    Args:
        connect: Endpoint, as from `--connect`.
        identity: Folder, as from `--identity`.
        fleet: Name, as from `--fleet`.

    Yields:
        The operator.

    Raises:
        InputError: If one is missing or does not fit.
        Unreachable: With the cause, within five seconds.
    """
    from edgewise.core.environment import setting
    from edgewise.fleet.operator.operator import connect_operator
    from edgewise.security.identity import Identity

    if not connect:
        raise InputError("no fleet given. Say --connect tls/HOST:PORT, the endpoint that its coordinator printed.")
    name = fleet_of(identity, fleet)
    logging.getLogger("edgewise").setLevel(logging.ERROR)  # a node's log, not a person's answer
    state = Path(str(setting("state"))) / str(Identity.load(identity).node)
    async with connect_operator(Path(identity), connect, state, name) as operator:
        yield operator
