"""Rounds over edges: equal to flat rounds to the bit, whatever dies in between."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from edgewise.codecs import error_feedback, int8, top_k
from edgewise.core.errors import MisfitError, StoreError
from edgewise.core.ids import ClientId, Digest, Generation, NodeId, RoundNumber, RunId, digest_of
from edgewise.simulation.virtual_node import Disturbance
from edgewise.training.algorithms import fed_adam, fed_avg
from edgewise.training.protocols import check_carries, make_protocol, replay
from edgewise.training.protocols.collection import MOST_FAILURES
from edgewise.training.protocols.event_log import decode_event, encode_event
from edgewise.training.protocols.folding import empty_sums, sums_to_bytes
from edgewise.training.protocols.letters import Address, BlobName, Contribution, EdgeTask, SumReport, UpdateReport
from edgewise.training.protocols.messages import (
    AnnounceRound,
    AnnounceWaiting,
    ClientLost,
    ClientReturned,
    Delivered,
    EdgeLost,
    EdgeReturned,
    OutcomeKind,
    Quarantine,
    Received,
    Refusal,
    Refuse,
    RunCancelled,
    SeenClient,
    Send,
    Store,
    TimerFired,
)
from tests.training.runs import virtual_run

SIZE = 6
EDGES = (NodeId("edge-1"), NodeId("edge-2"))
EDGE_OF = {ClientId(f"c{i}"): EDGES[i % 2] for i in range(5)}
START = np.zeros(SIZE, np.float32)
CLOUD = make_protocol("hierarchical").roles["coordinator"]


def towards_truth(client, number, model, seeds):
    truth = np.arange(SIZE, dtype=np.float32) + 3 * int(client[1:])
    return (truth - model) / 2 + seeds.rng().normal(size=SIZE).astype(np.float32), 7 + int(client[1:]), {"loss": 1.0}


def hierarchy(algorithm=None, train=towards_truth, start=True, **fields):
    fields = {"num_rounds": 2, "quorum": 2, "round_deadline_s": 10.0, **fields}
    how = {"disturbance": Disturbance()}
    run = virtual_run(
        algorithm or fed_avg(), train, EDGE_OF, START, protocol="hierarchical", edge_of=EDGE_OF, how=how, **fields
    )
    if start:
        run.start()
    return run


def flat_model(clients=tuple(EDGE_OF), algorithm=None, num_rounds=2):
    return virtual_run(algorithm or fed_avg(), towards_truth, clients, START, num_rounds=num_rounds).run().tobytes()


def edge(run, index=0):
    return run.nodes["edge"][EDGES[index]]


def client(run, name):
    return run.nodes["client"][name]


def summaries(run):
    return [a.summary for a in run.announced if isinstance(a, AnnounceRound)]


def state_of(run):
    return run.coordinator.state


def forwarded(run, index=0):
    """Pumps until an edge has folded; its report, not yet at the cloud."""
    node = edge(run, index)
    while node.state is None or not any(task.report for task in node.state.tasks.values()):
        assert run.pump(1)
    return next(task.report for task in node.state.tasks.values())


def to_cloud(run, report, generation=1):
    return run.feed(run.coordinator, Received(letter=report, sender=report.edge, generation=Generation(generation)))


@pytest.mark.parametrize("parts", [{}, {"uplink": int8("stochastic")}, {"uplink": error_feedback(top_k(0.5))}])
@pytest.mark.parametrize("algorithm", [fed_avg, fed_adam])
def test_two_levels_end_with_the_bytes_of_one(algorithm, parts):
    run = hierarchy(algorithm(**parts))
    run.pump()
    assert run.outcome.kind is OutcomeKind.COMPLETED
    assert run.model.tobytes() == flat_model(algorithm=algorithm(**parts))


def test_the_round_summary_counts_clients_not_edges():
    run = hierarchy()
    run.pump()
    assert run.view.rounds[0].num_examples == {c: 7 + int(c[1:]) for c in EDGE_OF}
    assert run.view.rounds[0].metrics["loss"] == 1.0
    assert set(run.view.edges) == set(EDGES)


def test_an_edge_killed_after_any_message_and_restarted_ends_with_the_same_bytes():
    undisturbed = flat_model()
    for after in range(hierarchy().pump() + 1):
        run = hierarchy()
        run.pump(after)
        if run.outcome is None:
            run.lose(edge(run), "its process ended")
            run.restart(edge(run))
            run.pump()
        assert run.model.tobytes() == undisturbed, after


@pytest.mark.parametrize("role", ["coordinator", "edge", "client"])
def test_a_role_that_replays_after_any_event_ends_with_the_same_bytes(role):
    class Kill(Disturbance):
        def __init__(self, at):
            self.at, self.seen = at, 0

        def kills(self, node, event):
            self.seen += node.role == role
            return node.role == role and self.seen == self.at

    undisturbed, at = flat_model(), 0
    while True:
        at += 1
        run = hierarchy(start=False)
        run.disturbance = Kill(at)
        run.start()
        run.pump()
        assert run.model.tobytes() == undisturbed, (role, at)
        if run.disturbance.seen < at:
            break
    assert at > 8


def test_an_edge_replays_its_log_to_the_identical_state():
    run = hierarchy()
    run.pump(30)
    node = edge(run)
    log = [decode_event(encode_event(event)) for event in node.log]
    assert replay(node.step, log, dict(run.blobs)) == node.state


def test_a_sum_forwarded_twice_counts_once():
    run = hierarchy()
    report = forwarded(run)
    to_cloud(run, report)
    assert to_cloud(run, report)[0].reason is Refusal.DUPLICATE
    run.pump()
    assert run.model.tobytes() == flat_model()


def move_all(run, index=0, to=1):
    for name, held_by in EDGE_OF.items():
        if held_by == EDGES[index]:
            run.move(name, EDGES[to])


def test_clients_of_a_lost_edge_are_asked_again_under_another():
    run = hierarchy()
    run.pump(3)
    run.lose(edge(run), "its process ended")
    move_all(run)
    run.pump()
    assert run.outcome.kind is OutcomeKind.COMPLETED
    assert run.model.tobytes() == flat_model()


def test_the_sum_of_a_task_that_was_given_to_others_is_refused():
    run = hierarchy()
    report = forwarded(run)
    run.lose(edge(run), "its process ended")
    move_all(run)
    assert to_cloud(run, report)[0].reason is Refusal.LATE
    run.pump()
    assert run.model.tobytes() == flat_model()


def test_clients_that_did_not_move_are_asked_again_where_their_edge_returns():
    run = hierarchy(num_rounds=1, quorum=5)
    run.pump(3)
    run.lose(edge(run), "its process ended")
    run.move(ClientId("c0"), EDGES[1])
    assert "its edge edge-1 is lost" in run.view.missing["c2"]
    run.restart(edge(run))
    run.pump()
    assert run.model.tobytes() == flat_model(num_rounds=1)


def test_the_late_sum_of_a_lost_edge_counts_but_does_not_bring_it_back():
    run = hierarchy()
    report = forwarded(run)
    run.feed(run.coordinator, EdgeLost(EDGES[0], "its link is cut"))
    to_cloud(run, report)
    run.pump()
    assert summaries(run)[0].missing == {}
    assert set(summaries(run)[1].num_examples) == {"c1", "c3"}


def test_an_edge_that_stays_away_costs_its_clients_the_round_at_the_deadline():
    run = hierarchy(num_rounds=1)
    run.lose(edge(run), "its process ended")
    run.pump()
    assert run.outcome.kind is OutcomeKind.COMPLETED
    assert summaries(run)[0].missing["c0"] == "no update within 10 s"
    assert run.model.tobytes() == flat_model(("c1", "c3"), num_rounds=1)


def test_a_run_that_waits_for_an_edge_says_so():
    run = hierarchy()
    run.lose(edge(run), "its process ended")
    assert run.announced[-1].sentence.startswith(
        "round 1 waits for edge edge-1 (its process ended), which holds the upda"
    )
    assert "of 3 clients" in run.announced[-1].sentence


def test_an_edge_that_refuses_its_task_is_lost():
    run = hierarchy()
    refused = Delivered(to=Address("edge", "edge-1"), key="task/1", accepted=False, reason="no task is installed")
    run.feed(run.coordinator, refused)
    assert run.view.edges["edge-1"].absence == "it refuses the order: no task is installed"


def test_a_run_ends_with_the_cause_where_too_few_clients_answer():
    run = hierarchy(quorum=3)
    run.lose(edge(run), "its process ended")
    run.pump()
    assert run.outcome.kind is OutcomeKind.TOO_FEW_CLIENTS
    assert "round 1 has 2 updates, the quorum is 3" in run.outcome.sentence


def test_a_client_lost_under_its_edge_is_a_dropout():
    run = hierarchy(num_rounds=1)
    run.pump(1)
    run.lose(client(run, "c2"), "frozen")
    run.pump()
    assert summaries(run)[0].missing == {"c2": "frozen"}
    assert run.model.tobytes() == flat_model(("c0", "c1", "c3", "c4"), num_rounds=1)


def test_the_edge_deadline_forwards_what_is_there():
    run = hierarchy(num_rounds=1)
    client(run, "c4").is_up = True
    run.agenda.step(run._work)
    client(run, "c4").is_up = False  # silent, and nobody says so
    run.pump()
    assert summaries(run)[0].missing == {"c4": "no update by the deadline of edge-1"}
    assert run.model.tobytes() == flat_model(("c0", "c1", "c2", "c3"), num_rounds=1)


def test_a_bad_update_is_stopped_at_the_edge_and_the_cloud_hears_of_the_quarantine():
    def poisoned(name, number, model, seeds):
        update, count, metrics = towards_truth(name, number, model, seeds)
        return update, -1 if name == "c0" else count, metrics

    run = hierarchy(train=poisoned)
    run.pump()
    assert any(isinstance(a, Quarantine) and a.client == "c0" for a in run.announced)
    assert "c0" not in summaries(run)[1].missing
    assert run.model.tobytes() == flat_model(("c1", "c2", "c3", "c4"))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda r: {"contributions": {}}, "its clients have 0"),
        (lambda r: {"contributions": {ClientId("zz"): Contribution(7)}}, "who are not in its task"),
        (lambda r: {"contributions": dict.fromkeys(r.contributions, Contribution(1))}, "its clients have 3"),
        (lambda r: {"sums": "short"}, "a sum of 6 entries is expected, found one of 2"),
    ],
)
def test_a_sum_that_cannot_be_puts_its_edge_in_quarantine(change, text):
    run = hierarchy(num_rounds=1)
    exchange = run.algorithm.exchanges[0]
    short = sums_to_bytes(exchange, empty_sums(exchange, 2))
    run.blobs[digest_of(short)] = short
    report, fields = forwarded(run), {}
    fields = change(report)
    if "sums" in fields:
        fields = {"sums": BlobName(digest_of(short), len(short))}
    run.lose(edge(run), "so that its honest sum does not come first")
    to_cloud(run, msgspec.structs.replace(report, **fields))
    quarantine = next(a for a in run.announced if isinstance(a, Quarantine))
    assert quarantine.client == report.edge
    assert text in quarantine.reason
    run.pump()
    assert run.outcome.kind is OutcomeKind.COMPLETED


def with_a_spoiled_sum(**fields):
    """A run whose edge-1 has sent nothing but nonsense; edge-2 has forwarded its sum."""
    run = hierarchy(**fields)
    report = msgspec.structs.replace(forwarded(run), contributions={})
    edge(run).is_up = False
    to_cloud(run, report)
    run.pump()
    return run


def ask_again(run):
    for name in run.view.missing:
        run.feed(run.coordinator, ClientReturned(name, run.seen(name)))
    run.pump()


def test_clients_of_an_edge_in_quarantine_that_never_move_end_a_run_without_a_deadline():
    run = with_a_spoiled_sum(quorum=3, round_deadline_s=None)
    for _ in range(MOST_FAILURES):
        assert run.outcome is None
        assert "missing: c0 (edge-1 is in quarantine: " in run.announced[-1].sentence
        ask_again(run)
    assert run.outcome.kind is OutcomeKind.TOO_FEW_CLIENTS
    assert "c0 (asked 6 times in vain: edge-1 is in quarantine: " in run.outcome.sentence


def test_clients_of_an_edge_in_quarantine_that_move_take_part():
    run = with_a_spoiled_sum(quorum=5, round_deadline_s=None)
    for _ in range(MOST_FAILURES - 1):
        ask_again(run)
    for name in ("c0", "c2", "c4"):
        run.move(ClientId(name), EDGES[1])
    run.pump()
    assert run.model.tobytes() == flat_model()


def test_clients_under_no_edge_are_named_as_what_a_run_waits_for():
    run = hierarchy(start=False, quorum=3, round_deadline_s=None)
    run.edge_of = {name: NodeId("") if name in ("c1", "c3") else EDGES[0] for name in EDGE_OF}
    run.lose(client(run, "c4"), "frozen")
    run.start()
    assert run.announced[-1].sentence == (
        "round 1 has 2 clients, the quorum is 3; missing: c4 (not seen yet), c1 (it stands under no edge; start it with "
        "--connect to one, or take the protocol synchronous), c3 (it stands under no edge; start it with --connect to "
        "one, or take the protocol synchronous)"
    )
    run.edge_of = {**run.edge_of, "c1": EDGES[0]}
    run.feed(run.coordinator, ClientReturned(ClientId("c1"), run.seen(ClientId("c1"))))
    assert run.view.outstanding == ("c0", "c1", "c2")


@pytest.mark.parametrize(
    ("fields", "generation", "reason"),
    [
        ({"run": RunId("other")}, 2, Refusal.WRONG_RUN),
        ({"edge": NodeId("edge-9")}, 2, Refusal.NOT_ASKED),
        ({"assignment": 99}, 2, Refusal.LATE),
        ({"exchange": 1}, 2, Refusal.LATE),
        ({}, 1, Refusal.WRONG_GENERATION),
    ],
)
def test_a_sum_that_does_not_belong_is_refused(fields, generation, reason):
    run = hierarchy()
    report = forwarded(run)
    run.feed(run.coordinator, EdgeReturned(report.edge, Generation(2)))
    actions = to_cloud(run, msgspec.structs.replace(report, **fields), generation)
    assert [a.reason for a in actions if isinstance(a, Refuse)] == [reason]


def test_a_run_waits_for_edges_before_it_asks():
    run = hierarchy(start=False, num_rounds=1, quorum=4)
    edge(run).is_up = False
    run.start()
    assert "round 1 has 2 clients, the quorum is 4" in run.announced[-1].sentence
    assert isinstance(run.announced[-1], AnnounceWaiting)
    run.bring_back(edge(run))
    run.pump()
    assert run.model.tobytes() == flat_model(num_rounds=1)


def test_a_client_that_moved_answers_where_it_was_asked_and_is_asked_next_under_its_new_edge():
    run = hierarchy()
    run.pump(1)
    run.edge_of = {**EDGE_OF, ClientId("c0"): EDGES[1]}
    run.feed(run.coordinator, ClientReturned(ClientId("c0"), run.seen(ClientId("c0"))))
    run.pump()
    tasks = [e.letter for e in edge(run, 1).log if isinstance(e, Received) and isinstance(e.letter, EdgeTask)]
    assert tuple(tasks[-1].clients) == ("c0", "c1", "c3")
    assert run.model.tobytes() == flat_model()


def test_a_client_that_moved_before_it_answered_is_asked_again_under_its_new_edge():
    run = hierarchy(num_rounds=1, quorum=5)
    run.pump(2)
    run.move(ClientId("c0"), EDGES[1])
    run.pump()
    assert run.model.tobytes() == flat_model(num_rounds=1)


def test_a_client_that_returns_after_its_task_closed_gets_a_task_of_its_own():
    run = hierarchy(start=False, num_rounds=1)
    run.start()
    client(run, "c0").is_up = edge(run, 1).is_up = False
    while "c0" not in run.view.missing:
        assert run.pump(1)
    assert run.view.missing["c0"] == "not connected to edge-1"
    run.restart(client(run, "c0"))
    edge(run, 1).is_up = True
    run.pump()
    assert run.model.tobytes() == flat_model(num_rounds=1)


def test_an_update_no_task_asked_for_is_refused_by_the_edge():
    run = hierarchy()
    run.pump(3)
    fields = {"run": RunId("other"), "round": RoundNumber(1), "client": ClientId("c0"), "num_examples": 1}
    letter = UpdateReport(update=BlobName(Digest("x"), 1), **fields)
    actions = run.feed(edge(run), Received(letter=letter, sender=NodeId("c0"), generation=Generation(1)))
    assert actions[0].reason is Refusal.WRONG_RUN


def test_a_cancelled_run_ends_and_its_edges_and_clients_forget_it():
    run = hierarchy()
    run.pump(12)
    run.feed(run.coordinator, RunCancelled(RunId("r"), "ctrl-C"))
    assert run.outcome.kind is OutcomeKind.CANCELLED
    run.go(lambda: run.agenda.now > 5)
    assert all(node.state.ended and node.state.tasks == {} for node in run.nodes["edge"].values())
    assert all(node.state.phase == "over" for node in run.nodes["client"].values())


def test_what_counted_is_what_was_really_folded():
    class Silent(Disturbance):
        def fate(self, node, letter):
            return () if isinstance(letter, SumReport) and letter.edge == EDGES[0] else (0.0,)

    run = hierarchy()
    run.disturbance = Silent()
    run.pump()
    assert run.outcome.kind is OutcomeKind.COMPLETED
    counted = {c: record.counted for c, record in state_of(run).run.records.items()}
    assert counted == {"c0": 0, "c1": 2, "c2": 0, "c3": 2, "c4": 0}


def test_an_edge_that_folds_in_parts_does_not_carry_a_median():
    from edgewise.training.aggregate import coordinate_median

    with pytest.raises(MisfitError, match="must see every update of 'model', under hierarchical"):
        check_carries(make_protocol("hierarchical"), fed_avg(aggregate={"model": coordinate_median()}))


def test_a_log_that_does_not_begin_with_a_start_is_refused():
    with pytest.raises(StoreError, match="begins with EdgeLost, a run begins with RunStarted"):
        CLOUD.make_step(fed_avg(), {})(None, EdgeLost(EDGES[0], "x"))


def test_letters_of_the_cloud_are_wanted_while_their_sums_are():
    run = hierarchy()
    task = next(letter for letter in run.coordinator.outbox.values() if isinstance(letter, EdgeTask))
    to = Address("edge", task.edge)
    assert CLOUD.wants(state_of(run), to, task)
    to_cloud(run, forwarded(run))
    assert not CLOUD.wants(state_of(run), to, task)


def test_an_edges_resume_repeats_orders_and_sums():
    run = hierarchy()
    run.pump(2)
    node = edge(run)
    asked = [a for a in node.part.resume(node.state) if isinstance(a, Send)]
    assert {a.letter.client for a in asked} == {"c0", "c2", "c4"}
    assert all(a.letter.reply_to == Address("edge", "edge-1") for a in asked)
    report = forwarded(run)
    sent = [a.letter for a in node.part.resume(node.state) if isinstance(a, Send) and isinstance(a.letter, SumReport)]
    assert sent == [report]
    assert report.uplink_bytes > 0
    assert not any(isinstance(a, Store) for a in node.part.resume(node.state))


def test_a_timer_of_another_task_and_clients_of_others_change_nothing_on_an_edge():
    run = hierarchy()
    run.pump(2)
    node = edge(run)
    before = node.state
    for event in (
        TimerFired("task/99"),
        ClientLost(ClientId("c1"), "x"),
        ClientReturned(ClientId("c1"), SeenClient(Generation(1))),
        EdgeLost(EDGES[1], "x"),
    ):
        run.feed(node, event)
    assert node.state is before
