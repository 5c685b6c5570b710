"""Gossip against theory: mixing contracts by λ₂, sums are kept to the last unit, a dead neighbour costs its mass only."""

from __future__ import annotations

import numpy as np
import pytest

from edgewise.core.errors import FrameRefused, InputError, MisfitError
from edgewise.core.ids import ClientId, Generation
from edgewise.simulation.virtual_node import Disturbance
from edgewise.training.aggregate import coordinate_median
from edgewise.training.algorithms import fed_adam, fed_avg, scaffold
from edgewise.training.protocols import check_carries, gossip, replay
from edgewise.training.protocols.event_log import decode_event, encode_event
from edgewise.training.protocols.folding import vector_from_bytes
from edgewise.training.protocols.gossip.mass import Mass, mass_from_bytes, mass_of, metropolis, rings
from edgewise.training.protocols.letters import GossipReport, GossipTask, PeerShare
from edgewise.training.protocols.messages import OutcomeKind, Received, RunCancelled
from tests.training.runs import virtual_run
from tests.training.test_protocol_storms import Storm

SIZE = 6
CLIENTS = tuple(ClientId(f"c{i}") for i in range(10))
START = np.zeros(SIZE, np.float32)


def own_value(client, number, model, seeds):
    """Each client comes to a value of its own and stays there."""
    value = np.random.default_rng(int(client[1:])).normal(size=SIZE).astype(np.float32)
    return (value - model) if number == 1 else np.zeros(SIZE, np.float32), 1 + int(client[1:]) % 3, {}


def run_of(clients=CLIENTS, train=own_value, num_rings=1, mixing=10, algorithm=None, how=None, **fields):
    protocol = {"name": "gossip", "num_rings": num_rings, "mixing": mixing}
    return virtual_run(algorithm or fed_avg(), train, clients, START, protocol=protocol, how=how, **fields)


def reports(run):
    found = [e.letter for e in run.coordinator.log if isinstance(e, Received) and isinstance(e.letter, GossipReport)]
    return {letter.client: letter for letter in found}


def values(run):
    return {c: vector_from_bytes(run.blobs[r.value.digest], SIZE) for c, r in reports(run).items()}


def weighted_mean_of(clients):
    made = {c: own_value(c, 1, START, None)[:2] for c in clients}
    total = sum(n for _, n in made.values())
    return sum(v.astype(np.float64) * n for v, n in made.values()) / total


def test_every_client_comes_to_the_weighted_mean_which_is_fed_avg():
    run = run_of(mixing=300, how={"disturbance": Disturbance()})
    run.run()
    assert run.outcome.kind is OutcomeKind.COMPLETED
    assert "all the mass is there" in run.outcome.sentence
    for value in values(run).values():
        np.testing.assert_allclose(value, weighted_mean_of(CLIENTS), atol=1e-6)
    flat = virtual_run(fed_avg(), own_value, CLIENTS, START).run()
    np.testing.assert_allclose(run.model, flat, atol=1e-6)


@pytest.mark.parametrize("num_rings", [1, 2])
def test_mixing_contracts_by_the_second_eigenvalue(num_rings):
    def same_weight(client, number, model, seeds):
        return own_value(client, number, model, seeds)[0], 1, {}

    def spread(mixing):
        run = run_of(train=same_weight, num_rings=num_rings, mixing=mixing, how={"disturbance": Disturbance()})
        run.run()
        found = np.stack([v.astype(np.float64) for v in values(run).values()])
        tasks = [n.log[0].letter for n in run.nodes["client"].values()]
        return np.linalg.norm(found - found.mean(axis=0)), tasks

    first, last = (20, 40) if num_rings == 1 else (10, 20)
    before, tasks = spread(first)
    after, _ = spread(last)
    w = np.array([[t.peers.get(c, 0.0) for c in CLIENTS] for t in tasks])
    w += np.diag(1 - w.sum(axis=1))
    np.testing.assert_allclose(w.sum(axis=0), 1)
    second = sorted(np.abs(np.linalg.eigvalsh(w)))[-2]
    factor = (after / before) ** (1 / (last - first))
    assert 0.9 * second <= factor <= 1.1 * second


def masses(run):
    """All mass: what clients have and what is under way or came early."""
    total, weight = np.zeros(SIZE, np.int64), 0
    for node in run.nodes["client"].values():
        state = node.state
        under_way = [s for s in state.sent.values() if s.round not in heard_by(run, s)]
        for digest in [state.mass, *state.early.values(), *(s.share.digest for s in under_way)]:
            mass = mass_from_bytes(run.blobs[digest], SIZE)
            total, weight = total + mass.vector, weight + mass.weight
    return total, weight


def heard_by(run, share):
    state = run.nodes["client"][share.receiver].state
    return state.heard.get(share.sender, ()) if state else ()


def test_sums_of_values_and_weights_are_kept_to_the_last_unit_at_every_moment():
    storm = Storm(3, kills=0.01, loses=0.1)
    run = run_of(mixing=15, how={"disturbance": storm})
    storm.run = run
    run.start()
    expected = [mass_of(own_value(c, 1, START, None)[0], own_value(c, 1, START, None)[1]) for c in CLIENTS]
    seen = 0
    while run.outcome is None and run.agenda.step(run._work):
        states = [node.state for node in run.nodes["client"].values()]
        if any(s is None or not s.mass or s.phase in ("reporting", "over") for s in states):
            continue
        seen += 1
        total, weight = masses(run)
        np.testing.assert_array_equal(total, sum(m.vector for m in expected))
        assert weight == sum(m.weight for m in expected)
    assert seen > 100
    assert run.outcome.kind is OutcomeKind.COMPLETED


def test_one_killed_the_rest_agree_and_the_lost_mass_is_said():
    run = run_of(CLIENTS[:4], mixing=120, quorum=3, round_deadline_s=3.0, how={"disturbance": Disturbance()})
    run.num_examples = {c: own_value(c, 1, START, None)[1] for c in CLIENTS}
    run.start()
    victim = run.nodes["client"]["c2"]
    while victim.state is None or victim.state.step < 4:
        assert run.agenda.step(run._work)
    run.lose(victim, "its process ended")
    run.go(lambda: run.outcome is not None)
    assert run.outcome.kind is OutcomeKind.COMPLETED
    left = np.stack(list(values(run).values()))
    assert len(left) == 3
    assert np.abs(left - left[0]).max() <= 1e-5
    told = {c: r.lost for c, r in reports(run).items()}
    assert "no share of round" in told["c1"]["c2"]
    assert "lost with c2 (its process ended): " in run.outcome.sentence
    share = float(run.outcome.sentence.split(": ")[-1].split("%")[0])
    weights = [r.metrics["weight"] for r in reports(run).values()]
    assert share == pytest.approx(100 * (1 - sum(weights) / sum(run.num_examples[c] for c in CLIENTS[:4])), abs=0.06)


def test_no_coordinator_is_needed_between_task_and_report():
    run = run_of(mixing=20, how={"disturbance": Disturbance()})
    run.start()
    while any(n.state is None or n.state.task is None for n in run.nodes["client"].values()):
        run.agenda.step(run._work)
    run.coordinator.is_up = False
    run.go(lambda: all(n.state.phase == "reporting" for n in run.nodes["client"].values()))
    assert run.outcome is None
    run.coordinator.is_up = True
    run.pump()
    assert run.outcome.kind is OutcomeKind.COMPLETED


@pytest.mark.parametrize("seed", range(8))
def test_in_a_storm_everybody_ends_with_all_the_mass(seed):
    storm = Storm(seed)
    run = run_of(CLIENTS[:5], mixing=40, how={"disturbance": storm})
    storm.blow(run)
    assert run.outcome.kind is OutcomeKind.COMPLETED
    assert sum(r.metrics["weight"] for r in reports(run).values()) == pytest.approx(
        sum(r.metrics["brought"] for r in reports(run).values())
    )
    for value in values(run).values():
        np.testing.assert_allclose(value, weighted_mean_of(CLIENTS[:5]), atol=1e-4)
    for nodes in run.nodes.values():
        for node in nodes.values():
            log = [decode_event(encode_event(event)) for event in node.log]
            assert replay(node.step, log, dict(run.blobs)) == node.state


def test_killed_between_any_two_events_it_ends_with_the_same_bytes():
    class Kill(Disturbance):
        def __init__(self, at):
            self.at, self.seen = at, 0

        def kills(self, node, event):
            self.seen += 1
            return self.seen == self.at

    def ended(at):
        run = run_of(CLIENTS[:3], mixing=2, num_rounds=2, how={"disturbance": Kill(at)})
        run.run()
        return run

    whole, at = ended(0), 0
    while at < whole.disturbance.seen:
        at += 2
        assert ended(at).model.tobytes() == whole.model.tobytes(), at


def test_rounds_of_work_and_mixing_alternate():
    def half_way(client, number, model, seeds):
        return (np.float32(int(client[1:])) - model) / 2, 1, {"loss": 1.0}

    run = run_of(CLIENTS[:4], train=half_way, mixing=60, num_rounds=12)
    run.run()
    np.testing.assert_allclose(run.model, 1.5, atol=1e-3)
    assert run.view.rounds[0].metrics["loss"] == 1.0
    assert len(run.blobs) < 40


def test_a_client_whose_work_fails_brings_nothing_and_ends_with_the_others():
    how = {"disturbance": Disturbance(), "fails": lambda number, client: client == "c1"}
    run = run_of(CLIENTS[:4], mixing=100, how=how)
    run.run()
    assert reports(run)["c1"].metrics["brought"] == 0
    np.testing.assert_allclose(values(run)["c1"], weighted_mean_of(["c0", "c2", "c3"]), atol=1e-5)


def test_a_share_of_a_stranger_or_of_another_size_is_refused():
    run = run_of(CLIENTS[:4], how={"disturbance": Disturbance()})
    run.start()
    node = run.nodes["client"]["c0"]
    while node.state is None or node.state.phase != "mixing":
        run.agenda.step(run._work)
    own = next(iter(node.state.sent.values()))
    fields = {"run": run.config.run, "round": own.round, "receiver": ClientId("c0"), "share": own.share}
    for sender, text in (("c2", "does not listen to c2"), ("c9", "does not listen to c9")):
        letter = PeerShare(sender=ClientId(sender), **fields)
        assert text in run.feed(node, Received(letter=letter, sender=sender, generation=1))[0].text


def test_a_cancelled_run_ends_everywhere():
    run = run_of(CLIENTS[:4])
    run.start()
    run.feed(run.coordinator, RunCancelled(run.config.run, "ctrl-C"))
    run.go()
    assert run.outcome.kind is OutcomeKind.CANCELLED
    assert all(n.state.phase == "over" for n in run.nodes["client"].values())


@pytest.mark.parametrize(
    ("algorithm", "text"),
    [
        (fed_adam(), "there is no server"),
        (scaffold(), "only a model travels"),
        (fed_avg(aggregate={"model": coordinate_median()}), "by a weighted mean"),
    ],
)
def test_what_needs_a_server_is_refused(algorithm, text):
    with pytest.raises(MisfitError, match=text):
        check_carries(gossip(), algorithm)


@pytest.mark.parametrize("fields", [{"num_rings": 0}, {"mixing": 0}])
def test_numbers_out_of_range_are_refused(fields):
    with pytest.raises(InputError, match="num_rings >= 1 and mixing >= 1"):
        gossip(**fields)


def test_a_mass_is_parted_without_losing_a_unit():
    rng = np.random.default_rng(0)
    mass = mass_of(rng.normal(size=1000) * 1e3, 7.5)
    parts = [mass.part(1 / 3), mass.part(0.6)]
    rest = mass - parts[0] - parts[1]
    joined = rest + parts[1] + parts[0]
    np.testing.assert_array_equal(joined.vector, mass.vector)
    assert joined.weight == mass.weight
    np.testing.assert_allclose(parts[0].vector / parts[0].weight, mass.vector / mass.weight, atol=1e-4)
    back = mass_from_bytes(mass.to_bytes(), 1000)
    np.testing.assert_array_equal(back.vector, mass.vector)


@pytest.mark.parametrize("vector", [np.full(3, np.nan), np.full(3, 1e30)])
def test_a_mass_that_cannot_be_exact_is_refused(vector):
    with pytest.raises(InputError, match="too large for exact shares"):
        mass_of(vector, 1.0)


def test_a_dishonest_share_is_refused():
    honest = Mass(np.ones(3, np.int64), 5)
    with pytest.raises(FrameRefused, match="a share of 4 entries"):
        mass_from_bytes(honest.to_bytes(), 4)
    with pytest.raises(FrameRefused, match="a share of 3 entries"):
        mass_from_bytes(Mass(np.ones(3, np.int64), -5).to_bytes(), 3)
    with pytest.raises(FrameRefused, match="would not be exact"):
        mass_from_bytes(Mass(np.full(3, 2**62), 5).to_bytes(), 3)


def test_rings_are_symmetric_and_their_mixing_is_doubly_stochastic():
    neighbours = rings(CLIENTS, 3, np.random.default_rng(1))
    assert all(c in neighbours[other] for c, others in neighbours.items() for other in others)
    weights = metropolis(neighbours)
    for client in CLIENTS:
        incoming = sum(out.get(client, 0.0) for out in weights.values())
        assert incoming + (1 - sum(weights[client].values())) == pytest.approx(1)
    assert rings(CLIENTS[:1], 2, np.random.default_rng(1)) == {"c0": []}


def test_one_client_alone_is_done_at_once():
    run = run_of(CLIENTS[:1])
    np.testing.assert_allclose(run.run(), own_value("c0", 1, START, None)[0], atol=1e-6)


def test_a_task_names_neighbours_and_their_parts():
    run = run_of(how={"disturbance": Disturbance()})
    run.run()
    task = run.nodes["client"]["c0"].log[0].letter
    assert isinstance(task, GossipTask)
    assert task.peers == {"c1": pytest.approx(1 / 3), "c9": pytest.approx(1 / 3)}


@pytest.mark.parametrize("kind", ["nonsense", "no such round", "a round before the first"])
def test_a_hostile_share_adds_nothing_and_nobody_waits_for_its_sender(kind):
    from edgewise.core.ids import NodeId, RoundNumber, RunId, digest_of
    from edgewise.simulation.virtual_run import Disturbance
    from edgewise.training.algorithms import fed_avg
    from edgewise.training.protocols.gossip.mass import Mass
    from edgewise.training.protocols.letters import BlobName, PeerShare
    from edgewise.training.protocols.messages import Received, Refusal, Refuse
    from tests.training.runs import virtual_run

    class Silent(Disturbance):
        def fate(self, node, letter):
            return () if isinstance(letter, PeerShare) else (0.0,)

    run = virtual_run(
        fed_avg(), lambda *_: (np.ones(4, np.float32), 1, {}), "ab", np.zeros(4, np.float32), protocol="gossip",
        num_rounds=2, how={"disturbance": Silent()},
    )  # fmt: skip
    run.start()
    run.go(lambda: run.agenda.now > 3)
    node = run.nodes["client"]["a"]
    data = b"x" if kind == "nonsense" else Mass(np.ones(4, np.int64), 1).to_bytes()
    run.blobs[digest_of(data)] = data
    number = {"nonsense": 1, "no such round": 99, "a round before the first": 0}[kind]
    share = PeerShare(
        run=RunId("r"), round=RoundNumber(number), sender="b", receiver="a", share=BlobName(digest_of(data), len(data))
    )
    before = node.state
    actions = run.feed(node, Received(letter=share, sender=NodeId("b"), generation=Generation(1)))
    assert isinstance(actions[0], Refuse)
    assert actions[0].reason is (Refusal.INVALID if kind == "nonsense" else Refusal.WRONG_ROUND)
    assert node.state.mass == before.mass or kind == "nonsense"
    assert ("b" in node.state.lost) == (kind == "nonsense")
    assert (node.state != before) == (kind == "nonsense")
