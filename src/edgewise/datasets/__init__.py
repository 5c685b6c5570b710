"""Loads data sets, splits them over clients, audits the split and applies drift.

    parts = load_digits(seed=0)                                  # train, calibration, gate, stream
    clients = dirichlet(parts.train.targets, 6, alpha=0.5, rng=Seeds(0).at("split").rng())
    print(audit({f"device-{i}": parts.train.targets[ix] for i, ix in enumerate(clients)}))

Every array of examples is traced as raw data (`core.provenance`). Nothing here imports torch or the model
layer; a `Task` turns these arrays into `Examples`. Read `arrays.py` next.
"""
