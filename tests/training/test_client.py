"""The device's role: work once, report until it is heard, keep only what counted; every event in every phase of every role."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from edgewise.core.errors import StoreError
from edgewise.core.ids import ClientId, Digest, Generation, NodeId, RoundNumber, RunId
from edgewise.training.protocols import PROTOCOLS, client_role, make_protocol, replay
from edgewise.training.protocols.event_log import AnyEvent, decode_event, encode_event
from edgewise.training.protocols.letters import (
    COORDINATOR_ADDRESS,
    Address,
    BlobName,
    RunEnded,
    SectionBlob,
    UpdateReport,
    WorkFailed,
    WorkOrder,
)
from edgewise.training.protocols.messages import (
    Accept,
    ClientLost,
    Delivered,
    EndRun,
    Received,
    Refusal,
    Refuse,
    RunCancelled,
    Send,
    Work,
    WorkDone,
    WorkGivenUp,
)
from edgewise.training.protocols.run_spec import RunSpec
from edgewise.training.protocols.transitions import LETTERS, Table, dispatch

ROLE = client_role.CLIENT_ROLE
SPEC = RunSpec(RunId("r"), {}, {}, 0, Digest("l"), 4)
A = ClientId("a")


def order(number=1, exchange=0, counted=0, model="m", reply_to=COORDINATOR_ADDRESS):
    sections = (SectionBlob("model", BlobName(Digest(model * 64), 16)),)
    return WorkOrder(
        spec=SPEC, round=RoundNumber(number), client=A, sections=sections, exchange=exchange,
        counted=RoundNumber(counted), reply_to=reply_to,
    )  # fmt: skip


def came(letter):
    return Received(letter=letter, sender=NodeId("cloud"), generation=Generation(1))


def done(number=1, exchange=0, kept=None):
    update = BlobName(Digest(f"u{number}.{exchange}"), 8)
    return WorkDone(round=RoundNumber(number), update=update, num_examples=5, exchange=exchange, kept=kept)


def delivered(letter, accepted=True):
    return Delivered(to=COORDINATOR_ADDRESS, key=letter.key, accepted=accepted)


class Device:
    """A client fed by hand."""

    def __init__(self):
        self.state, self.log, self.step = None, [], ROLE.make_step(None, {})

    def feed(self, event):
        self.log.append(event)
        self.state, self.last = self.step(self.state, event)
        return self.last

    def works(self, number, kept, **fields):
        """An order worked on and reported."""
        self.feed(came(order(number, **fields)))
        base = next(a.kept for a in self.last if isinstance(a, Work))
        self.feed(done(number, fields.get("exchange", 0), kept))
        return base


def test_an_order_is_accepted_worked_on_and_reported():
    device = Device()
    assert device.feed(came(order())) == (Accept(), Work(order()))
    report = device.feed(done())[0].letter
    assert (report.round, report.num_examples, report.update.digest) == (1, 5, "u1.0")
    assert ROLE.wants(device.state, COORDINATOR_ADDRESS, report)
    device.feed(delivered(report))
    assert device.state.phase == "idle"
    assert not ROLE.wants(device.state, COORDINATOR_ADDRESS, report)


@pytest.mark.parametrize("is_heard", [False, True])
def test_asked_the_same_again_it_repeats_its_report_to_whoever_asks(is_heard):
    device, edge = Device(), Address("edge", "edge-2")
    device.works(1, "k1")
    report = device.last[0].letter
    if is_heard:
        device.feed(delivered(report))
    assert device.feed(came(order(reply_to=edge))) == (Accept(), Send(edge, report))


def test_asked_the_same_while_it_works_it_works_on():
    device = Device()
    device.feed(came(order()))
    assert device.feed(came(order())) == (Accept(),)


def test_other_content_for_the_same_question_is_worked_on_anew_from_the_same_ground():
    device = Device()
    device.works(1, "k1")
    device.works(2, "k2", counted=1)
    assert device.works(2, "k2'", counted=1, model="n") == "k1"


def test_what_is_kept_stands_when_the_update_counted():
    device = Device()
    assert device.works(1, "k1") is None
    assert device.works(2, "k2", counted=1) == "k1"


def test_what_is_kept_falls_when_the_update_did_not_count():
    device = Device()
    device.works(1, "k1")
    device.works(2, "k2", counted=1)
    device.feed(delivered(device.last[0].letter, accepted=False))
    assert device.works(3, "k3", counted=1) == "k1"
    assert device.state.kept == "k1"


def test_a_refusal_alone_settles_nothing():
    device = Device()
    device.works(1, "k1")
    device.feed(delivered(device.last[0].letter, accepted=False))
    assert device.works(2, "k2", counted=1) == "k1"  # it was refused by one edge and counted by another


def test_the_second_exchange_of_a_round_begins_with_what_the_first_kept():
    device = Device()
    device.works(1, "k1")
    device.works(2, "k2.0", counted=1)
    assert device.works(2, "k2.1", counted=1, exchange=1) == "k2.0"
    assert device.state.kept == "k1"
    assert device.works(3, "k3", counted=2) == "k2.1"


def test_counted_in_the_first_exchange_only_does_not_count():
    device = Device()
    device.works(1, "k1")
    device.works(2, "k2.0", counted=1)
    device.works(2, "k2.1", counted=1, exchange=1)
    assert device.works(3, "k3", counted=1) == "k1"


@pytest.mark.parametrize(("counted", "kept"), [(2, "k2"), (1, "k1"), (0, "k1")])
def test_the_end_settles_what_is_kept(counted, kept):
    device = Device()
    device.works(1, "k1")
    device.works(2, "k2", counted=1)
    assert device.feed(came(RunEnded(run=RunId("r"), counted=RoundNumber(counted)))) == (Accept(), EndRun())
    assert (device.state.kept, ROLE.is_over(device.state)) == (kept, True)
    assert ROLE.needs(device.state) == [kept]
    assert isinstance(device.feed(came(order(3)))[0], Refuse)


def test_a_newer_order_replaces_work_and_an_older_one_is_late():
    device = Device()
    device.feed(came(order(1)))
    device.feed(came(order(3)))
    assert device.feed(done(1)) == ()
    assert device.feed(came(order(2)))[0].reason is Refusal.LATE
    assert device.feed(done(3))[0].letter.round == 3


def test_an_order_of_another_run_is_refused():
    device = Device()
    device.feed(came(order()))
    other = msgspec.structs.replace(order(2), spec=msgspec.structs.replace(SPEC, run=RunId("x")))
    assert device.feed(came(other))[0].reason is Refusal.WRONG_RUN


def test_work_that_cannot_be_done_is_reported_and_done_when_asked_again():
    device = Device()
    device.feed(came(order()))
    failed = device.feed(WorkGivenUp(RoundNumber(1), 0, "no data"))[0].letter
    assert (type(failed), failed.cause) == (WorkFailed, "no data")
    device.feed(delivered(failed))
    assert device.feed(came(order())) == (Accept(), Work(order()))


def test_a_cancelled_run_is_over():
    device = Device()
    device.works(1, "k1")
    assert device.feed(RunCancelled(RunId("r"), "x")) == (EndRun(),)
    assert device.state.kept is None


def test_after_a_crash_it_repeats_what_is_outstanding():
    device = Device()
    device.feed(came(order()))
    assert ROLE.resume(device.state) == (Work(order()),)
    sent = device.feed(done())
    assert ROLE.resume(device.state) == sent
    device.feed(delivered(sent[0].letter))
    assert ROLE.resume(device.state) == ()
    log = [decode_event(encode_event(event)) for event in device.log]
    assert replay(device.step, log, {}) == device.state


# ---- every role, every phase, every event -------------------------------------------------------------------------


def blank(kind):
    """A letter or event of that kind; nothing but its kind is looked at."""
    return kind(**{f.name: None for f in msgspec.structs.fields(kind) if f.required})


def tables():
    """(name, table, role) of every role there is."""
    found = {}
    for name in PROTOCOLS:
        protocol = make_protocol(EXAMPLES.get(name, name))
        for role, part in protocol.roles.items():
            module = __import__(part.make_step.__module__, fromlist=["TABLE"])
            found[part.make_step.__module__] = (role, module.TABLE)
    return found


EXAMPLES = {"buffered": {"name": "buffered", "concurrency": 2, "buffer_size": 1}}


def known_kinds():
    return [*LETTERS, *(kind for kind in AnyEvent.__args__ if kind is not Received)]


# A driver never reports these to a role, so they are no row of its table but an error.
FOREIGN = {
    "coordinator": {"WorkDone", "WorkGivenUp"},
    "edge": {"RunStarted", "WorkDone", "WorkGivenUp"},
    "client": {"RunStarted"},
}


@pytest.mark.parametrize("module", sorted(tables()))
def test_every_event_is_in_a_table_or_an_error_or_a_refused_letter(module):
    role, table = tables()[module]
    assert isinstance(table, Table)
    for kind, phase in itertools.product(known_kinds(), table.phases):
        if kind in table.rows:
            assert callable(table.rows[kind][table.phases.index(phase)])
        elif kind in LETTERS:
            state, actions = dispatch(table, role, None, phase, "as it was", came(blank(kind)))
            assert state == "as it was"
            assert actions[0].reason is Refusal.NOT_ASKED
        elif kind.__name__ != "LetterInvalid":
            assert kind.__name__ in FOREIGN[role], (module, kind)
            with pytest.raises(StoreError, match="is no event of that role"):
                dispatch(table, role, None, phase, None, blank(kind))


def test_an_event_that_is_ignored_on_purpose_leaves_the_very_state():
    device = Device()
    device.feed(came(order()))
    before = device.state
    device.feed(ClientLost(A, "x"))
    assert device.state is before


def test_a_report_is_a_letter_of_its_client():
    device = Device()
    device.works(1, None)
    report = device.last[0].letter
    assert isinstance(report, UpdateReport)
    assert report.author == Address("client", "a")
