"""How updates become one. One file per rule; `AGGREGATORS` names them. Start with `weighted_mean.py`."""

from __future__ import annotations

from collections.abc import Callable

from edgewise.training.aggregate.weighted_mean import weighted_mean
from edgewise.training.algorithm import Aggregator

__all__ = ["AGGREGATORS", "weighted_mean"]

AGGREGATORS: dict[str, Callable[..., Aggregator]] = {"weighted_mean": weighted_mean}
