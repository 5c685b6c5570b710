"""Rounds as a pure function: dropouts, duplicates, fences, quarantine, replay."""

from __future__ import annotations

import itertools
import re

import msgspec
import numpy as np
import pytest

from edgewise.codecs.bundle import bundle_to_bytes, encode_bundle
from edgewise.core.errors import FrameRefused, StoreError
from edgewise.core.ids import ClientId, Generation, NodeId, RoundNumber, RunId, digest_of
from edgewise.core.seeds import Seeds
from edgewise.training.algorithms import fed_adam, fed_avg
from edgewise.training.protocols import make_protocol, replay
from edgewise.training.protocols.event_log import decode_event, encode_event
from edgewise.training.protocols.folding import vector_from_bytes
from edgewise.training.protocols.letters import Address, BlobName, RunEnded, UpdateReport, WorkFailed, WorkOrder
from edgewise.training.protocols.messages import (
    Accept,
    AnnounceRound,
    AnnounceWaiting,
    ClientLost,
    ClientReturned,
    Delivered,
    EdgeLost,
    EndRun,
    LetterInvalid,
    OutcomeKind,
    Quarantine,
    Received,
    Refusal,
    Refuse,
    RunCancelled,
    RunStarted,
    SeenClient,
    Send,
    SetTimer,
    Store,
    TimerFired,
)
from edgewise.training.protocols.run_state import Phase
from edgewise.training.select import uniform
from edgewise.training.server import step
from tests.training.runs import config_of, virtual_run

COORDINATOR = make_protocol("synchronous").roles["coordinator"]

SIZE = 5
NAMES = ("a", "b", "c")
TRUTH = {name: np.arange(SIZE, dtype=np.float32) * (i + 1) for i, name in enumerate(NAMES)}
COUNTS = {"a": 10, "b": 20, "c": 30}


def towards_truth(client, number, model, seeds):
    """Moves half of the way to the client's truth, with noise from its place in the seed tree."""
    noise = seeds.rng().normal(size=SIZE).astype(np.float32)
    return (TRUTH[client] - model) / 2 + noise, COUNTS[client], {"loss": float(number)}


def seeds_of(client, number):
    return Seeds(0).at("round", number, "client", client)


class Bench:
    """The coordinator of a started run of three clients, fed by hand."""

    def __init__(self, algorithm=None, present=NAMES, **fields):
        self.algorithm, self.log, self.actions, self.state = algorithm or fed_avg(), [], [], None
        fields = {"num_rounds": 2, "round_deadline_s": 5.0, **fields}
        self.config, self.blobs = config_of(self.algorithm, NAMES, np.zeros(SIZE, np.float32), **fields)
        self.step = COORDINATOR.make_step(self.algorithm, self.blobs)
        self.feed(RunStarted(self.config, {ClientId(c): SeenClient(Generation(1)) for c in present}))

    def feed(self, event):
        self.log.append(event)
        self.state, self.last = self.step(self.state, event)
        for action in self.last:
            if isinstance(action, Store):
                self.blobs.update(action.blobs)
        self.actions.extend(self.last)
        return self.last

    def put(self, data):
        self.blobs[digest_of(data)] = data
        return BlobName(digest_of(data), len(data))

    def coded(self, update):
        return self.put(bundle_to_bytes(encode_bundle({}, {"model": update}, None, np.random.default_rng(0))[0]))

    def made(self, client, number=1, generation=1, **fields):
        update, count, metrics = towards_truth(client, number, self.model, seeds_of(client, number))
        named = {"client": ClientId(client), "round": RoundNumber(number), "num_examples": count, "metrics": metrics}
        letter = UpdateReport(**{"run": self.config.run, "update": self.coded(update), **named, **fields})
        return Received(letter=letter, sender=NodeId(client), generation=Generation(generation))

    def failed(self, client, cause, number=1):
        letter = WorkFailed(run=self.config.run, round=RoundNumber(number), client=ClientId(client), cause=cause)
        return self.feed(Received(letter=letter, sender=NodeId(client), generation=Generation(1)))

    def sent(self, client, number=1, generation=1, **fields):
        return self.feed(self.made(client, number, generation, **fields))

    def back(self, client, generation=1):
        return self.feed(ClientReturned(ClientId(client), SeenClient(Generation(generation))))

    def overdue(self, number=1):
        return self.feed(TimerFired(f"round/{number}/0"))

    @property
    def model(self):
        return vector_from_bytes(self.blobs[self.state.model], SIZE)

    @property
    def asked(self):
        return asked_in(self.last)

    def found(self, kind):
        return next((action for action in self.last if isinstance(action, kind)), None)


def asked_in(actions):
    return tuple(a.letter.client for a in actions if isinstance(a, Send) and isinstance(a.letter, WorkOrder))


def test_a_run_asks_everyone_and_completes():
    bench = Bench(num_rounds=3)
    assert bench.asked == NAMES
    for number in (1, 2, 3):
        for client in NAMES:
            bench.sent(client, number)
    outcome = bench.found(EndRun).outcome
    assert (outcome.kind, outcome.num_rounds, outcome.model) == (OutcomeKind.COMPLETED, 3, bench.state.model)
    assert [s.metrics["loss"] for s in bench.state.rounds] == [1.0, 2.0, 3.0]
    assert bench.state.rounds[0].num_examples == COUNTS


def test_the_model_is_the_mean_weighted_by_examples():
    bench = Bench(num_rounds=1)
    updates = {c: towards_truth(c, 1, np.zeros(SIZE, np.float32), seeds_of(c, 1)) for c in NAMES}
    for client in NAMES:
        bench.sent(client)
    expected = sum(u.astype(np.float64) * w for u, w, _ in updates.values()) / 60
    np.testing.assert_array_equal(bench.model, expected.astype(np.float32))


@pytest.mark.parametrize("algorithm", [fed_avg, fed_adam])
def test_the_model_does_not_depend_on_the_order_of_arrival(algorithm):
    models = set()
    for order in itertools.permutations(NAMES):
        bench = Bench(algorithm())
        for number in (1, 2):
            for client in order:
                bench.sent(client, number)
        models.add(bench.state.model)
    assert len(models) == 1


def test_a_client_lost_in_a_round_is_a_dropout_with_its_cause():
    bench = Bench(quorum=2)
    bench.sent("a")
    bench.feed(ClientLost(ClientId("b"), "its process ended"))
    bench.sent("c")
    summary = bench.found(AnnounceRound).summary
    assert summary.participants == ("a", "c")
    assert summary.missing == {"b": "its process ended"}
    assert bench.asked == ("a", "c")


def test_a_dropout_leaves_the_model_of_the_survivors():
    bench, survivors = Bench(quorum=2, num_rounds=1), Bench(quorum=2, num_rounds=1, present=("a", "c"))
    bench.feed(ClientLost(ClientId("b"), "gone"))
    for each in (bench, survivors):
        each.sent("c")
        each.sent("a")
    assert bench.state.model == survivors.state.model


def test_at_the_deadline_a_quorum_closes_the_round():
    bench = Bench(quorum=2)
    bench.sent("a")
    bench.sent("b")
    bench.overdue()
    assert bench.found(AnnounceRound).summary.missing == {"c": "no update within 5 s"}


def test_below_the_quorum_the_deadline_ends_the_run_with_the_causes():
    bench = Bench(quorum=2)
    bench.sent("a")
    bench.feed(ClientLost(ClientId("b"), "frozen"))
    bench.overdue()
    outcome = bench.found(EndRun).outcome
    assert outcome.kind is OutcomeKind.TOO_FEW_CLIENTS
    assert "round 1 has 1 updates, the quorum is 2; missing: b (frozen), c (no update within 5 s)" in outcome.sentence
    assert outcome.model == bench.config.initial_model


def test_the_deadline_of_another_round_changes_nothing():
    bench = Bench()
    before = bench.state
    bench.overdue(7)
    assert bench.state == before


def test_when_all_have_settled_below_the_quorum_the_run_says_what_it_waits_for():
    bench = Bench(quorum=3)
    bench.sent("a")
    bench.sent("b")
    bench.feed(ClientLost(ClientId("c"), "unreachable"))
    assert "missing: c (unreachable)" in bench.found(AnnounceWaiting).sentence
    bench.back("c", 2)
    assert bench.asked == ("c",)
    bench.sent("c", generation=2)
    assert bench.found(AnnounceRound).summary.participants == NAMES


def test_a_run_waits_for_a_quorum_of_clients_before_it_asks():
    bench = Bench(quorum=2, present=("a",))
    assert bench.state.phase is Phase.WAITING
    assert "round 1 has 1 clients, the quorum is 2; missing: b (not seen yet)" in bench.found(AnnounceWaiting).sentence
    bench.back("b")
    assert bench.asked == ("a", "b")


def test_a_run_that_never_finds_its_quorum_ends():
    bench = Bench(quorum=2, present=("a",))
    bench.overdue()
    assert bench.found(EndRun).outcome.kind is OutcomeKind.TOO_FEW_CLIENTS


def test_a_duplicate_is_refused_and_changes_only_its_counter():
    bench = Bench()
    bench.sent("a")
    before = bench.state.collection
    bench.sent("a")
    assert bench.found(Refuse).reason is Refusal.DUPLICATE
    assert bench.state.collection.answers == before.answers
    assert bench.state.collection.refused == {"duplicate": 1}


@pytest.mark.parametrize(
    ("number", "generation", "client", "reason"),
    [
        (0, 2, "b", Refusal.LATE),
        (9, 2, "b", Refusal.WRONG_ROUND),
        (1, 1, "b", Refusal.WRONG_GENERATION),
        (1, 2, "z", Refusal.NOT_ASKED),
    ],
)
def test_an_update_that_does_not_belong_is_refused(number, generation, client, reason):
    bench = Bench()
    bench.back("b", 2)
    event = bench.made("b", number, generation)
    bench.feed(msgspec.structs.replace(event, letter=msgspec.structs.replace(event.letter, client=ClientId(client))))
    assert bench.found(Refuse).reason is reason
    assert bench.state.collection.answers == {}


def test_an_update_of_another_run_is_refused():
    bench = Bench()
    bench.sent("a", run=RunId("other"))
    assert bench.found(Refuse).reason is Refusal.WRONG_RUN


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        (np.full(SIZE, np.nan, np.float32), "lower its learning rate"),
        (np.full(SIZE, 1e9, np.float32), r"is 1e\+09; a finite number"),
        (np.zeros(SIZE + 1, np.float32), r"section 'model' must have shape \(5,\), found \(6,\)"),
    ],
)
def test_a_bad_update_puts_its_sender_in_quarantine_and_the_round_goes_on(payload, text):
    bench = Bench(quorum=2)
    bench.sent("b", update=bench.coded(payload))
    quarantine = bench.found(Quarantine)
    assert quarantine.client == "b"
    assert re.search(text, quarantine.reason)
    bench.sent("a")
    bench.sent("c")
    assert bench.found(AnnounceRound).summary.missing["b"].startswith("in quarantine: ")
    assert bench.asked == ("a", "c")


def test_a_count_that_is_none_puts_its_sender_in_quarantine():
    bench = Bench(quorum=2)
    bench.sent("b", num_examples=-1)
    assert bench.found(Quarantine).reason.startswith("-1 is not a number of examples")


def test_who_is_in_quarantine_stays_out_when_it_returns():
    bench = Bench(quorum=2)
    fields = {"run": RunId("r"), "client": ClientId("b"), "round": RoundNumber(1), "generation": Generation(1)}
    bench.feed(LetterInvalid(**fields, reason="not a letter"))
    bench.back("b", 2)
    assert bench.last == ()
    bench.sent("b", generation=2)
    assert bench.found(Refuse).reason is Refusal.QUARANTINED


def test_a_client_without_examples_is_a_dropout_not_a_fault():
    bench = Bench(quorum=2)
    bench.sent("a", num_examples=0)
    assert bench.found(Refuse).reason is Refusal.NO_EXAMPLES
    assert "no examples" in bench.state.collection.missing["a"]
    assert bench.state.collection.members["a"].quarantine == ""


def test_a_client_that_fails_its_work_is_a_dropout_with_its_own_cause():
    bench = Bench(quorum=2)
    bench.failed("a", "task file does not import")
    assert bench.found(Accept) is not None
    assert bench.state.collection.missing == {"a": "task file does not import"}


def test_a_client_that_failed_and_is_there_is_asked_again():
    bench = Bench(quorum=3)
    for client in NAMES[1:]:
        bench.sent(client)
    bench.failed("a", "its model did not arrive")
    assert "its model did not arrive" in bench.found(AnnounceWaiting).sentence
    bench.back("a")  # what a server says of who is missing but there
    assert bench.asked == ("a",)
    bench.sent("a")
    assert bench.found(AnnounceRound).summary.round == 1


def test_a_returned_client_is_fenced_against_its_former_self():
    bench = Bench()
    old = bench.made("a", generation=1)
    bench.feed(ClientLost(ClientId("a"), "its process ended"))
    bench.back("a", 2)
    assert bench.asked == ("a",)
    bench.feed(old)
    assert bench.found(Refuse).reason is Refusal.WRONG_GENERATION


def test_the_late_update_of_a_lost_client_counts_but_does_not_bring_it_back():
    bench = Bench(quorum=2)
    under_way = bench.made("b")
    bench.sent("a")
    bench.feed(ClientLost(ClientId("b"), "its link is cut"))
    bench.feed(under_way)
    bench.sent("c")
    assert bench.found(AnnounceRound).summary.participants == NAMES
    assert bench.asked == ("a", "c")
    bench.back("b")
    assert bench.state.collection.able == NAMES


def test_a_new_client_joins_the_next_round():
    bench = Bench()
    bench.back("d")
    for client in NAMES:
        bench.sent(client)
    assert bench.asked == (*NAMES, "d")


def test_a_cancelled_run_ends_and_refuses_what_comes_later():
    bench = Bench()
    update = bench.made("a")
    bench.feed(RunCancelled(RunId("r"), "ctrl-C"))
    assert bench.found(EndRun).outcome.kind is OutcomeKind.CANCELLED
    bench.feed(update)
    assert bench.found(Refuse).text == "run r has ended."


@pytest.mark.parametrize("fields", [{"quorum": 4}, {"num_rounds": 0}])
def test_a_run_that_cannot_be_is_failed_at_once(fields):
    bench = Bench(**fields)
    assert bench.found(EndRun).outcome.kind is OutcomeKind.FAILED


def test_replay_of_the_log_rebuilds_the_state_at_every_boundary():
    bench = Bench(quorum=2)
    states = [bench.state]
    for event in (
        lambda: bench.made("a"),
        lambda: ClientLost(ClientId("b"), "gone"),
        lambda: bench.made("c"),
        lambda: ClientReturned(ClientId("b"), SeenClient(Generation(2))),
        lambda: bench.made("c", 2),
        lambda: bench.made("a", 2),
    ):
        bench.feed(event())
        states.append(bench.state)
    stored = {d for a in bench.actions if isinstance(a, Store) for d in a.blobs}
    kept = {d: b for d, b in bench.blobs.items() if d not in stored}
    log = [decode_event(encode_event(event)) for event in bench.log]
    for upto, state in enumerate(states, start=1):
        store = dict(kept)
        assert replay(COORDINATOR.make_step(bench.algorithm, store), log[:upto], store) == state
        assert set(COORDINATOR.needs(state)) <= set(store)


def test_resume_asks_again_whoever_has_not_answered():
    bench = Bench()
    bench.sent("b")
    actions = COORDINATOR.resume(bench.state)
    assert actions[0] == SetTimer("round/1/0", 5.0)
    assert asked_in(actions) == ("a", "c")


def test_resume_of_a_finished_run_repeats_its_end():
    bench = Bench()
    bench.feed(RunCancelled(RunId("r"), "enough"))
    assert COORDINATOR.resume(bench.state) == bench.last


def test_a_log_that_does_not_begin_with_a_start_is_refused():
    bench = Bench()
    with pytest.raises(StoreError, match="begins with ClientLost"):
        COORDINATOR.make_step(fed_avg(), {})(None, ClientLost(ClientId("a"), "x"))
    with pytest.raises(StoreError, match="is not in the store"):
        COORDINATOR.make_step(fed_avg(), {})(None, RunStarted(bench.config, {}))
    with pytest.raises(StoreError, match="are not an event of a run"):
        decode_event(b"\x00")


def test_a_model_that_diverges_on_the_server_ends_the_run_with_the_last_good_one():
    bench = Bench(fed_avg(server=step(1e38)), num_rounds=3)
    for client in NAMES:
        bench.sent(client)
    outcome = bench.found(EndRun).outcome
    assert outcome.kind is OutcomeKind.FAILED
    assert re.search(
        r"round 1: step\(learning_rate=1e\+38\) gives a model with \d of 5 entries not fini", outcome.sentence
    )
    assert (outcome.model, outcome.num_rounds) == (bench.config.initial_model, 0)


def test_a_selection_below_the_quorum_fails_the_run_instead_of_waiting_for_ever():
    bench = Bench(fed_avg(select=uniform(2)), quorum=3)
    assert "uniform(cohort_size=2) chose 2 clients, the quorum is 3" in bench.found(EndRun).outcome.sentence


def test_a_model_of_another_size_is_refused():
    bench = Bench()
    spec = msgspec.structs.replace(bench.config.spec, num_entries=SIZE + 1)
    config = msgspec.structs.replace(bench.config, spec=spec)
    with pytest.raises(FrameRefused, match="a model of 6 entries has 24 bytes, found 20"):
        COORDINATOR.make_step(fed_avg(), bench.blobs)(None, RunStarted(config, {}))


def test_a_second_start_and_events_of_strangers_change_nothing():
    bench = Bench()
    before = bench.state
    bench.feed(RunStarted(bench.config, {}))
    bench.feed(ClientLost(ClientId("stranger"), "gone"))
    bench.feed(EdgeLost(NodeId("edge-1"), "no business of this protocol"))
    bench.failed("a", "too late", number=7)
    fields = {"run": RunId("other"), "client": ClientId("a"), "round": RoundNumber(1), "generation": Generation(1)}
    bench.feed(LetterInvalid(**fields, reason="x"))
    assert bench.found(Refuse).reason is Refusal.WRONG_RUN
    assert bench.state == before


def test_a_loss_that_is_no_number_does_not_spoil_the_mean():
    bench = Bench(num_rounds=1)
    bench.sent("a", metrics={"loss": float("nan")})
    bench.sent("b")
    bench.sent("c")
    assert bench.state.rounds[0].metrics == {"loss": 1.0}


def test_an_order_that_its_client_refuses_is_a_dropout_with_the_reason():
    bench = Bench(quorum=2)
    refused = {"to": Address("client", "a"), "accepted": False, "reason": "no task is installed"}
    bench.feed(Delivered(key="work/a/7/0", **refused))
    assert bench.state.collection.missing == {}
    bench.feed(Delivered(key="work/a/1/0", **refused))
    assert bench.state.collection.missing == {"a": "no task is installed"}


def test_an_order_is_wanted_while_its_update_is_awaited():
    bench = Bench(quorum=2)
    orders = [a for a in bench.last if isinstance(a, Send)]
    bench.sent("a")
    assert [COORDINATOR.wants(bench.state, o.to, o.letter) for o in orders] == [False, True, True]


def test_who_counted_is_told_with_the_next_order_and_at_the_end():
    bench = Bench(quorum=2)
    bench.sent("a")
    bench.sent("b")
    bench.overdue()
    assert {a.letter.client: a.letter.counted for a in bench.last if isinstance(a, Send)} == {"a": 1, "b": 1, "c": 0}
    for client in NAMES:
        bench.sent(client, 2)
    ended = {a.to.name: a.letter for a in bench.last if isinstance(a, Send) and isinstance(a.letter, RunEnded)}
    assert {client: letter.counted for client, letter in ended.items()} == dict.fromkeys(NAMES, 2)
    assert bench.state.records["c"].num_counted == 1
    bench.back("a", 2)
    assert bench.last == (Send(Address("client", "a"), ended["a"]),)


def test_the_virtual_driver_ends_as_the_step_fed_by_hand():
    bench = Bench()
    for number in (1, 2):
        for client in NAMES:
            bench.sent(client, number)
    run = virtual_run(fed_avg(), towards_truth, NAMES, np.zeros(SIZE, np.float32), num_rounds=2)
    assert run.run().tobytes() == bench.model.tobytes()
    assert len(run.blobs) <= 3  # the first and the last model, and no update
