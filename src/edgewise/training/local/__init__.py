"""Local work on a client's data: a loop and rules (`rule.py`, `local_loop.py`), engines that answer their questions (`engines/`).

    engine = make_engine("sequential", task)                     # or choose_engine(task, work, sample).engine
    result = engine.work_one(sgd(0.1), {"model": vector}, {}, task.data(client), seeds)
    result.sent["model"], result.kept, result.loss

A rule is a file of its own, e.g. `descent.py`; momentum and Adam are in `optimisers.py`, what scales their rate in
`schedules.py`, directions of a step in `directions.py`. `evaluate.py` runs a flat vector
on examples. Engines import torch; this package itself does not.
"""

from edgewise.training.local.accumulated import accumulated
from edgewise.training.local.descent import descent
from edgewise.training.local.directions import DIRECTIONS, StepDirection, clipped, gradient, proximal
from edgewise.training.local.engines.choice import ENGINES, EngineChoice, choose_engine, make_engine
from edgewise.training.local.engines.engine import LocalEngine, LocalResult, Progress
from edgewise.training.local.frozen import frozen
from edgewise.training.local.local_loop import descend
from edgewise.training.local.only import only
from edgewise.training.local.optimisers import adam_step, momentum_step
from edgewise.training.local.personal import own_patterns, personal
from edgewise.training.local.rule import GRADIENT, HVP, LOSS, OUTPUTS, LocalWork, Loop, Oracle, Rule
from edgewise.training.local.schedules import SCHEDULES, RateSchedule, cosine, exponential, linear
from edgewise.training.local.sgd import LOCAL_WORK, RULES, adam, adam_w, local_work, sgd, with_each, with_rules

__all__ = [
    "DIRECTIONS",
    "ENGINES",
    "GRADIENT",
    "HVP",
    "LOCAL_WORK",
    "LOSS",
    "OUTPUTS",
    "RULES",
    "SCHEDULES",
    "EngineChoice",
    "LocalEngine",
    "LocalResult",
    "LocalWork",
    "Loop",
    "Oracle",
    "Progress",
    "RateSchedule",
    "Rule",
    "StepDirection",
    "accumulated",
    "adam",
    "adam_step",
    "adam_w",
    "choose_engine",
    "clipped",
    "cosine",
    "descend",
    "descent",
    "exponential",
    "frozen",
    "gradient",
    "linear",
    "local_work",
    "make_engine",
    "momentum_step",
    "only",
    "own_patterns",
    "personal",
    "proximal",
    "sgd",
    "with_each",
    "with_rules",
]
