"""A letter under way when its role needs it no more is let go, and the role hears that it is."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec

from edgewise.core.errors import Unreachable
from edgewise.core.ids import ClientId, Digest, NodeId, RoundNumber, RunId
from edgewise.fleet.messages import LetterAck, RunLetter
from edgewise.fleet.training.letter_delivery import LetterDelivery
from edgewise.fleet.training.run_roles import RunRoles
from edgewise.testing import LoopbackFleet
from edgewise.training.algorithms import make_algorithm
from edgewise.training.protocols.letters import COORDINATOR_ADDRESS, Address, WorkFailed, WorkOrder
from edgewise.training.protocols.messages import Delivered, Refusal, Send
from edgewise.training.protocols.run_spec import RunSpec

LETTER = WorkFailed(run=RunId("r"), round=RoundNumber(1), client=ClientId("a"), cause="for the test")


class Receiver:
    """A node whose questions fail, or are answered, as `answer` says."""

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
        driver = SimpleNamespace(role_name="edge", log="edge/r", is_over=True, is_closed=False, has_carried_out=False)
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
