"""Which uplink a node uses, as a pure step: home while it is there, else the first standby that is; home again when it returns."""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec


class UplinkChanged(msgspec.Struct, frozen=True, tag=True):
    """An uplink's parent appeared or vanished."""

    index: int
    up: bool


class Attach(msgspec.Struct, frozen=True, tag=True):
    """Serve on this uplink from now on.

    Attributes:
        index: Which.
        home: Whether this is the way home after an absence.
    """

    index: int
    home: bool


@dataclass(frozen=True, slots=True)
class Uplinks:
    """What is known of a node's uplinks.

    Attributes:
        up: Per uplink, home first, whether its parent is there.
        attached: The one in use.
        returns: How often the node came home again.
    """

    up: tuple[bool, ...]
    attached: int = 0
    returns: int = 0


def step(state: Uplinks, event: UplinkChanged) -> tuple[Uplinks, tuple[Attach, ...]]:
    """Folds a change; with no uplink left the node keeps its last one and waits.

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
    home = best == 0
    return Uplinks(up, best, state.returns + home), (Attach(best, home),)
