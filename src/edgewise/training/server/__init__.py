"""What the server does with the mean update. One file per rule; `SERVERS` names them."""

from __future__ import annotations

from collections.abc import Callable

from edgewise.training.algorithm import ServerUpdate
from edgewise.training.server.adam import adam
from edgewise.training.server.momentum import momentum
from edgewise.training.server.step import step

__all__ = ["SERVERS", "adam", "momentum", "step"]

SERVERS: dict[str, Callable[..., ServerUpdate]] = {"adam": adam, "momentum": momentum, "step": step}
