"""Chooses the uplink of a node, as a pure step: the primary while it is up, else the first standby that is."""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec


class UplinkChanged(msgspec.Struct, frozen=True, tag=True):
    """Reports that an uplink's parent appeared or vanished."""

    index: int
    up: bool


class Attach(msgspec.Struct, frozen=True, tag=True):
    """Orders the node to serve on this uplink.

    Attributes:
        index: Which.
        is_return: Whether this returns to the primary uplink.
    """

    index: int
    is_return: bool


@dataclass(frozen=True, slots=True)
class Uplinks:
    """Holds the state of a node's uplinks.

    Attributes:
        up: Per uplink, the primary first, whether its parent is there.
        attached: The one in use.
        returns: How often the node returned to its primary uplink.
    """

    up: tuple[bool, ...]
    attached: int = 0
    returns: int = 0


def step(state: Uplinks, event: UplinkChanged) -> tuple[Uplinks, tuple[Attach, ...]]:
    """Folds a change; with no uplink up the node keeps its last one.

    Args:
        state: So far.
        event: What changed.

    Returns:
        The next state, and whether to attach elsewhere.
    """
    up = tuple(event.up if i == event.index else was for i, was in enumerate(state.up))
    best = next((i for i, there in enumerate(up) if there), state.attached)
    if best == state.attached:
        return replace(state, up=up), ()
    is_return = best == 0
    return Uplinks(up, best, state.returns + is_return), (Attach(best, is_return),)
