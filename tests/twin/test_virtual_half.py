"""The virtual half of the twin test: the simulator and the coordinator's step fed by hand end byte-equal.

The live half drives the same protocol over a transport and compares with `simulate_rounds` (engine pinned).
"""

from __future__ import annotations

import numpy as np
import pytest
from torch.nn import functional

from edgewise.core.clock import VirtualClock
from edgewise.core.ids import ClientId, Generation, NodeId, digest_of
from edgewise.core.seeds import Seeds
from edgewise.models.flat import initial_vector
from edgewise.models.task import Examples, Task
from edgewise.models.zoo.dense_stack import mlp
from edgewise.simulation.costs import VirtualCosts
from edgewise.simulation.simulate import SimulationOptions, simulate_rounds
from edgewise.simulation.virtual_clients import VirtualClients
from edgewise.training.algorithm import Candidate
from edgewise.training.algorithms import make_algorithm
from edgewise.training.local import make_engine
from edgewise.training.protocols import make_protocol
from edgewise.training.protocols.letters import BlobName, UpdateReport, WorkOrder
from edgewise.training.protocols.messages import Received, RunStarted, SeenClient, Send, Store
from edgewise.training.protocols.opening import quorum_of
from tests.training.runs import config_of

CLIENTS = ("a", "b", "c")
ALGORITHMS = {
    "fed_avg": {"name": "fed_avg"},
    "fed_prox, half the clients": {"name": "fed_prox", "mu": 0.1, "select": {"name": "uniform", "cohort_size": 2}},
    "fed_adam, int8": {"name": "fed_adam", "uplink": "int8"},
    "fed_avg_m, top_k with feedback": {
        "name": "fed_avg_m",
        "uplink": {"name": "error_feedback", "codec": {"name": "top_k", "fraction": 0.25}},
    },
}


class TwinTask(Task):
    name = "twin"
    input_shape = (4,)

    def model(self):
        return mlp((4, 8, 3))

    def loss(self, outputs, targets):
        return functional.cross_entropy(outputs, targets)

    def clients(self):
        return tuple(ClientId(name) for name in CLIENTS)

    def data(self, client):
        rng = np.random.default_rng(ord(client))
        return Examples.of(rng.standard_normal((20, 4), np.float32), rng.integers(0, 3, 20))


@pytest.fixture(params=sorted(ALGORITHMS))
def algorithm(request):
    return make_algorithm(ALGORITHMS[request.param])


def _by_hand(task, algorithm, rounds):
    """The coordinator's step fed by hand, one client after the other, in the reverse of the simulator's order."""
    engine, model = make_engine("sequential", task), initial_vector(task, Seeds(7))
    quorum = quorum_of(algorithm, [Candidate(c) for c in CLIENTS], 7)
    config, blobs = config_of(algorithm, CLIENTS, model, num_rounds=rounds, quorum=quorum, seed=7)
    devices = VirtualClients(task, algorithm, engine, 7)
    step = make_protocol("synchronous").roles["coordinator"].make_step(algorithm, blobs)
    kept, state, pending = {}, None, [RunStarted(config, {c: SeenClient(Generation(1), 20) for c in CLIENTS})]
    while pending:
        state, actions = step(state, pending.pop())
        for action in actions:
            if isinstance(action, Store):
                blobs.update(action.blobs)
            if isinstance(action, Send) and isinstance(action.letter, WorkOrder):
                order = action.letter
                done = devices.work([(order, kept.get(order.client, b""))], blobs)[0]
                kept[order.client] = done.kept
                blobs[digest_of(done.update)] = done.update
                report = UpdateReport(
                    run=order.spec.run,
                    round=order.round,
                    client=order.client,
                    update=BlobName(digest_of(done.update), len(done.update)),
                    num_examples=done.num_examples,
                    metrics=done.metrics,
                )
                pending.append(Received(letter=report, sender=NodeId(order.client), generation=Generation(1)))
    return bytes(blobs[state.model])


def test_the_simulator_ends_byte_equal_with_the_step_fed_by_hand(algorithm):
    task = TwinTask()
    simulated = simulate_rounds(task, algorithm, rounds=4, seed=7, options=SimulationOptions("sequential"))
    assert simulated.vector.tobytes() == _by_hand(task, algorithm, 4)


def test_virtual_costs_change_the_order_of_arrival_but_not_the_model(algorithm):
    slow = VirtualCosts(slowdown={ClientId("a"): 50.0})
    runs = [
        simulate_rounds(TwinTask(), algorithm, rounds=3, seed=7, options=SimulationOptions("sequential", costs))
        for costs in (VirtualCosts(), slow)
    ]
    assert runs[0].vector.tobytes() == runs[1].vector.tobytes()
    assert runs[0].record.virtual_s < runs[1].record.virtual_s


def test_equal_times_on_the_virtual_clock_run_in_the_order_they_were_added():
    clock, seen = VirtualClock(), []
    for name in CLIENTS:
        clock.call_at(1.0, lambda name=name: seen.append(name))
    clock.run()
    assert seen == list(CLIENTS)
