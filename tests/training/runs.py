"""Runs in memory for protocol tests: the virtual driver at no cost, or one role fed by hand; local work is a function."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from edgewise.core.ids import ClientId, Digest, NodeId, RunId, digest_of
from edgewise.core.layout import Layout
from edgewise.simulation.costs import FREE
from edgewise.simulation.virtual_clients import VirtualClients
from edgewise.simulation.virtual_run import VirtualRun
from edgewise.training.local.engines.engine import LocalResult
from edgewise.training.protocols import make_protocol
from edgewise.training.protocols.folding import vector_to_bytes
from edgewise.training.protocols.messages import RunConfig
from edgewise.training.protocols.run_spec import RunSpec


class FunctionEngine:
    """Local work is `train(client, round, model, seeds) -> (update, number of examples, metrics)`; examples are the client."""

    def __init__(self, train, size):
        self.train, self.layout = train, Layout.of([("weights", (size,))])

    def work_cohort(self, work, received, kept, examples, seeds, *, progress=None):
        return [self._one(received, client, place) for client, place in zip(examples, seeds, strict=True)]

    def _one(self, received, client, seeds):
        place = type(seeds)(seeds.seed, seeds.path[:-1])
        update, num_examples, metrics = self.train(client, int(seeds.path[1]), received["model"], place)
        metrics = dict(metrics)
        loss = metrics.pop("loss", float("nan"))
        return LocalResult({"model": np.asarray(update, np.float32)}, {}, loss, 1, num_examples, metrics)


def workers(algorithm, train, size, seed=0):
    task = SimpleNamespace(data=lambda client: client)
    return VirtualClients(task, algorithm, FunctionEngine(train, size), seed)


def config_of(algorithm, clients, model, *, protocol="synchronous", seed=0, **fields):
    """A config and the blobs it needs; one round, quorum is everyone, unless given."""
    data, named = vector_to_bytes(model), tuple(ClientId(c) for c in clients)
    spec = RunSpec(
        run=RunId("r"),
        algorithm=algorithm.spec.to_dict(),
        protocol=make_protocol(protocol).spec.to_dict(),
        seed=seed,
        layout=Digest(""),
        num_entries=model.size,
    )
    fields = {"quorum": len(named), "num_rounds": 1, **fields}
    return RunConfig(spec=spec, clients=named, initial_model=digest_of(data), **fields), {digest_of(data): data}


def virtual_run(algorithm, train, clients, model, *, protocol="synchronous", edge_of=None, how=None, **fields):
    """A run that is not yet started; `how` are fields of `VirtualRun`."""
    made = make_protocol(protocol)
    config, blobs = config_of(algorithm, clients, model, protocol=made, **fields)
    edge_of = {ClientId(c): NodeId(e) for c, e in (edge_of or {}).items()}
    work = train if hasattr(train, "work") else workers(algorithm, train, model.size, config.seed)
    return VirtualRun(config, algorithm, made, work, blobs, FREE, edge_of, **(how or {}))
