"""Whatever order, loss, repetition and death a seed makes up: each round equals its survivors, and what is kept agrees.

A storm disturbs the virtual driver: letters and their answers are lost, late or doubled, clients and edges are lost, moved
and brought back, any role dies between two events and replays its log. Time passes by the driver's agenda.
"""

from __future__ import annotations

import numpy as np
import pytest

from edgewise.core.ids import ClientId, Generation, NodeId
from edgewise.core.seeds import Seeds
from edgewise.simulation.virtual_clients import kept_from_bytes
from edgewise.simulation.virtual_node import Disturbance
from edgewise.testing.quadratics import LeastSquaresEngine, quadratic
from edgewise.training.aggregate import fixed_point as fp
from edgewise.training.algorithms import fed_avg, scaffold
from edgewise.training.local import sgd
from edgewise.training.protocols.folding import section_from_blob
from edgewise.training.protocols.letters import RunEnded
from edgewise.training.protocols.messages import OutcomeKind, RunStarted
from edgewise.training.select import uniform
from tests.training.runs import FunctionEngine, virtual_run

SIZE = 4
EDGES = (NodeId("e1"), NodeId("e2"), NodeId("e3"))
EDGE_OF = {ClientId(f"c{i}"): EDGES[i % 3] for i in range(8)}
PROTOCOLS = ("synchronous", "hierarchical")


def trained(client, number, model, seeds):
    return seeds.rng().normal(size=SIZE).astype(np.float32) - model / 4, 1 + int(client[1:]), {}


class Storm(Disturbance):
    """Makes up what goes wrong from a seed; it abates when the run ends, so that everybody hears of the end."""

    def __init__(self, seed, kills=0.02, loses=0.2):
        self.rng, self.kill_share, self.lose_share, self.run = np.random.default_rng(seed), kills, loses, None
        self.num_killed = 0

    @property
    def is_over(self):
        return self.run is None or self.run.outcome is not None

    def fate(self, node, letter):
        if self.is_over:
            return (0.0,)
        dice = self.rng.random()
        if dice < self.lose_share:
            return ()
        late = self.rng.exponential(0.5)
        return (late, late + self.rng.exponential(3.0)) if dice < self.lose_share + 0.15 else (late,)

    def kills(self, node, event):
        if self.is_over or isinstance(event, RunStarted) or self.rng.random() >= self.kill_share:
            return False
        self.num_killed += 1
        return True

    def gust(self):
        """Loses, moves or brings back somebody, and comes again."""
        run, rng = self.run, self.rng
        if not self.is_over:
            role = "edge" if "edge" in run.nodes and rng.random() < 0.3 else "client"
            nodes = list(run.nodes[role].values())
            node = nodes[rng.integers(len(nodes))]
            if not node.is_up:
                run.restart(node) if rng.random() < 0.5 else run.bring_back(node)
            elif role == "client" and "edge" in run.nodes and rng.random() < 0.4:
                self.run.move(ClientId(node.name), EDGES[rng.integers(len(EDGES))])
            else:
                run.lose(node, "storm")
            run.agenda.after(rng.exponential(2.0), self.gust)
            return
        for nodes in run.nodes.values():
            for node in nodes.values():
                if not node.is_up:
                    run.bring_back(node)

    def blow(self, run):
        """Runs a run through the storm until it has ended everywhere."""
        self.run = run
        run.start()
        run.agenda.after(1.0, self.gust)
        run.go(lambda: run.agenda.now > 5000)
        return run


def check_rounds(run):
    """Each round's model against the survivors' updates, computed here without any protocol."""
    model = np.zeros(SIZE, np.float32)
    for summary in run.view.rounds:
        total = fp.zero(SIZE)
        for client, count in summary.num_examples.items():
            seeds = Seeds(run.config.seed).at("round", summary.round, "client", client)
            total = fp.add(total, trained(client, summary.round, model, seeds)[0], count)
        model = model + fp.mean(total)
        assert bytes(run.blobs[summary.model]) == model.tobytes(), summary.round
        assert not set(summary.num_examples) & set(summary.missing)


def check_replays(run):
    """Every role's log folds to the state it is in."""
    from edgewise.training.protocols import replay
    from edgewise.training.protocols.event_log import decode_event, encode_event

    for nodes in run.nodes.values():
        for node in nodes.values():
            log = [decode_event(encode_event(event)) for event in node.log]
            assert replay(node.step, log, dict(run.blobs)) == node.state, (node.role, node.name)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_run_in_a_storm_equals_its_survivors(protocol, seed):
    storm, fields = (
        Storm(seed),
        {"num_rounds": 4, "quorum": 2, "round_deadline_s": (60.0, 12.0)[seed % 2], "seed": seed},
    )
    run = virtual_run(
        fed_avg(select=uniform(5)), trained, EDGE_OF, np.zeros(SIZE, np.float32), protocol=protocol,
        edge_of=EDGE_OF, how={"disturbance": storm}, **fields,
    )  # fmt: skip
    storm.blow(run)
    assert run.outcome.kind in (OutcomeKind.COMPLETED, OutcomeKind.TOO_FEW_CLIENTS)
    check_rounds(run)
    check_replays(run)


# ---- what the server and its clients keep of each other -----------------------------------------------------------


CURVATURES = {c: np.diag(np.random.default_rng(i).uniform(0.5, 2, SIZE)) for i, c in enumerate(EDGE_OF)}
DATA = {c: quadratic(CURVATURES[c], np.random.default_rng(90 + i).normal(size=SIZE)) for i, c in enumerate(EDGE_OF)}


class Quadratics:
    """Clients of least squares, as the workers of a virtual run."""

    def __new__(cls, algorithm, seed=0):
        from types import SimpleNamespace

        from edgewise.simulation.virtual_clients import VirtualClients

        return VirtualClients(SimpleNamespace(data=DATA.__getitem__), algorithm, LeastSquaresEngine(SIZE), seed)


def controlled(protocol, storm=None, seed=0, num_rounds=5, **fields):
    algorithm = scaffold(local=sgd(0.1, epochs=3, batch_size=1), select=uniform(5))
    how = {"disturbance": storm or Disturbance()}
    fields = {"num_rounds": num_rounds, "quorum": 2, "round_deadline_s": (60.0, 12.0)[seed % 2], "seed": seed, **fields}
    return virtual_run(
        algorithm, Quadratics(algorithm, seed), EDGE_OF, np.zeros(SIZE, np.float32), protocol=protocol,
        edge_of=EDGE_OF, how=how, **fields,
    )  # fmt: skip


def controls(run):
    """The server's control, and the mean of the clients'; a client that never counted keeps none, which is zero."""
    state = run.coordinator.state
    state = getattr(state, "run", state)
    section = state.sections["control"]
    server = section_from_blob(section, run.blobs[section.blob.digest])
    kept = [n.state.kept if n.state else None for n in run.nodes["client"].values()]
    own = [kept_from_bytes(run.blobs[d])["control"] if d else np.zeros(SIZE) for d in kept]
    return server.astype(np.float64), np.mean([np.asarray(o, np.float64) for o in own], axis=0)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_after_a_storm_the_servers_control_is_the_mean_of_the_clients(protocol, seed):
    storm = Storm(seed)
    run = storm.blow(controlled(protocol, storm, seed))
    assert all(n.state is None or n.state.phase == "over" for n in run.nodes["client"].values())
    server, mean = controls(run)
    np.testing.assert_allclose(server, mean, atol=1e-5)
    check_replays(run)


def test_without_settling_by_what_counted_the_control_would_be_wrong(monkeypatch):
    # The test above must be able to fail: here every client keeps what it made, whether it counted or not.
    from edgewise.training.protocols import client_role as role

    def keeps_all(state, counted):
        return role.msgspec.structs.replace(state, kept=state.provisional.kept) if state.provisional else state

    monkeypatch.setattr(role, "_settled", keeps_all)
    gaps = []
    for seed in range(6):
        storm = Storm(seed)
        server, mean = controls(storm.blow(controlled("synchronous", storm, seed)))
        gaps.append(np.abs(server - mean).max())
    assert max(gaps) > 1e-3


@pytest.mark.parametrize("role", ["coordinator", "edge", "client"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_killed_between_any_two_events_a_run_with_kept_state_ends_with_the_same_bytes(protocol, role):
    if role == "edge" and protocol == "synchronous":
        return

    class Kill(Disturbance):
        def __init__(self, at):
            self.at, self.seen = at, 0

        def kills(self, node, event):
            self.seen += node.role == role
            return node.role == role and self.seen == self.at

    def ended(disturbance):
        run = controlled(protocol, disturbance, num_rounds=2, quorum=5)
        run.run()
        return run

    whole = ended(Kill(0))
    expected, at = (whole.model.tobytes(), controls(whole)), 0
    while at < whole.disturbance.seen:
        at += 1
        run = ended(Kill(at))
        assert run.model.tobytes() == expected[0], (role, at)
        for found, wanted in zip(controls(run), expected[1], strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_every_client_hears_of_the_end_with_what_counted():
    run = controlled("hierarchical")
    run.run()
    ended = [n.log[-1].letter for n in run.nodes["client"].values() if n.log and n.state.phase == "over"]
    assert all(isinstance(letter, RunEnded) for letter in ended)
    assert max(letter.counted for letter in ended) == 5
    assert run.nodes["client"]["c0"].generation == Generation(1)


def test_the_function_engine_of_these_tests_takes_a_seed_place():
    place = Seeds(3).at("round", 2, "client", "c1", "local")
    result = FunctionEngine(trained, SIZE)._one({"model": np.zeros(SIZE, np.float32)}, "c1", place)
    expected = trained("c1", 2, np.zeros(SIZE, np.float32), Seeds(3).at("round", 2, "client", "c1"))[0]
    assert result.sent["model"].tobytes() == expected.tobytes()
