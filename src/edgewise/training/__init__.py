"""Federated training: five parts joined by a protocol.

    algorithm = make_algorithm({"name": "fed_prox", "mu": 0.01, "uplink": {"name": "int8", "rounding": "stochastic"}})
    update = client_update(algorithm, engine, received, examples, client_seeds(seed, number, client), state)  # a client
    step = make_step(algorithm, blobs)                                                            # a coordinator

`algorithm.py` is the contract of the five parts: `select/`, `local_work.py` with its engines in `local/`, the uplink
from `codecs/`, `aggregate/`, `server/`. `algorithms/` joins them, one file per paper; `client.py` is a client's part of a
round; `protocols/` decides when each part is called. To add an algorithm: one file in `algorithms/`, one line in
`ALGORITHMS`, one line in `tests/contracts/test_algorithms.py`.
"""
