"""Rounds over edges: equal to flat rounds to the bit, whatever dies in between."""

from __future__ import annotations

from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from edgewise.codecs import error_feedback, int8, top_k
from edgewise.core.errors import StoreError
from edgewise.core.ids import ClientId, Digest, Epoch, NodeId, RoundNumber, RunId
from edgewise.training.algorithms import fed_adam, fed_avg
from edgewise.training.protocols.driver import MemoryDriver
from edgewise.training.protocols.event_log import decode_event, encode_event
from edgewise.training.protocols.folding import arrays_to_bytes
from edgewise.training.protocols.hierarchical import make_cloud_step, replay_cloud, resume_cloud
from edgewise.training.protocols.hierarchy_driver import MemoryHierarchy
from edgewise.training.protocols.messages import (
    AnnounceRound,
    AnnounceWaiting,
    ClientLost,
    ClientReturned,
    EndRun,
    OutcomeKind,
    Quarantine,
    Refusal,
    RoundTimedOut,
    RunCancelled,
    StoreModel,
    UpdateReceived,
)
from edgewise.training.protocols.regional import make_edge_step, replay_edge
from edgewise.training.protocols.regions import (
    AcceptSum,
    ClientHomed,
    EdgeLost,
    EdgeReturned,
    ForwardSum,
    OpenRegion,
    RefuseSum,
    RegionOpened,
    SumReceived,
)

SIZE = 6
EDGES = (NodeId("edge-1"), NodeId("edge-2"))
HOMES = {ClientId(f"c{i}"): EDGES[i % 2] for i in range(5)}
START = np.zeros(SIZE, np.float32)


def towards_truth(client, number, model, seeds):
    truth = np.arange(SIZE, dtype=np.float32) + 3 * int(client[1:])
    return (truth - model) / 2 + seeds.rng().normal(size=SIZE).astype(np.float32), 7 + int(client[1:]), {"loss": 1.0}


def hierarchy(algorithm=None, **fields):
    made = MemoryHierarchy(algorithm or fed_avg(), towards_truth, dict(HOMES))
    made.start("r", START, **{"num_rounds": 2, "quorum": 2, "round_deadline_s": 10.0, **fields})
    return made


def flat_model(clients=tuple(HOMES), algorithm=None, num_rounds=2):
    driver = MemoryDriver(algorithm or fed_avg(), towards_truth)
    return driver.run(driver.config("r", clients, START, num_rounds=num_rounds)).tobytes()


def outcome_of(run):
    return next(a.outcome for a in run.actions if isinstance(a, EndRun))


@pytest.mark.parametrize("parts", [{}, {"uplink": int8("stochastic")}, {"uplink": error_feedback(top_k(0.5))}])
@pytest.mark.parametrize("algorithm", [fed_avg, fed_adam])
def test_two_levels_end_with_the_bytes_of_one(algorithm, parts):
    run = hierarchy(algorithm(**parts))
    run.pump()
    assert outcome_of(run).kind is OutcomeKind.COMPLETED
    assert run.model.tobytes() == flat_model(algorithm=algorithm(**parts))


def test_the_round_summary_counts_clients_not_edges():
    run = hierarchy()
    run.pump()
    assert run.state.run.rounds[0].weights == {c: 7 + int(c[1:]) for c in HOMES}
    assert run.state.run.rounds[0].metrics == {"loss": 1.0}


def test_an_edge_killed_after_any_message_and_restarted_ends_with_the_same_bytes():
    undisturbed = flat_model()
    whole = hierarchy()
    for after in range(whole.pump() + 1):
        run = hierarchy()
        run.pump(after)
        if run.state.run.outcome is None:
            run.kill_edge(EDGES[0])
            run.restart_edge(EDGES[0])
            run.pump()
        assert run.model.tobytes() == undisturbed, after


def test_a_cloud_that_replays_after_any_event_ends_with_the_same_bytes():
    whole = hierarchy()
    whole.pump()
    for upto in range(1, len(whole.log)):
        run = hierarchy()
        while len(run.log) < upto:
            run.pump(1)
        run.log = run.log[:upto]
        log = [decode_event(encode_event(event)) for event in run.log]
        made = {a.model for a in run.actions if isinstance(a, StoreModel) and a.data}
        run.blobs = {d: b for d, b in run.blobs.items() if d not in made}
        run.state = replay_cloud(make_cloud_step(run.algorithm, run.blobs), log, run.blobs)
        run.queue.clear()
        run.queue.extend(("", a) for a in resume_cloud(run.state))
        run.pump()
        assert run.model.tobytes() == whole.model.tobytes(), upto


def test_an_edge_replays_its_log_to_the_identical_state():
    run = hierarchy()
    run.pump(6)
    edge = run.edges[EDGES[0]]
    log = [decode_event(encode_event(event)) for event in edge.log]
    assert replay_edge(make_edge_step(edge.blobs), log) == edge.state


def test_a_sum_forwarded_twice_counts_once():
    run = hierarchy()
    while not any(isinstance(a, ForwardSum) for _, a in run.queue):
        run.pump(1)
    sender, forward = next((s, a) for s, a in run.queue if isinstance(a, ForwardSum))
    run.queue.appendleft((sender, forward))
    run.pump()
    assert [a.reason for a in run.actions if isinstance(a, RefuseSum)] == [Refusal.DUPLICATE]
    assert run.model.tobytes() == flat_model()


def test_clients_of_a_lost_edge_are_asked_again_under_another():
    run = hierarchy()
    run.pump(3)
    run.kill_edge(EDGES[0], {c: EDGES[1] for c, e in HOMES.items() if e == EDGES[0]})
    run.pump()
    assert outcome_of(run).kind is OutcomeKind.COMPLETED
    assert run.model.tobytes() == flat_model()


def test_the_sum_of_a_region_that_was_given_to_others_is_refused():
    run = hierarchy()
    while not any(isinstance(a, ForwardSum) and s == EDGES[0] for s, a in run.queue):
        run.pump(1)
    forward = next(a for s, a in run.queue if isinstance(a, ForwardSum) and s == EDGES[0])
    run.kill_edge(EDGES[0], {c: EDGES[1] for c, e in HOMES.items() if e == EDGES[0]})
    run.blobs[forward.report.sum] = forward.data
    run.feed(SumReceived(forward.report, Epoch(1)))
    assert any(isinstance(a, RefuseSum) and a.reason is Refusal.LATE for a in run.actions)
    run.pump()
    assert run.model.tobytes() == flat_model()


def test_the_late_sum_of_a_lost_edge_counts_but_does_not_bring_it_back():
    run = hierarchy()
    while not any(isinstance(a, ForwardSum) and s == EDGES[0] for s, a in run.queue):
        run.pump(1)
    run.feed(EdgeLost(EDGES[0], "its link is cut"))
    run.pump()
    summary = next(a.summary for a in run.actions if isinstance(a, AnnounceRound))
    assert summary.missing == {}
    orders = [a.order.edge for a in run.actions if isinstance(a, OpenRegion) and a.order.round == 2]
    assert orders == [EDGES[1]]


def test_without_waiting_the_clients_of_a_lost_edge_are_dropouts():
    run = hierarchy(waits_for_edges=False, num_rounds=1)
    run.kill_edge(EDGES[0])
    run.pump()
    summary = next(a.summary for a in run.actions if isinstance(a, AnnounceRound))
    assert summary.missing["c0"] == "its edge edge-1 is lost: its process ended"
    assert run.model.tobytes() == flat_model(("c1", "c3"), num_rounds=1)


def test_an_edge_that_stays_away_costs_its_clients_the_round_at_the_deadline():
    run = hierarchy(num_rounds=1)
    run.kill_edge(EDGES[0])
    run.pump()
    run.feed(RoundTimedOut(RunId("r"), RoundNumber(1)))
    assert outcome_of(run).kind is OutcomeKind.COMPLETED
    assert run.model.tobytes() == flat_model(("c1", "c3"), num_rounds=1)


def test_a_run_that_waits_for_an_edge_says_so():
    run = hierarchy()
    run.kill_edge(EDGES[0])
    assert run.actions[-1].sentence.startswith(
        "round 1 waits for edge edge-1 (its process ended), which holds the upda"
    )
    assert "of 3 clients" in run.actions[-1].sentence


def test_a_run_ends_with_the_cause_where_too_few_clients_answer():
    run = hierarchy(quorum=3)
    run.kill_edge(EDGES[0])
    run.pump()
    run.feed(RoundTimedOut(RunId("r"), RoundNumber(1)))
    outcome = outcome_of(run)
    assert outcome.kind is OutcomeKind.TOO_FEW_CLIENTS
    assert "round 1 has 2 updates, the quorum is 3" in outcome.sentence


def test_a_client_lost_under_its_edge_is_a_dropout():
    run = hierarchy(num_rounds=1)
    del run.present[ClientId("c2")]
    run.pump(1)
    run.feed_edge(EDGES[0], ClientLost(ClientId("c2"), "frozen"))
    run.pump()
    assert run.model.tobytes() == flat_model(("c0", "c1", "c3", "c4"), num_rounds=1)


def test_the_edge_deadline_forwards_what_is_there():
    run = hierarchy(num_rounds=1)
    run.present.pop(ClientId("c4"))
    orders = [a.order for _, a in run.queue if isinstance(a, OpenRegion)]
    run.queue.clear()
    for order in orders:
        run.edges[order.edge].blobs[order.model] = run.blobs[order.model]
        run.feed_edge(order.edge, RegionOpened(order, dict.fromkeys(order.clients, Epoch(1))))
    run.pump()
    assert run.state.run.outcome is None
    run.feed_edge(EDGES[0], RoundTimedOut(RunId("r"), RoundNumber(1)))
    run.pump()
    assert run.state.run.rounds[0].missing == {"c4": "no update by the deadline of edge-1"}
    assert run.model.tobytes() == flat_model(("c0", "c1", "c2", "c3"), num_rounds=1)


def test_a_bad_update_is_stopped_at_the_edge_and_the_cloud_hears_of_the_quarantine():
    run = hierarchy()
    honest = run.clients.answer

    def poisoned(asked, client, epoch):
        event, data = honest(asked, client, epoch)
        return (msgspec.structs.replace(event, weight=-1), data) if client == "c0" else (event, data)

    run.clients = SimpleNamespace(answer=poisoned)
    run.pump()
    assert any(isinstance(a, Quarantine) and a.client == "c0" for a in run.actions)
    orders = [a.order for a in run.actions if isinstance(a, OpenRegion) and a.order.round == 2]
    assert all("c0" not in order.clients for order in orders)
    assert run.model.tobytes() == flat_model(("c1", "c2", "c3", "c4"))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda r: {"contributions": {}}, "its clients have 0"),
        (
            lambda r: {"contributions": {ClientId("zz"): next(iter(r.contributions.values()))}},
            "who are not in its region",
        ),
        (lambda r: {"sum": "short"}, "a sum of 6 entries cannot be merged with one of 2"),
    ],
)
def test_a_sum_that_cannot_be_puts_its_edge_in_quarantine(change, text):
    run = hierarchy(num_rounds=1)
    run.blobs[Digest("short")] = arrays_to_bytes(fed_avg().aggregate.to_arrays(fed_avg().aggregate.init(2)))
    while not any(isinstance(a, ForwardSum) for _, a in run.queue):
        run.pump(1)
    sender, forward = next((s, a) for s, a in run.queue if isinstance(a, ForwardSum))
    run.queue = type(run.queue)((s, a) for s, a in run.queue if a is not forward)
    run.blobs[forward.report.sum] = forward.data
    run.feed(SumReceived(msgspec.structs.replace(forward.report, **change(forward.report)), Epoch(1)))
    quarantine = next(a for a in run.actions if isinstance(a, Quarantine))
    assert quarantine.client == sender
    assert text in quarantine.reason
    run.pump()
    assert outcome_of(run).kind is OutcomeKind.COMPLETED


@pytest.mark.parametrize(
    ("fields", "epoch", "reason"),
    [
        ({"run": RunId("other")}, 2, Refusal.WRONG_RUN),
        ({"edge": NodeId("edge-9")}, 2, Refusal.NOT_ASKED),
        ({"assignment": 99}, 2, Refusal.LATE),
        ({}, 1, Refusal.WRONG_EPOCH),
    ],
)
def test_a_sum_that_does_not_belong_is_refused(fields, epoch, reason):
    run = hierarchy()
    while not any(isinstance(a, ForwardSum) for _, a in run.queue):
        run.pump(1)
    forward = next(a for _, a in run.queue if isinstance(a, ForwardSum))
    run.feed(EdgeReturned(forward.report.edge, Epoch(2)))
    run.blobs[forward.report.sum] = forward.data
    run.feed(SumReceived(msgspec.structs.replace(forward.report, **fields), Epoch(epoch)))
    refusals = [a for a in run.actions if isinstance(a, RefuseSum)]
    assert [a.reason for a in refusals] == [reason]
    assert not any(isinstance(a, AcceptSum) for a in run.actions)


def test_a_run_waits_for_edges_before_it_asks():
    run = MemoryHierarchy(fed_avg(), towards_truth, dict(HOMES))
    run.edges[EDGES[0]].is_up = False
    name = run.edges.pop(EDGES[0])
    run.start("r", START, num_rounds=1, quorum=4)
    assert any(isinstance(a, AnnounceWaiting) for a in run.actions)
    run.edges[EDGES[0]], name.is_up = name, True
    run.feed(EdgeReturned(EDGES[0], Epoch(1)))
    run.pump()
    assert run.model.tobytes() == flat_model(num_rounds=1)


def test_a_client_that_moved_is_asked_under_its_new_edge():
    run = hierarchy()
    run.feed(ClientHomed(ClientId("c0"), EDGES[1]))
    run.pump()
    second = [a.order for a in run.actions if isinstance(a, OpenRegion) and a.order.round == 2]
    assert {o.edge: o.clients for o in second}[EDGES[1]] == ("c0", "c1", "c3")
    assert run.model.tobytes() == flat_model()


def test_a_client_that_returns_after_its_region_closed_gets_a_region_of_its_own():
    run = hierarchy(num_rounds=1)
    del run.present[ClientId("c0")]
    orders = [a for _, a in run.queue if isinstance(a, OpenRegion)]
    run.queue.clear()
    run.deliver("", orders[0])
    run.pump()
    assert run.state.run.gathering.missing == {"c0": "not connected to edge-1"}
    run.feed(ClientLost(ClientId("c0"), "gone"))
    run.present[ClientId("c0")] = Epoch(2)
    run.feed(ClientReturned(ClientId("c0"), Epoch(2)))
    run.pump()
    run.deliver("", orders[1])
    run.pump()
    assert run.model.tobytes() == flat_model(num_rounds=1)


def test_an_update_no_region_asked_for_is_refused_by_the_edge():
    run = hierarchy()
    edge = run.edges[EDGES[0]]
    event = UpdateReceived(RunId("other"), RoundNumber(1), ClientId("c0"), Epoch(1), 1, Digest("x"))
    _, actions = make_edge_step(edge.blobs)(edge.state, event)
    assert actions[0].reason is Refusal.WRONG_RUN


def test_a_cancelled_run_ends_and_its_edges_forget_it():
    run = hierarchy()
    run.pump(2)
    run.feed(RunCancelled(RunId("r"), "ctrl-C"))
    run.pump()
    assert outcome_of(run).kind is OutcomeKind.CANCELLED
    assert all(edge.state.regions == {} for edge in run.edges.values())


def test_a_log_that_does_not_begin_with_a_start_is_refused():
    with pytest.raises(StoreError, match="begins with EdgeLost, a run begins with HierarchyStarted"):
        make_cloud_step(fed_avg(), {})(None, EdgeLost(EDGES[0], "x"))
