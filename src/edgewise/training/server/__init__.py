"""What the server does with folded sections. One file per rule; `SERVERS` names them. `stepped.py` applies one."""

from __future__ import annotations

from collections.abc import Callable

from edgewise.training.algorithm import ServerRule
from edgewise.training.server.adam import adam
from edgewise.training.server.keep import keep
from edgewise.training.server.momentum import momentum
from edgewise.training.server.step import step
from edgewise.training.server.stepped import Folded, NextState, next_state

__all__ = ["SERVERS", "Folded", "NextState", "adam", "keep", "momentum", "next_state", "step"]

SERVERS: dict[str, Callable[..., ServerRule]] = {
    "adam": adam,
    "keep": keep,
    "momentum": momentum,
    "step": step,
}
