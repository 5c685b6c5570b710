"""Local work on a client's data: a loop and rules (`rule.py`, `local_loop.py`), engines that answer their questions (`engines/`).

    engine = make_engine("sequential", task)                     # or choose_engine(task, work, sample).engine
    result = engine.work_one(sgd(0.1), {"model": vector}, {}, task.data(client), seeds)
    result.sent["model"], result.kept, result.loss

A rule is a file of its own, e.g. `descent.py`; directions of a step are in `directions.py`. `evaluate.py` runs a flat vector
on examples. Engines import torch; this package itself does not.
"""

from edgewise.training.local.descent import descent
from edgewise.training.local.directions import DIRECTIONS, StepDirection, clipped, gradient, proximal
from edgewise.training.local.engines.choice import ENGINES, EngineChoice, choose_engine, make_engine
from edgewise.training.local.engines.engine import LocalEngine, LocalResult, Progress
from edgewise.training.local.local_loop import descend
from edgewise.training.local.only import only
from edgewise.training.local.personal import own_patterns, personal
from edgewise.training.local.rule import GRADIENT, HVP, LOSS, OUTPUTS, LocalWork, Loop, Oracle, Rule
from edgewise.training.local.sgd import LOCAL_WORK, RULES, local_work, sgd, with_each, with_rules

__all__ = [
    "DIRECTIONS",
    "ENGINES",
    "GRADIENT",
    "HVP",
    "LOCAL_WORK",
    "LOSS",
    "OUTPUTS",
    "RULES",
    "EngineChoice",
    "LocalEngine",
    "LocalResult",
    "LocalWork",
    "Loop",
    "Oracle",
    "Progress",
    "Rule",
    "StepDirection",
    "choose_engine",
    "clipped",
    "descend",
    "descent",
    "gradient",
    "local_work",
    "make_engine",
    "only",
    "own_patterns",
    "personal",
    "proximal",
    "sgd",
    "with_each",
    "with_rules",
]
