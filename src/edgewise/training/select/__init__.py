"""Who takes part in a round. One file per rule; `SELECT` names them."""

from __future__ import annotations

from collections.abc import Callable

from edgewise.training.algorithm import Select
from edgewise.training.select.all_clients import all_clients
from edgewise.training.select.power_of_choice import power_of_choice
from edgewise.training.select.uniform import uniform

__all__ = ["SELECT", "all_clients", "power_of_choice", "uniform"]

SELECT: dict[str, Callable[..., Select]] = {
    "all_clients": all_clients,
    "power_of_choice": power_of_choice,
    "uniform": uniform,
}
