"""Rounds as a pure function: dropouts, duplicates, fences, quarantine, replay."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from edgewise.codecs import payload_to_bytes
from edgewise.codecs.codec import Payload
from edgewise.core.errors import FrameRefused, StoreError
from edgewise.core.ids import ClientId, Digest, Epoch, RoundNumber, RunId
from edgewise.core.seeds import Seeds
from edgewise.training.algorithms import fed_adam, fed_avg
from edgewise.training.protocols.driver import MemoryDriver
from edgewise.training.protocols.event_log import decode_event, encode_event
from edgewise.training.protocols.messages import (
    AnnounceRound,
    AnnounceWaiting,
    ClientFailed,
    ClientLost,
    ClientReturned,
    EndRun,
    OutcomeKind,
    Quarantine,
    Refusal,
    RefuseUpdate,
    RequestUpdate,
    RoundTimedOut,
    RunCancelled,
    RunStarted,
    StoreModel,
    UpdateInvalid,
    UpdateReceived,
)
from edgewise.training.protocols.synchronous import Phase, make_step, replay, resume
from edgewise.training.select import uniform
from edgewise.training.server import step

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
    """A started run of three clients."""

    def __init__(self, algorithm=None, present=NAMES, **fields):
        self.driver = MemoryDriver(algorithm or fed_avg(), towards_truth)
        fields = {"num_rounds": 2, "round_deadline_s": 5.0, **fields}
        self.config = self.driver.config("r", NAMES, np.zeros(SIZE, np.float32), **fields)
        self.feed(RunStarted(self.config, {ClientId(c): Epoch(1) for c in present}))

    def feed(self, event):
        self.last = self.driver.feed(event)
        return self.last

    def made(self, client, number=1, epoch=1):
        model = self.driver.state.model if number == self.state.gathering.round else self.config.initial_model
        request = RequestUpdate(self.config.run, RoundNumber(number), (client,), model)
        return self.driver.update(self.config, request, ClientId(client), epoch)

    def sent(self, client, number=1, epoch=1):
        return self.feed(self.made(client, number, epoch))

    @property
    def state(self):
        return self.driver.state

    def found(self, kind):
        return next((action for action in self.last if isinstance(action, kind)), None)


def test_a_run_asks_everyone_and_completes():
    bench = Bench(num_rounds=3)
    request = bench.found(RequestUpdate)
    assert request.clients == NAMES
    for number in (1, 2, 3):
        for client in NAMES:
            bench.sent(client, number)
    outcome = bench.found(EndRun).outcome
    assert (outcome.kind, outcome.num_rounds, outcome.model) == (OutcomeKind.COMPLETED, 3, bench.state.model)
    assert [s.metrics["loss"] for s in bench.state.rounds] == [1.0, 2.0, 3.0]
    assert bench.state.rounds[0].weights == COUNTS


def test_the_model_is_the_mean_weighted_by_examples():
    bench = Bench(num_rounds=1)
    updates = {c: towards_truth(c, 1, np.zeros(SIZE, np.float32), seeds_of(c, 1)) for c in NAMES}
    for client in NAMES:
        bench.sent(client)
    expected = sum(u.astype(np.float64) * w for u, w, _ in updates.values()) / 60
    np.testing.assert_array_equal(bench.driver.model, expected.astype(np.float32))


@pytest.mark.parametrize(("share", "kept"), [(0.5, 5), (0.25, -1)])
def test_a_weight_that_the_aggregator_changes_is_what_is_sent(share, kept):
    algorithm = fed_avg()
    shared = replace(algorithm.aggregate, prepare=lambda update, weight, rng: (update, weight * share))
    event = Bench(replace(algorithm, aggregate=shared)).made("a")  # 10 examples: 5 count; 2.5 are no number of them
    assert event.weight == kept


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
    assert bench.found(RequestUpdate).clients == ("a", "c")


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
    bench.feed(RoundTimedOut(RunId("r"), RoundNumber(1)))
    assert bench.found(AnnounceRound).summary.missing == {"c": "no update within 5 s"}


def test_below_the_quorum_the_deadline_ends_the_run_with_the_causes():
    bench = Bench(quorum=2)
    bench.sent("a")
    bench.feed(ClientLost(ClientId("b"), "frozen"))
    bench.feed(RoundTimedOut(RunId("r"), RoundNumber(1)))
    outcome = bench.found(EndRun).outcome
    assert outcome.kind is OutcomeKind.TOO_FEW_CLIENTS
    assert "round 1 has 1 updates, the quorum is 2; missing: b (frozen), c (no update within 5 s)" in outcome.sentence
    assert outcome.model == bench.config.initial_model


def test_the_deadline_of_another_round_changes_nothing():
    bench = Bench()
    before = bench.state
    bench.feed(RoundTimedOut(RunId("r"), RoundNumber(7)))
    assert bench.state == before


def test_when_all_have_settled_below_the_quorum_the_run_says_what_it_waits_for():
    bench = Bench(quorum=3)
    bench.sent("a")
    bench.sent("b")
    bench.feed(ClientLost(ClientId("c"), "unreachable"))
    assert "missing: c (unreachable)" in bench.found(AnnounceWaiting).sentence
    bench.feed(ClientReturned(ClientId("c"), Epoch(2)))
    assert bench.found(RequestUpdate).clients == ("c",)
    bench.sent("c", epoch=2)
    assert bench.found(AnnounceRound).summary.participants == NAMES


def test_a_run_waits_for_a_quorum_of_clients_before_it_asks():
    bench = Bench(quorum=2, present=("a",))
    assert bench.state.phase is Phase.WAITING
    assert "round 1 has 1 clients, the quorum is 2; missing: b (not seen yet)" in bench.found(AnnounceWaiting).sentence
    bench.feed(ClientReturned(ClientId("b"), Epoch(1)))
    assert bench.found(RequestUpdate).clients == ("a", "b")


def test_a_run_that_never_finds_its_quorum_ends():
    bench = Bench(quorum=2, present=("a",))
    bench.feed(RoundTimedOut(RunId("r"), RoundNumber(1)))
    assert bench.found(EndRun).outcome.kind is OutcomeKind.TOO_FEW_CLIENTS


def test_a_duplicate_is_refused_and_changes_only_its_counter():
    bench = Bench()
    bench.sent("a")
    before = bench.state.gathering
    bench.sent("a")
    assert bench.found(RefuseUpdate).reason is Refusal.DUPLICATE
    assert bench.state.gathering.answers == before.answers
    assert bench.state.gathering.refused == {"duplicate": 1}


@pytest.mark.parametrize(
    ("number", "epoch", "client", "reason"),
    [
        (0, 2, "b", Refusal.LATE),
        (9, 2, "b", Refusal.WRONG_ROUND),
        (1, 1, "b", Refusal.WRONG_EPOCH),
        (1, 2, "z", Refusal.NOT_ASKED),
    ],
)
def test_an_update_that_does_not_belong_is_refused(number, epoch, client, reason):
    bench = Bench()
    bench.feed(ClientReturned(ClientId("b"), Epoch(2)))
    event = bench.made("b", number, epoch)
    bench.feed(type(event)(event.run, event.round, client, event.epoch, event.weight, event.payload))
    assert bench.found(RefuseUpdate).reason is reason
    assert bench.state.gathering.answers == {}


def test_an_update_of_another_run_is_refused():
    bench = Bench()
    event = bench.made("a")
    bench.feed(type(event)(RunId("other"), event.round, event.client, event.epoch, event.weight, event.payload))
    assert bench.found(RefuseUpdate).reason is Refusal.WRONG_RUN


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        (np.full(SIZE, np.nan, np.float32), "lower its learning rate"),
        (np.full(SIZE, 1e9, np.float32), r"is 1e\+09; a finite number"),
        (np.zeros(SIZE + 1, np.float32), r"has shape \(5,\), found \(6,\)"),
    ],
)
def test_a_bad_update_puts_its_sender_in_quarantine_and_the_round_goes_on(payload, text):
    bench = Bench(quorum=2)
    good = bench.made("b")
    data = payload_to_bytes(Payload(payload.shape, {"values": payload}))
    bad = type(good)(good.run, good.round, good.client, good.epoch, 20, bench.driver.put(data))
    bench.feed(bad)
    quarantine = bench.found(Quarantine)
    assert quarantine.client == "b"
    assert re.search(text, quarantine.reason)
    bench.sent("a")
    bench.sent("c")
    assert bench.found(AnnounceRound).summary.missing["b"].startswith("in quarantine: ")
    assert bench.found(RequestUpdate).clients == ("a", "c")


@pytest.mark.parametrize(("weight", "kept"), [(14.0, 14), (2.5, -1), (float("nan"), -1), (float("inf"), -1)])
def test_a_weight_is_a_number_of_examples_in_the_log(weight, kept):
    event = UpdateReceived(RunId("r"), RoundNumber(1), ClientId("b"), Epoch(1), weight, Digest("x"))
    assert decode_event(encode_event(event)).weight == kept


def test_an_update_that_counts_no_examples_puts_its_sender_in_quarantine():
    bench = Bench(quorum=2)
    bench.feed(msgspec.structs.replace(bench.made("b"), weight=2.5))
    assert bench.found(Quarantine).reason.startswith("weight -1.0 is not a number of examples")


def test_who_is_in_quarantine_stays_out_when_it_returns():
    bench = Bench(quorum=2)
    bench.feed(UpdateInvalid(RunId("r"), RoundNumber(1), ClientId("b"), Epoch(1), "not a payload"))
    bench.feed(ClientReturned(ClientId("b"), Epoch(2)))
    assert bench.last == ()
    bench.sent("b", epoch=2)
    assert bench.found(RefuseUpdate).reason is Refusal.QUARANTINED


def test_a_client_without_examples_is_a_dropout_not_a_fault():
    bench = Bench(quorum=2)
    event = bench.made("a")
    bench.feed(type(event)(event.run, event.round, event.client, event.epoch, 0, event.payload))
    assert bench.found(RefuseUpdate).reason is Refusal.NO_EXAMPLES
    assert "no examples" in bench.state.gathering.missing["a"]
    assert bench.state.gathering.members["a"].quarantine == ""


def test_a_client_that_fails_its_work_is_a_dropout_with_its_own_cause():
    bench = Bench(quorum=2)
    bench.feed(ClientFailed(RunId("r"), RoundNumber(1), ClientId("a"), Epoch(1), "task file does not import"))
    assert bench.state.gathering.missing == {"a": "task file does not import"}


def test_a_client_that_failed_and_is_there_is_asked_again():
    bench = Bench(quorum=3)
    for client in NAMES[1:]:
        bench.sent(client)
    bench.feed(ClientFailed(RunId("r"), RoundNumber(1), ClientId("a"), Epoch(1), "its model did not arrive"))
    assert "its model did not arrive" in bench.found(AnnounceWaiting).sentence
    bench.feed(ClientReturned(ClientId("a"), Epoch(1)))  # what a server says of who is missing but there
    assert bench.found(RequestUpdate).clients == ("a",)
    bench.sent("a")
    assert bench.found(AnnounceRound).summary.round == 1


def test_a_returned_client_is_fenced_against_its_former_self():
    bench = Bench()
    old = bench.made("a", epoch=1)
    bench.feed(ClientLost(ClientId("a"), "its process ended"))
    bench.feed(ClientReturned(ClientId("a"), Epoch(2)))
    assert bench.found(RequestUpdate).clients == ("a",)
    bench.feed(old)
    assert bench.found(RefuseUpdate).reason is Refusal.WRONG_EPOCH


def test_the_late_update_of_a_lost_client_counts_but_does_not_bring_it_back():
    bench = Bench(quorum=2)
    under_way = bench.made("b")
    bench.sent("a")
    bench.feed(ClientLost(ClientId("b"), "its link is cut"))
    bench.feed(under_way)
    bench.sent("c")
    assert bench.found(AnnounceRound).summary.participants == NAMES
    assert bench.found(RequestUpdate).clients == ("a", "c")
    bench.feed(ClientReturned(ClientId("b"), Epoch(1)))
    assert bench.state.gathering.candidates == NAMES


def test_a_new_client_joins_the_next_round():
    bench = Bench()
    bench.feed(ClientReturned(ClientId("d"), Epoch(1)))
    for client in NAMES:
        bench.sent(client)
    assert bench.found(RequestUpdate).clients == (*NAMES, "d")


def test_a_cancelled_run_ends_and_refuses_what_comes_later():
    bench = Bench()
    update = bench.made("a")
    bench.feed(RunCancelled(RunId("r"), "ctrl-C"))
    assert bench.found(EndRun).outcome.kind is OutcomeKind.CANCELLED
    bench.feed(update)
    assert bench.found(RefuseUpdate).text == "run r has ended."


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
        lambda: ClientReturned(ClientId("b"), Epoch(2)),
        lambda: bench.made("c", 2),
        lambda: bench.made("a", 2),
    ):
        bench.feed(event())
        states.append(bench.state)
    stored = {a.model for a in bench.driver.actions if isinstance(a, StoreModel)} | {bench.state.server}
    kept = {d: b for d, b in bench.driver.blobs.items() if d not in stored or d == bench.config.initial_model}
    log = [decode_event(encode_event(event)) for event in bench.driver.log]
    for upto, state in enumerate(states, start=1):
        store = dict(kept)
        assert replay(make_step(bench.driver.algorithm, store), log[:upto], store) == state


def test_resume_asks_again_whoever_has_not_answered():
    bench = Bench()
    bench.sent("b")
    assert [type(a).__name__ for a in resume(bench.state)] == ["SetRoundDeadline", "RequestUpdate"]
    assert resume(bench.state)[1].clients == ("a", "c")


def test_resume_of_a_finished_run_repeats_its_end():
    bench = Bench()
    bench.feed(RunCancelled(RunId("r"), "enough"))
    assert resume(bench.state) == bench.last


def test_a_log_that_does_not_begin_with_a_start_is_refused():
    bench = Bench()
    with pytest.raises(StoreError, match="begins with ClientLost"):
        make_step(fed_avg(), {})(None, ClientLost(ClientId("a"), "x"))
    with pytest.raises(StoreError, match="is not in the store"):
        make_step(fed_avg(), {})(None, RunStarted(bench.config, {}))
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
    config = msgspec.structs.replace(bench.config, num_entries=SIZE + 1)
    with pytest.raises(FrameRefused, match="a model of 6 entries has 24 bytes, found 20"):
        make_step(fed_avg(), bench.driver.blobs)(None, RunStarted(config, {}))


def test_a_second_start_and_events_of_strangers_change_nothing():
    bench = Bench()
    before = bench.state
    bench.feed(RunStarted(bench.config, {}))
    bench.feed(ClientLost(ClientId("stranger"), "gone"))
    bench.feed(ClientFailed(RunId("other"), RoundNumber(1), ClientId("a"), Epoch(1), "x"))
    bench.feed(UpdateInvalid(RunId("other"), RoundNumber(1), ClientId("a"), Epoch(1), "x"))
    assert bench.state == before


def test_a_loss_that_is_no_number_does_not_spoil_the_mean():
    bench = Bench(num_rounds=1)
    bench.feed(msgspec.structs.replace(bench.made("a"), metrics={"loss": float("nan")}))
    bench.sent("b")
    bench.sent("c")
    assert bench.state.rounds[0].metrics == {"loss": 1.0}
