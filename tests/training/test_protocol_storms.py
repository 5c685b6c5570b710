"""Whatever order, loss, repetition and death a seed makes up: each closed round equals the fold of its survivors."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest

from edgewise.core.ids import ClientId, Epoch, NodeId, RoundNumber, RunId
from edgewise.core.seeds import Seeds
from edgewise.training.aggregate import fixed_point as fp
from edgewise.training.algorithms import fed_avg
from edgewise.training.protocols.driver import MemoryDriver
from edgewise.training.protocols.hierarchy_driver import MemoryHierarchy
from edgewise.training.protocols.messages import (
    ClientLost,
    ClientReturned,
    OutcomeKind,
    RequestUpdate,
    RoundTimedOut,
    RunStarted,
)
from edgewise.training.protocols.synchronous import make_step, replay
from edgewise.training.select import uniform

SIZE = 4
EDGES = (NodeId("e1"), NodeId("e2"), NodeId("e3"))
HOMES = {ClientId(f"c{i}"): EDGES[i % 3] for i in range(8)}


def trained(client, number, model, seeds):
    return seeds.rng().normal(size=SIZE).astype(np.float32) - model / 4, 1 + int(client[1:]), {}


def check_rounds(run_state, blobs):
    """Each round's model against the survivors' updates, computed here without any protocol."""
    model = np.zeros(SIZE, np.float32)
    for summary in run_state.rounds:
        total = fp.zero(SIZE)
        for client, weight in summary.weights.items():
            seeds = Seeds(run_state.config.seed).at("round", summary.round, "client", client)
            total = fp.add(total, trained(client, summary.round, model, seeds)[0], weight)
        model = model + fp.mean(total)
        assert blobs[summary.model] == model.tobytes(), summary.round
        assert not set(summary.weights) & set(summary.missing)


@pytest.mark.parametrize("seed", range(25))
def test_a_flat_run_in_a_storm_equals_its_survivors(seed):
    rng = np.random.default_rng(seed)
    driver = MemoryDriver(fed_avg(select=uniform(5)), trained)
    config = driver.config("r", HOMES, np.zeros(SIZE, np.float32), num_rounds=4, quorum=2, seed=seed)
    epochs = dict.fromkeys(HOMES, Epoch(1))
    sent = []

    def happen(event):
        for action in driver.feed(event):
            if isinstance(action, RequestUpdate):
                sent.extend(driver.update(config, action, c, epochs[c]) for c in action.clients)

    happen(RunStarted(config, {c: e for c, e in epochs.items() if rng.random() < 0.8}))
    for _ in range(400):
        if driver.state.outcome is not None:
            break
        client, dice = list(HOMES)[rng.integers(8)], rng.random()
        if dice < 0.6 and sent:
            happen(sent[rng.integers(len(sent))])  # any order, any number of times, also long past
        elif dice < 0.75:
            happen(ClientLost(client, "storm"))
        elif dice < 0.97:
            epochs[client] = Epoch(epochs[client] + int(rng.integers(2)))
            happen(ClientReturned(client, epochs[client]))
        elif len(driver.state.gathering.answers) >= 2:
            happen(RoundTimedOut(RunId("r"), driver.state.gathering.round))
    assert driver.state.outcome.kind is OutcomeKind.COMPLETED
    check_rounds(driver.state, driver.blobs)
    assert replay(make_step(driver.algorithm, driver.blobs), driver.log, driver.blobs) == driver.state


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("waits", [True, False])
def test_a_hierarchical_run_in_a_storm_equals_its_survivors(seed, waits):
    rng = np.random.default_rng(seed)
    run = MemoryHierarchy(fed_avg(), trained, dict(HOMES))
    run.start("r", np.zeros(SIZE, np.float32), num_rounds=4, quorum=1, seed=seed, waits_for_edges=waits)
    for _ in range(600):
        if run.state.run.outcome is not None:
            break
        edge, dice = EDGES[rng.integers(3)], rng.random()
        if run.queue and dice < 0.8:
            place = int(rng.integers(len(run.queue)))
            sender, action = run.queue[place]
            if rng.random() < 0.8:  # else it is delivered, and once more later
                run.queue = deque(m for i, m in enumerate(run.queue) if i != place)
            run.deliver(sender, action)
        elif dice < 0.9:
            storm_on_edge(run, edge, rng)
        elif dice < 0.95 and run.state.run.gathering.answers:
            run.feed(RoundTimedOut(RunId("r"), RoundNumber(run.state.run.gathering.round)))
        else:
            client = list(HOMES)[rng.integers(8)]
            run.feed_edge(run.homes[client], ClientLost(client, "storm"))
            run.present[client] = Epoch(run.present[client] + 1)
            run.feed_edge(run.homes[client], ClientReturned(client, run.present[client]))
            run.feed(ClientReturned(client, run.present[client]))
    assert run.state.run.outcome.kind is OutcomeKind.COMPLETED
    check_rounds(run.state.run, run.blobs)


def storm_on_edge(run, edge, rng):
    if not run.edges[edge].is_up:
        run.restart_edge(edge)
        return
    others = [e for e in EDGES if e != edge and run.edges[e].is_up]
    moves = others and rng.random() < 0.5
    homes = {c: others[rng.integers(len(others))] for c, e in run.homes.items() if e == edge} if moves else {}
    run.kill_edge(edge, homes)
