"""Federated training: the parts of an algorithm, joined in exchanges and driven by a protocol.

    algorithm = make_algorithm({"name": "fed_prox", "mu": 0.01, "uplink": {"name": "int8", "rounding": "stochastic"}})
    exchange = algorithm.exchanges[0]
    update = client_update(exchange, engine, {"model": vector}, kept, examples, client_seeds(seed, number, client))

`algorithm.py` is the contract of the parts: `select/`, local work (a loop and rules, with the engines that answer their
questions, in `local/`), codecs by section, `aggregate/`, `server/`. `algorithms/` joins them, one file per paper;
`client_update.py` is a client's part of an exchange; `protocols/` decides when each part is called, and by whom. To add an
algorithm: one file in `algorithms/`, its line in `ALGORITHMS` (and in `OWN_RULES` and `OWN_SERVERS` for rules it brings), one
line in `tests/contracts/test_algorithms.py`.
"""
