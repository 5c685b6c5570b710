"""Local work on a client's data: one contract, three engines (`engine.py`), chosen by rule and timing (`choose.py`).

    engine = make_engine("sequential", task)                     # or choose_engine(task, work, sample).engine
    result = engine.train(received, work, task.data(client), seeds)
    result.update, result.weight, result.loss

`evaluate.py` runs a flat vector on examples. Only this package, the zoo and the export import torch.
"""
