"""A letter under way when its role needs it no more is let go, and the role hears that it is."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from edgewise.core.errors import Unreachable
from edgewise.core.ids import ClientId, Digest, Generation, NodeId, RoundNumber, RunId, digest_of
from edgewise.fleet.messages import LetterAck, RunLetter
from edgewise.fleet.store.events import EventLog
from edgewise.fleet.training.letter_delivery import LetterDelivery
from edgewise.fleet.training.role_driver import RoleDriver
from edgewise.fleet.training.run_roles import RunRoles
from edgewise.testing import LoopbackFleet
from edgewise.training.algorithms import make_algorithm
from edgewise.training.protocols import make_protocol
from edgewise.training.protocols.letters import COORDINATOR_ADDRESS, Address, BlobName, WorkFailed, WorkOrder
from edgewise.training.protocols.messages import Accept, Delivered, Received, Refusal, Send, WorkDone
from edgewise.training.protocols.run_spec import RunSpec
from edgewise.transport.bulk.blobs import FolderBlobs

LETTER = WorkFailed(run=RunId("r"), round=RoundNumber(1), client=ClientId("a"), cause="for the test")


class Receiver:
    """A node whose questions fail, or are answered, as `answer` says."""

    inline_bytes = 2**16

    def __init__(self) -> None:
        self.answer: LetterAck | None = None
        self.asked = asyncio.Event()

    def spawn(self, work: Any, name: str) -> None:
        self.task = asyncio.get_running_loop().create_task(work, name=name)

    async def ask(self, node: NodeId, *_: Any, **__: Any) -> LetterAck:
        self.asked.set()
        if self.answer is None:
            raise Unreachable("nobody answers.", node=node)
        return self.answer


class Driver(SimpleNamespace):
    """A role that wants its letters until it is over."""

    def __init__(self) -> None:
        super().__init__(log="client/r", run="r", server="edge-1", state=None, is_closed=False, is_over=False)
        self.role = SimpleNamespace(wants=lambda *_: not self.is_over, ignores_yes=frozenset())
        self.events: list[Any] = []
        self.num_folded = 0

    def folded(self, driver: Driver) -> None:
        self.num_folded += 1

    async def dispatch(self, event: Any) -> None:
        self.events.append(event)


async def sent(node: Receiver, driver: Driver) -> LetterDelivery:
    async def locate(*_: Any) -> NodeId:
        return NodeId("edge-1")

    letters = LetterDelivery(node, None, locate)  # type: ignore[arg-type]
    letters.send(driver, Send(COORDINATOR_ADDRESS, LETTER))  # type: ignore[arg-type]
    await node.asked.wait()
    return letters


def test_a_role_that_ends_while_its_letter_waits_hears_that_nothing_is_under_way() -> None:
    async def scene() -> tuple[Driver, bool]:
        node, driver = Receiver(), Driver()
        letters = await sent(node, driver)
        assert letters.has(driver)  # type: ignore[arg-type]
        driver.is_over = True
        letters.end(driver)  # type: ignore[arg-type]
        await asyncio.wait_for(node.task, 10.0)
        return driver, letters.has(driver)  # type: ignore[arg-type]

    driver, has_letters = asyncio.run(scene())
    assert (driver.num_folded, driver.events, has_letters) == (1, [], False)


def test_an_answer_is_an_event_and_the_letter_is_under_way_no_more_by_then() -> None:
    async def scene() -> tuple[Driver, bool]:
        node, driver = Receiver(), Driver()
        node.answer = LetterAck(False, None, "too late.")
        letters = await sent(node, driver)
        await asyncio.wait_for(node.task, 10.0)
        return driver, letters.has(driver)  # type: ignore[arg-type]

    driver, has_letters = asyncio.run(scene())
    assert driver.events == [Delivered(to=COORDINATOR_ADDRESS, key=LETTER.key, accepted=False, reason="too late.")]
    assert (driver.num_folded, has_letters) == (0, False)


def test_a_role_does_not_end_before_the_letters_of_its_end_are_on_their_way() -> None:
    """Its state is folded on a thread: an answer to another letter may come between that and its actions."""

    async def scene() -> list[str]:
        ended: list[str] = []
        driver = SimpleNamespace(
            role_name="edge", log="edge/r", is_over=True, is_closed=False, has_carried_out=False, is_waiting=True
        )
        letters = SimpleNamespace(end=lambda _: None, has=lambda _: False)
        node = SimpleNamespace(spawn=lambda work, name: (work.close(), ended.append(name)))
        roles: Any = SimpleNamespace(_letters=letters, _node=node, expect=lambda: None, _kept_before=lambda _: set())
        roles._end = lambda driver, former: RunRoles._end(roles, driver, former)
        RunRoles._folded(roles, driver)  # type: ignore[arg-type]
        assert not driver.is_closed
        driver.has_carried_out = True
        RunRoles._folded(roles, driver)  # type: ignore[arg-type]
        return ended

    assert asyncio.run(scene()) == ["end of edge/r"]


def test_a_letter_that_is_sent_again_is_asked_about_again_whatever_a_former_attempt_was_answered() -> None:
    async def scene() -> list[Any]:
        node, driver = Receiver(), Driver()
        answers: list[asyncio.Future[LetterAck]] = []

        async def ask(*_: Any, **__: Any) -> LetterAck:
            answers.append(asyncio.get_running_loop().create_future())
            node.asked.set()
            return await answers[-1]

        node.ask = ask  # type: ignore[method-assign, assignment]
        letters = await sent(node, driver)
        node.asked.clear()
        letters.send(driver, Send(COORDINATOR_ADDRESS, LETTER))  # type: ignore[arg-type]
        answers[0].set_result(LetterAck(False, Refusal.LATE, "the sum has been forwarded."))
        await asyncio.wait_for(node.asked.wait(), 10.0)
        answers[1].set_result(LetterAck())
        await asyncio.wait_for(node.task, 10.0)
        return driver.events

    assert asyncio.run(scene()) == [Delivered(to=COORDINATOR_ADDRESS, key=LETTER.key)]


@pytest.mark.parametrize("is_one_batch", [True, False])
def test_an_answer_that_is_overtaken_by_another_order_does_not_end_the_report(
    is_one_batch: bool, tmp_path: Path
) -> None:
    """A late update is refused and asked for again while the refusal is on its way; it goes out and is waited for."""
    spec = RunSpec(RunId("r"), make_algorithm("fed_avg").spec.to_dict(), {"name": "synchronous"}, 1, Digest("l"), 4)
    order = WorkOrder(spec=spec, round=RoundNumber(1), client=ClientId("a"), sections=())
    done = WorkDone(round=RoundNumber(1), update=BlobName(digest_of(b"u"), 1), num_examples=1)
    pending: set[tuple[Address, str]] = set()
    driver = RoleDriver(
        spec, "client", make_protocol(spec.protocol), make_algorithm(spec.algorithm), EventLog.open(tmp_path / "e.db"),
        FolderBlobs(tmp_path), lambda *_: None, is_sent_again=lambda _, event: (event.to, event.key) in pending,
    )  # fmt: skip
    came = Received(letter=order, sender=NodeId("edge-1"), generation=Generation(1))
    refused = Delivered(to=order.reply_to, key="update/a/1/0", accepted=False, reason="late")
    (_, (sending,)) = driver._fold([came, done])
    assert isinstance(sending, Send)
    assert sending.letter.key == refused.key
    if is_one_batch:
        results = driver._fold([came, refused])
    else:
        results = driver._fold([came])
        pending.add((sending.to, sending.letter.key))
        results += driver._fold([refused])
    driver.events.close()
    assert [[type(action) for action in actions] for actions in results] == [[Accept, Send], []]
    assert driver.role.wants(driver.state, sending.to, sending.letter)


def test_an_order_names_a_run_that_its_receiver_knows_and_says_all_of_it_to_one_that_began_anew() -> None:
    spec = RunSpec(RunId("r"), {"name": "fed_avg"}, {"name": "synchronous"}, 1, Digest("l"), 4)
    said: list[RunSpec] = []

    async def scene() -> None:
        node, driver = Receiver(), Driver()

        async def ask(_: NodeId, service: str, message: RunLetter, *rest: Any, **__: Any) -> LetterAck:
            letter = message.letter
            assert isinstance(letter, WorkOrder)
            said.append(letter.spec)
            begins_anew = letter.round == 3 and letter.spec.is_brief
            return LetterAck(False, Refusal.RUN_UNKNOWN) if begins_anew else LetterAck()

        node.ask = ask  # type: ignore[method-assign, assignment]

        async def locate(*_: Any) -> NodeId:
            return NodeId("device-a")

        letters = LetterDelivery(node, None, locate)  # type: ignore[arg-type]
        to = Address("client", "a")
        for number in (1, 2, 3, 4):
            order = WorkOrder(spec=spec, round=RoundNumber(number), client=ClientId("a"), sections=())
            letters.send(driver, Send(to, order))  # type: ignore[arg-type]
            await asyncio.wait_for(node.task, 10.0)

    asyncio.run(scene())
    assert said == [spec, spec.brief, spec.brief, spec, spec.brief]


def test_a_node_that_does_not_know_a_run_asks_for_all_of_it(tmp_path: Path) -> None:
    async def scene() -> list[LetterAck]:
        async with LoopbackFleet(tmp_path, edge_of={"a": "edge-1"}) as fleet:
            edge, device = fleet.nodes[NodeId("edge-1")], NodeId("device-a")
            spec = RunSpec(
                RunId("r"), make_algorithm("fed_avg").spec.to_dict(), {"name": "synchronous"}, 1, Digest("l"), 67
            )
            order = WorkOrder(spec=spec, round=RoundNumber(1), client=ClientId("a"), sections=())
            brief = msgspec.structs.replace(order, spec=spec.brief)
            again = msgspec.structs.replace(brief, round=RoundNumber(2))
            to = Address("client", "a")
            return [
                await edge.ask(device, "control", RunLetter(to, letter), LetterAck, run="r")
                for letter in (brief, order, again)
            ]

    first, *others = asyncio.run(scene())
    assert first.refusal is Refusal.RUN_UNKNOWN
    assert all(ack.refusal is not Refusal.RUN_UNKNOWN for ack in others)
