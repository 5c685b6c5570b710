"""Local work on a client's data: one contract, three engines (`engine.py`), chosen by rule and timing (`choose.py`).

    engine = make_engine("sequential", task)                     # or choose_engine(task, work, sample).engine
    result = engine.train(received, work, task.data(client), seeds)
    result.update, result.weight, result.loss

`evaluate.py` runs a flat vector on examples. Engines import torch; this package itself does not.
"""

from edgewise.training.local.engines.choice import ENGINES, EngineChoice, choose_engine, make_engine
from edgewise.training.local.engines.engine import LocalEngine, LocalResult, Progress

__all__ = ["ENGINES", "EngineChoice", "LocalEngine", "LocalResult", "Progress", "choose_engine", "make_engine"]
