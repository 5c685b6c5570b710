"""Buffered rounds: nobody waits for a slow client; what is kept agrees after any storm; slow clients cost little time."""

from __future__ import annotations

import numpy as np
import pytest

from edgewise.core.errors import InputError, MisfitError
from edgewise.core.ids import ClientId, Generation, RoundNumber
from edgewise.simulation.costs import VirtualCosts
from edgewise.simulation.virtual_node import Disturbance
from edgewise.testing.quadratics import LeastSquaresEngine, quadratic
from edgewise.training.aggregate import weighted_mean
from edgewise.training.algorithms import dane, fed_avg, scaffold
from edgewise.training.local import sgd
from edgewise.training.protocols import buffered, check_carries, make_protocol
from edgewise.training.protocols.letters import WorkOrder
from edgewise.training.protocols.messages import AnnounceWaiting, LetterInvalid, OutcomeKind, Received, RunCancelled
from tests.training.runs import virtual_run
from tests.training.test_protocol_storms import SIZE, Quadratics, Storm, check_replays, controls, trained

CLIENTS = tuple(ClientId(f"c{i}") for i in range(8))
START = np.zeros(SIZE, np.float32)
STALE = fed_avg(aggregate=weighted_mean("staleness"))


def run_of(algorithm=STALE, train=trained, concurrency=4, buffer_size=2, costs=None, how=None, **fields):
    fields = {"num_rounds": 4, "quorum": 4, **fields}
    protocol = {"name": "buffered", "concurrency": concurrency, "buffer_size": buffer_size}
    run = virtual_run(algorithm, train, CLIENTS, START, protocol=protocol, how=how, **fields)
    run.costs = costs or run.costs
    return run


def test_every_step_takes_a_buffer_of_updates_and_so_many_are_at_work():
    run = run_of(costs=VirtualCosts(slowdown={ClientId("c0"): 30.0}))
    run.start()
    assert len(run.view.outstanding) == 4
    run.go()
    assert run.outcome.kind is OutcomeKind.COMPLETED
    assert [len(s.num_examples) for s in run.view.rounds] == [2, 2, 2, 2]
    assert run.view.outstanding == ()


def test_a_slow_client_holds_nobody_up_and_counts_when_it_comes():
    run = run_of(costs=VirtualCosts(slowdown={c: 1.0 + 40.0 * (c == "c0") for c in CLIENTS}), num_rounds=30)
    run.run()
    stale = [s for s in run.view.rounds if "c0" in s.num_examples]
    assert run.outcome.kind is OutcomeKind.COMPLETED
    assert all(s.staleness > 0 for s in stale)
    assert max(record.virtual_s for record in run.records[:5]) < 0.4


def test_one_at_work_and_a_buffer_of_one_is_sequential_and_never_stale():
    run = run_of(concurrency=1, buffer_size=1)
    run.run()
    assert [s.staleness for s in run.view.rounds] == [0, 0, 0, 0]


@pytest.mark.parametrize(("concurrency", "buffer_size"), [(2, 3), (2, 0)])
def test_numbers_that_never_fill_a_buffer_are_refused(concurrency, buffer_size):
    with pytest.raises(InputError, match="1 <= buffer_size <= concurrency"):
        buffered(concurrency, buffer_size)


def test_two_exchanges_are_refused_with_the_reason():
    with pytest.raises(MisfitError, match="every client has a pace of its own"):
        check_carries(make_protocol({"name": "buffered", "concurrency": 2, "buffer_size": 1}), dane())


def test_a_client_that_fails_gives_its_place_to_another():
    run = run_of(how={"fails": lambda number, client: client == "c0"}, num_rounds=8)
    run.run()
    assert run.outcome.kind is OutcomeKind.COMPLETED
    assert all("c0" not in s.num_examples for s in run.view.rounds)
    assert any(s.missing == {"c0": "dropped out of the simulation"} for s in run.view.rounds)


def test_a_lost_client_gives_its_place_and_what_it_had_under_way_counts():
    run = run_of(num_rounds=2, concurrency=2, buffer_size=2, how={"disturbance": Disturbance()})
    run.start()
    lost = run.nodes["client"][run.view.outstanding[0]]
    run.lose(lost, "its link is cut")
    assert len(run.view.outstanding) == 3
    lost.is_up = True  # its update comes after all, nobody says that it is back
    run.pump()
    assert any(lost.name in s.num_examples for s in run.view.rounds)


def test_where_nobody_can_work_it_says_so():
    run = run_of(how={"fails": lambda number, client: True}, num_rounds=1)
    run.run()
    assert run.outcome is None
    assert isinstance(run.announced[-1], AnnounceWaiting)
    assert "dropped out of the simulation" in run.announced[-1].sentence


def waits_for_c7():
    run = run_of(num_rounds=1, quorum=8, how={"disturbance": Disturbance()})
    run.nodes["client"]["c7"].is_up = False
    run.start()
    return run


def invalid(run, client):
    fields = {"run": run.config.run, "round": RoundNumber(0), "generation": Generation(1)}
    run.feed(run.coordinator, LetterInvalid(client=ClientId(client), reason="it lies", **fields))


def test_while_it_waits_for_its_quorum_a_liar_has_nobody_asked():
    run = waits_for_c7()
    invalid(run, "m")
    assert run.view.outstanding == ()
    run.bring_back(run.nodes["client"]["c7"])
    assert len(run.view.outstanding) == 4
    run.go()
    assert run.outcome.kind is OutcomeKind.COMPLETED


def test_a_quorum_that_can_never_come_ends_it_while_it_waits():
    run = waits_for_c7()
    invalid(run, "c0")
    assert run.outcome.kind is OutcomeKind.TOO_FEW_CLIENTS
    assert "c0 (in quarantine: it lies)" in run.outcome.sentence


def test_at_the_deadline_what_is_there_is_folded():
    slow = VirtualCosts(slowdown=dict.fromkeys(CLIENTS[1:], 1000.0))
    run = run_of(costs=slow, concurrency=8, buffer_size=4, num_rounds=1, quorum=8, round_deadline_s=2.0)
    run.run()
    assert list(run.view.rounds[0].num_examples) == ["c0"]
    assert run.records[0].virtual_s == pytest.approx(2.0)


def test_a_cancelled_run_ends_everywhere():
    run = run_of()
    run.start()
    run.feed(run.coordinator, RunCancelled(run.config.run, "ctrl-C"))
    run.go()
    assert run.outcome.kind is OutcomeKind.CANCELLED


@pytest.mark.parametrize("seed", range(12))
def test_after_a_storm_the_servers_control_is_the_mean_of_the_clients(seed):
    storm = Storm(seed)
    algorithm = scaffold(local=sgd(0.1, epochs=3, batch_size=1))
    run = run_of(algorithm, Quadratics(algorithm, seed), how={"disturbance": storm}, num_rounds=6, seed=seed)
    storm.blow(run)
    assert run.outcome.kind is OutcomeKind.COMPLETED
    server, mean = controls(run)
    np.testing.assert_allclose(server, mean, atol=1e-5)
    check_replays(run)


def test_killed_between_any_two_events_it_ends_and_agrees_with_its_clients():
    class Kill(Disturbance):
        def __init__(self, at):
            self.at, self.seen = at, 0

        def kills(self, node, event):
            self.seen += 1
            return self.seen == self.at

    algorithm, at, seen = scaffold(local=sgd(0.1)), 0, 1
    while at < seen:
        at += 3
        run = run_of(algorithm, Quadratics(algorithm), how={"disturbance": Kill(at)}, num_rounds=2)
        run.run()
        seen = run.disturbance.seen
        assert run.outcome.kind is OutcomeKind.COMPLETED, at
        np.testing.assert_allclose(*controls(run), atol=1e-5)


# ---- against theory: one client in ten is fifteen times slower ----------------------------------------------------

NUM, DIM, AT_WORK = 40, 8, 10


class Regressions:
    """Forty clients of least squares with optima near each other: the target is a loss near the joint optimum."""

    def __init__(self):
        rng = np.random.default_rng(5)
        centre = rng.normal(size=DIM)
        curvature = np.diag(np.linspace(0.5, 1.5, DIM))
        self.clients = tuple(ClientId(f"c{i}") for i in range(NUM))
        self.optima = {c: centre + 0.1 * rng.normal(size=DIM) for c in self.clients}
        self.held = {c: quadratic(curvature, self.optima[c], copies=4) for c in self.clients}
        self.target = np.mean(list(self.optima.values()), axis=0)

    def data(self, client):
        return self.held[client]

    def seconds(self, protocol, algorithm, deadline=None, quorum=AT_WORK):
        """Virtual seconds until the model is within a twentieth of its first distance from the joint optimum."""
        from edgewise.simulation.virtual_clients import VirtualClients

        costs = VirtualCosts(slowdown=dict.fromkeys(self.clients[::10], 15.0), step_s=0.1)
        reached = []

        def judge(number, vector):
            near = np.linalg.norm(vector - self.target) <= 0.05 * np.linalg.norm(self.target)
            if near and not reached:
                reached.append(run.agenda.now)
            return {}

        work = VirtualClients(self, algorithm, LeastSquaresEngine(DIM), 0)
        fields = {"num_rounds": 400, "quorum": quorum, "round_deadline_s": deadline}
        how = {"evaluate": judge}
        start = np.zeros(DIM, np.float32)
        run = virtual_run(algorithm, work, self.clients, start, protocol=protocol, how=how, **fields)
        run.costs = costs
        run.start()
        run.go(lambda: bool(reached))
        return reached[0]


def test_with_slow_clients_it_is_five_times_faster_than_synchronous_rounds():
    from edgewise.training.select import uniform

    problem, local = Regressions(), sgd(0.05, epochs=1, batch_size=1)
    stale = fed_avg(local=local, aggregate=weighted_mean("staleness"))
    asynchronous = problem.seconds({"name": "buffered", "concurrency": AT_WORK, "buffer_size": 2}, stale)
    rounds = fed_avg(local=local, select=uniform(AT_WORK))
    synchronous = problem.seconds("synchronous", rounds)
    best = min(problem.seconds("synchronous", rounds, deadline, quorum=1) for deadline in (0.5, 1.0, 2.0))
    assert synchronous / asynchronous >= 5
    assert best < synchronous  # with its best deadline beside it: the slow are left out then, here they are not


def test_orders_name_the_version_they_were_made_from():
    run = run_of(how={"disturbance": Disturbance()})
    run.run()
    rounds = [
        [e.letter.round for e in node.log if isinstance(e, Received) and isinstance(e.letter, WorkOrder)]
        for node in run.nodes["client"].values()
    ]
    assert all(numbers == sorted(set(numbers)) for numbers in rounds)
