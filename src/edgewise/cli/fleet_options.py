"""Options of verbs that plan and deploy on a running fleet."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from edgewise.core.errors import InputError

VersionNumber = Annotated[
    int, typer.Option("--version", min=0, help="On a fleet: which version; 0 for the newest that may serve.")
]
DeviceName = Annotated[str, typer.Option("--device", help="On a fleet: plan for this device; default: the slowest.")]
RolloutStages = Annotated[
    str, typer.Option("--stages", help="On a fleet: share of devices by stage, e.g. 0.1,0.5,1; default: one by one.")
]
MinRequests = Annotated[
    int, typer.Option("--min-requests", min=0, help="On a fleet: requests a device serves before the next stage.")
]
Share = Annotated[
    float | None,
    typer.Option(
        "--share",
        min=0.001,
        help="On a fleet: the model's weight where a node serves several; default: as before, or 1.",
    ),
]
Force = Annotated[
    bool,
    typer.Option(
        "--force",
        help="On a fleet: serve a version although it is worse than the one in force, or its clients keep a part of it to "
        "themselves; the history keeps what was overridden.",
    ),
]
Ungated = Annotated[
    bool,
    typer.Option(
        "--ungated",
        help="On a fleet: serve a version although no held-out data says whether it is worse than the one in force.",
    ),
]
Deadline = Annotated[
    str, typer.Option("--deadline", help="On a fleet: of a request; default: 3 x the predicted p95, at least 100 ms.")
]


def parse_shares(text: str) -> tuple[float, ...]:
    """Reads `--stages`.

    Args:
        text: e.g. `0.1,0.5,1`; "" for none.

    Returns:
        The shares.

    Raises:
        InputError: If it is written otherwise.
    """
    from edgewise.lifecycle.rollout import stages_by_fraction

    try:
        shares = tuple(float(share) for share in text.split(",") if text)
    except ValueError as error:
        raise InputError(f"{text!r} are no stages. Write them like '0.1,0.5,1'.") from error
    if shares:
        stages_by_fraction((), shares)
    return shares


def fleet_only(connect: str, **given: Any) -> None:
    """Refuses options that mean nothing without a fleet.

    Args:
        connect: As from `--connect`.
        **given: Option -> its value; what is false was not given.

    Raises:
        InputError: It names the option.
    """
    for name, value in given.items():
        if value and not connect:
            raise InputError(f"--{name.replace('_', '-')} is for a running fleet. Say --connect and --identity too.")
