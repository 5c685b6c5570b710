"""How updates become one. One file per rule; `AGGREGATORS` names them, `WEIGHTS` what an update may count. Start with `weighted_mean.py`."""

from __future__ import annotations

from collections.abc import Callable

from edgewise.training.aggregate.collect import collected
from edgewise.training.aggregate.coordinate_median import coordinate_median
from edgewise.training.aggregate.trimmed_mean import trimmed_mean
from edgewise.training.aggregate.weigh import WEIGHTS, examples, loss, make_weigh, staleness, uniform
from edgewise.training.aggregate.weighted_mean import weighted_mean
from edgewise.training.algorithm import Aggregator

__all__ = [
    "AGGREGATORS",
    "WEIGHTS",
    "collected",
    "coordinate_median",
    "examples",
    "loss",
    "make_weigh",
    "staleness",
    "trimmed_mean",
    "uniform",
    "weighted_mean",
]

AGGREGATORS: dict[str, Callable[..., Aggregator]] = {
    "coordinate_median": coordinate_median,
    "trimmed_mean": trimmed_mean,
    "weighted_mean": weighted_mean,
}
