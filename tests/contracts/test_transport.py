"""One contract for everything that moves frames: loopback, zenoh plain, zenoh mutual TLS, zenoh over a shaped link."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgewise.core.errors import (
    DeadlineExceeded,
    EdgewiseError,
    FrameRefused,
    InputError,
    PolicyViolation,
    RemoteError,
    Unreachable,
)
from edgewise.core.ids import Generation, NodeId, Tier
from edgewise.core.provenance import RAW, Origins, traced
from edgewise.ledger.entry import Direction, FrameCounter, Purpose
from edgewise.security import Authority, create_authority
from edgewise.simulation.links.link import LinkSpec, open_link
from edgewise.simulation.links.shape import Shape
from edgewise.transport.frame import Frame, make_frame
from edgewise.transport.keys import Keys
from edgewise.transport.loopback import LoopbackFabric
from edgewise.transport.transport import Transport
from edgewise.transport.zenoh.zenoh_transport import TlsFiles, ZenohSettings, open_zenoh
from tests.transport.crafted import REPLIES

KEYS = Keys("main")
HUB = KEYS.service("hub", "stage")
WAIT_S = 20.0


class Net:
    """A hub and two leaves; the first leaf's link can be cut."""

    def __init__(self, hub: Transport, leaf: Transport, other: Transport, cut: Callable[[], Any], heal: Any) -> None:
        self.hub, self.leaf, self.other, self.cut, self.heal = hub, leaf, other, cut, heal
        self.counters: dict[str, FrameCounter] = {}
        self.sent: dict[str, list[bytes]] = {}


def refuse_raw(origins: Origins, key: str) -> None:
    if RAW in origins and "granted" not in key:
        raise PolicyViolation(f"data of class {sorted(origins)} may not go to {key!r}. Grant it in the policy.")


@asynccontextmanager
async def loopback(folder: Path) -> AsyncIterator[Net]:
    fabric = LoopbackFabric()
    async with AsyncExitStack() as stack:
        counters = {name: FrameCounter(NodeId(name)) for name in ("hub", "leaf", "other")}
        sent: dict[str, list[bytes]] = {name: [] for name in counters}
        opened = [
            await stack.enter_async_context(
                fabric.open(name, counter=counters[name], allow=refuse_raw, tap=sent[name].append)
            )
            for name in counters
        ]
        net = Net(*opened, cut=lambda: fabric.cut("leaf"), heal=lambda: fabric.heal("leaf"))
        net.counters, net.sent = counters, sent
        yield net


@asynccontextmanager
async def zenoh(folder: Path, protocol: str, shape: Shape) -> AsyncIterator[Net]:
    counters = {name: FrameCounter(NodeId(name)) for name in ("hub", "leaf", "other")}
    sent: dict[str, list[bytes]] = {name: [] for name in counters}

    def settings(name: str, **fields: Any) -> ZenohSettings:
        tls = TlsFiles.of(folder / name) if protocol == "tls" else None
        common: dict[str, Any] = {"counter": counters[name], "allow": refuse_raw, "tap": sent[name].append}
        return ZenohSettings(node=NodeId(name), generation=Generation(1), tls=tls, **common, **fields)

    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(
            await open_zenoh(settings("hub", mode="router", listen=(f"{protocol}/127.0.0.1:0",)))
        )
        link = await open_link(LinkSpec(name="leaf", target=hub.endpoints[0].split("/")[1], shape=shape))
        stack.push_async_callback(link.close)
        way = f"{protocol}/127.0.0.1:{link.port}"
        leaf = await stack.enter_async_context(await open_zenoh(settings("leaf", connect=(way,))))
        other = await stack.enter_async_context(await open_zenoh(settings("other", connect=hub.endpoints)))
        net = Net(hub, leaf, other, cut=lambda: link.set(outage="cut"), heal=lambda: link.set(outage=None))
        net.counters, net.sent = counters, sent
        yield net


FABRICS: dict[str, Callable[[Path], Any]] = {
    "loopback": loopback,
    "zenoh-tcp": lambda folder: zenoh(folder, "tcp", Shape()),
    "zenoh-tls": lambda folder: zenoh(folder, "tls", Shape()),
    "shaped": lambda folder: zenoh(folder, "tls", Shape(bytes_per_s=2.5e6, delay_s=0.005)),
}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fleet")
    create_authority(folder / "ca", "main")
    authority = Authority.load(folder / "ca")
    for name, tier in (("hub", Tier.EDGE), ("leaf", Tier.DEVICE), ("other", Tier.DEVICE)):
        authority.issue(name, tier, folder=folder / name)
    return folder


@pytest.fixture(params=FABRICS)
def run(request: pytest.FixtureRequest, certificates: Path) -> Callable[[Callable[[Net], Awaitable[None]]], None]:
    def run(scene: Callable[[Net], Awaitable[None]]) -> None:
        async def play() -> None:
            async with FABRICS[request.param](certificates) as net:
                await asyncio.wait_for(scene(net), 4 * WAIT_S)

        asyncio.run(play())

    return run


Run = Callable[[Callable[[Net], Awaitable[None]]], None]


async def echo(query: Frame) -> Frame:
    return make_frame("answer", tensors=query.tensors)


async def until(condition: Callable[[], Any], changed: asyncio.Event) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            changed.clear()
            await changed.wait()


async def known_to(transport: Transport, key: str) -> None:
    """Waits until a service's declaration has travelled; its first answer may be any."""
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                await transport.query(key, make_frame("ask"), timeout_s=0.2)
            except Unreachable:
                await asyncio.sleep(0.01)
            except DeadlineExceeded:
                return
            else:
                return


async def ask_until_answered(net: Net, key: str) -> Frame:
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                return await net.leaf.query(key, make_frame("ask"), timeout_s=1.0)
            except (Unreachable, DeadlineExceeded):
                await asyncio.sleep(0.02)


def test_query_is_answered_with_the_same_values_and_the_senders_name(run: Run) -> None:
    async def scene(net: Net) -> None:
        await net.hub.serve(HUB, echo)
        x = np.arange(6, dtype=np.float32).reshape(2, 3)
        reply = await net.leaf.query(HUB, make_frame("ask", tensors={"x": x}, run="r"), timeout_s=WAIT_S)
        assert np.array_equal(reply.array("x"), x)
        assert (reply.kind, reply.sender, reply.run) == ("answer", "hub", "r")

    run(scene)


def test_hub_reaches_a_leaf(run: Run) -> None:
    async def scene(net: Net) -> None:
        key = KEYS.service("leaf", "control")
        await net.leaf.serve(key, echo)
        await known_to(net.hub, key)
        assert (await net.hub.query(key, make_frame("ask"), timeout_s=WAIT_S)).sender == "leaf"

    run(scene)


def test_answers_inherit_the_purpose_of_the_question(run: Run) -> None:
    async def scene(net: Net) -> None:
        await net.hub.serve(HUB, echo)
        reply = await net.leaf.query(HUB, make_frame("ask", purpose=Purpose.SERVING), timeout_s=WAIT_S)
        assert reply.purpose is Purpose.SERVING

    run(scene)


def test_questions_of_one_asker_arrive_in_order(run: Run) -> None:
    async def scene(net: Net) -> None:
        seen: list[int] = []

        async def note(query: Frame) -> Frame:
            seen.append(int(query.array("i")[0]))
            return make_frame("answer")

        await net.hub.serve(HUB, note)
        asked = [
            net.leaf.query(HUB, make_frame("ask", tensors={"i": np.array([i])}), timeout_s=WAIT_S) for i in range(100)
        ]
        await asyncio.gather(*asked)
        assert seen == list(range(100))

    run(scene)


def test_publications_of_one_key_arrive_in_order(run: Run) -> None:
    async def scene(net: Net) -> None:
        received: list[int] = []
        changed = asyncio.Event()

        def receive(key: str, frame: Frame) -> None:
            assert key == KEYS.event("hub")
            received.append(int(frame.array("i")[0]))
            changed.set()

        await net.leaf.subscribe(KEYS.event("*"), receive)
        await net.leaf.query(await served(net.hub), make_frame("ask"), timeout_s=WAIT_S)  # it has been declared by now
        for i in range(20):
            await net.hub.publish(KEYS.event("hub"), make_frame("event", tensors={"i": np.array([i])}))
        await until(lambda: len(received) == 20, changed)
        assert received == list(range(20))

    run(scene)


async def served(transport: Transport, handler: Any = echo) -> str:
    await transport.serve(HUB, handler)
    return HUB


def test_nobody_listening_is_no_error_for_a_publication(run: Run) -> None:
    async def scene(net: Net) -> None:
        await net.leaf.publish(KEYS.event("leaf"), make_frame("event"))

    run(scene)


def test_query_nobody_serves_is_unreachable_at_once(run: Run) -> None:
    async def scene(net: Net) -> None:
        with pytest.raises(Unreachable, match=r"nobody .* 'ew/main/node/ghost/info'"):  # long before the deadline
            await net.leaf.query(KEYS.service("ghost", "info"), make_frame("ask"), timeout_s=1000 * WAIT_S)

    run(scene)


def test_deadline_passes_when_the_server_is_slow(run: Run) -> None:
    async def scene(net: Net) -> None:
        released = asyncio.Event()

        async def slow(query: Frame) -> Frame:
            await released.wait()
            return make_frame("answer")

        await net.hub.serve(HUB, slow)
        with pytest.raises(DeadlineExceeded, match=r"no answer on .* within 0\.2 s"):
            await net.leaf.query(HUB, make_frame("ask"), timeout_s=0.2)
        released.set()

    run(scene)


def test_handlers_error_reaches_the_asker_with_code_and_fields(run: Run) -> None:
    async def scene(net: Net) -> None:
        async def refuse(query: Frame) -> Frame:
            raise InputError("there is no stage 7. Ask for 0-2.", stage=7)

        await net.hub.serve(HUB, refuse)
        with pytest.raises(RemoteError, match=r"'hub' refused: there is no stage 7") as caught:
            await net.leaf.query(HUB, make_frame("ask"), timeout_s=WAIT_S)
        assert caught.value.fields == {"stage": 7, "remote_code": "input", "node_id": "hub"}

    run(scene)


def test_handlers_bug_reaches_the_asker_as_internal(run: Run) -> None:
    async def scene(net: Net) -> None:
        async def broken(query: Frame) -> Frame:
            raise KeyError("oops")

        await net.hub.serve(HUB, broken)
        with pytest.raises(RemoteError, match="KeyError: 'oops'") as caught:
            await net.leaf.query(HUB, make_frame("ask"), timeout_s=WAIT_S)
        assert caught.value.fields["remote_code"] == "internal"

    run(scene)


def test_a_hearer_answers_from_a_thread_of_its_own(run: Run) -> None:
    async def scene(net: Net) -> None:
        with ThreadPoolExecutor(1) as worker:
            await net.hub.serve_sync(HUB, lambda query, reply: _ignored(worker.submit(reply, make_frame("done"))))
            query = make_frame("ask", purpose=Purpose.SERVING, run="r")
            answers = [await net.leaf.query(HUB, query, timeout_s=WAIT_S) for _ in range(3)]
        assert [(a.kind, a.sender, a.purpose, a.run) for a in answers] == [("done", "hub", Purpose.SERVING, "r")] * 3

    run(scene)


@pytest.mark.parametrize(
    ("error", "code"), [(InputError("there is no stage 7. Ask for 0-2."), "input"), (KeyError("oops"), "internal")]
)
def test_what_a_hearer_raises_reaches_the_asker(run: Run, error: Exception, code: str) -> None:
    def refuse(query: Frame, reply: Any) -> None:
        raise error

    async def scene(net: Net) -> None:
        await net.hub.serve_sync(HUB, refuse)
        with pytest.raises(RemoteError, match=str(error).split(".")[0]) as caught:
            await net.leaf.query(HUB, make_frame("ask", purpose=Purpose.SERVING), timeout_s=WAIT_S)
        assert caught.value.fields["remote_code"] == code

    run(scene)


def test_many_serving_questions_at_once_are_all_answered(run: Run) -> None:
    async def scene(net: Net) -> None:
        await net.hub.serve(HUB, echo)

        async def ask(number: int) -> int:
            frame = make_frame("ask", tensors={"x": np.array([number])}, purpose=Purpose.SERVING)
            return int((await net.leaf.query(HUB, frame, timeout_s=WAIT_S)).array("x")[0])

        assert await asyncio.gather(*map(ask, range(300))) == list(range(300))

    run(scene)


def test_a_serving_question_is_told_its_answer_or_its_error(run: Run) -> None:
    async def scene(net: Net) -> None:
        ends: list[tuple[str, str]] = []
        changed = asyncio.Event()

        def tell(answer: Frame | None, error: EdgewiseError | None) -> None:
            ends.append((answer.kind if answer else "", error.code if error else ""))
            changed.set()

        await net.hub.serve(HUB, echo)
        await known_to(net.leaf, HUB)
        query = make_frame("ask", purpose=Purpose.SERVING)
        for number in range(1, 5):  # one after the other: from the second on, nothing waits in the client's queue
            net.leaf.ask(HUB, query, tell, timeout_s=WAIT_S)
            assert len(ends) == number - 1, "reported before `ask` has returned"
            await until(lambda number=number: len(ends) == number, changed)  # type: ignore[misc]
        net.leaf.ask(KEYS.service("ghost", "stage"), query, tell, timeout_s=WAIT_S)
        await until(lambda: len(ends) == 5, changed)
        assert ends == [("answer", "")] * 4 + [("", Unreachable.code)]

    run(scene)


def test_a_question_taken_back_is_told_nothing(run: Run) -> None:
    async def scene(net: Net) -> None:
        ends: list[object] = []
        received = asyncio.Event()
        released = asyncio.Event()

        async def slow(query: Frame) -> Frame:
            received.set()
            await released.wait()
            return make_frame("answer")

        await net.hub.serve(HUB, slow)
        query = make_frame("ask", purpose=Purpose.SERVING)
        cancel = net.leaf.ask(HUB, query, lambda *end: ends.append(end), timeout_s=WAIT_S)
        await asyncio.wait_for(received.wait(), WAIT_S)
        cancel()
        cancel()
        released.set()
        assert (await ask_until_answered(net, HUB)).kind == "answer"
        assert ends == []

    run(scene)


def _ignored(_: object) -> None:
    return None


def test_query_all_collects_every_answer_and_leaves_out_refusals(run: Run) -> None:
    async def scene(net: Net) -> None:
        async def refuse(query: Frame) -> Frame:
            raise InputError("not now.")

        await net.leaf.serve(KEYS.service("leaf", "info"), echo)
        await net.other.serve(KEYS.service("other", "info"), refuse)
        await net.hub.serve(KEYS.service("hub", "info"), echo)
        async with asyncio.timeout(WAIT_S):
            answers: list[Frame] = []
            while len(answers) < 2:
                answers = await net.hub.query_all(KEYS.service("*", "info"), make_frame("ask"), timeout_s=WAIT_S)
        assert sorted(answer.sender for answer in answers) == ["hub", "leaf"]

    run(scene)


def test_presence_appears_and_disappears(run: Run) -> None:
    async def scene(net: Net) -> None:
        there: dict[str, bool] = {}
        changed = asyncio.Event()

        def note(key: str, is_there: bool) -> None:
            there[key] = is_there
            changed.set()

        first, second = KEYS.alive("edge", "hub", 1), KEYS.alive("device", "other", 1)
        await net.hub.declare_presence(first)
        await net.leaf.watch_presence(KEYS.alive("*", "*", "*"), note)
        token = await net.other.declare_presence(second)
        await until(lambda: there == {first: True, second: True}, changed)
        await token.close()
        await until(lambda: there == {first: True, second: False}, changed)

    run(scene)


def test_presence_disappears_with_its_transport(run: Run) -> None:
    async def scene(net: Net) -> None:
        changes: list[bool] = []
        changed = asyncio.Event()

        def note(key: str, is_there: bool) -> None:
            changes.append(is_there)
            changed.set()

        await net.hub.watch_presence(KEYS.alive("*", "leaf", "*"), note)
        await net.leaf.declare_presence(KEYS.alive("device", "leaf", 1))
        await until(lambda: changes == [True], changed)
        await net.leaf.close()
        await until(lambda: changes == [True, False], changed)

    run(scene)


def test_server_lost_while_it_works_is_unreachable_before_the_deadline(run: Run) -> None:
    async def scene(net: Net) -> None:
        asked = asyncio.Event()

        async def never(query: Frame) -> Frame:
            asked.set()
            return await asyncio.get_running_loop().create_future()

        key = KEYS.service("leaf", "stage")
        await net.leaf.serve(key, never)
        await known_to(net.hub, key)
        task = asyncio.create_task(net.other.query(key, make_frame("ask"), timeout_s=4 * WAIT_S))
        await asyncio.wait_for(asked.wait(), WAIT_S)
        net.cut()
        with pytest.raises(Unreachable, match="lost"):
            await asyncio.wait_for(task, WAIT_S)

    run(scene)


def test_cut_link_is_noticed_and_comes_back_by_itself(run: Run) -> None:
    async def scene(net: Net) -> None:
        changes: list[bool] = []
        changed = asyncio.Event()

        def note(key: str, is_there: bool) -> None:
            changes.append(is_there)
            changed.set()

        await net.hub.serve(HUB, echo)
        await net.leaf.declare_presence(KEYS.alive("device", "leaf", 1))
        await net.hub.watch_presence(KEYS.alive("*", "leaf", "*"), note)
        await until(lambda: changes == [True], changed)
        net.cut()
        await until(lambda: changes == [True, False], changed)
        with pytest.raises((Unreachable, DeadlineExceeded)):
            await net.leaf.query(HUB, make_frame("ask"), timeout_s=0.5)
        net.heal()
        await until(lambda: changes == [True, False, True], changed)
        assert (await ask_until_answered(net, HUB)).sender == "hub"

    run(scene)


def test_closed_registration_no_longer_answers(run: Run) -> None:
    async def scene(net: Net) -> None:
        registration = await net.hub.serve(HUB, echo)
        await net.leaf.query(HUB, make_frame("ask"), timeout_s=WAIT_S)
        await registration.close()
        await registration.close()
        with pytest.raises(Unreachable, match="nobody"):
            await net.leaf.query(HUB, make_frame("ask"), timeout_s=WAIT_S)

    run(scene)


def test_policy_refuses_traced_data_before_it_leaves(run: Run) -> None:
    async def scene(net: Net) -> None:
        await net.hub.serve(HUB, echo)
        image = traced(np.full((8, 8), 7, np.uint8), RAW)
        with pytest.raises(PolicyViolation, match="may not go"):
            await net.leaf.query(HUB, make_frame("ask", tensors={"x": image[2:] * 2}), timeout_s=WAIT_S)
        assert net.sent["leaf"] == []

    run(scene)


def test_answer_that_may_not_leave_reaches_the_asker_as_refusal(run: Run) -> None:
    async def scene(net: Net) -> None:
        async def give_raw(query: Frame) -> Frame:
            return make_frame("answer", tensors={"x": traced(np.ones(3, np.float32), RAW)})

        await net.hub.serve(HUB, give_raw)
        with pytest.raises(RemoteError, match="may not go") as caught:
            await net.leaf.query(HUB, make_frame("ask"), timeout_s=WAIT_S)
        assert caught.value.fields["remote_code"] == "security.policy"

    run(scene)


def test_policy_lets_granted_data_through(run: Run) -> None:
    async def scene(net: Net) -> None:
        key = KEYS.service("granted", "stage")
        await net.hub.serve(key, take)
        image = traced(np.full((8, 8), 7, np.uint8), RAW)
        await net.leaf.query(key, make_frame("ask", tensors={"x": image}), timeout_s=WAIT_S)
        (row,) = (e for e in net.counters["leaf"].entries() if e.direction is Direction.SENT)
        assert row.data_classes == (RAW,)

    async def take(query: Frame) -> Frame:
        assert query.origins == {RAW}
        return make_frame("answer")

    run(scene)


def test_counters_equal_the_encoded_sizes(run: Run) -> None:
    async def scene(net: Net) -> None:
        await net.hub.serve(HUB, echo)
        for size in (1, 1000):
            query = make_frame("ask", tensors={"x": np.zeros(size, np.float32)}, purpose=Purpose.TRAINING)
            await net.leaf.query(HUB, query, timeout_s=WAIT_S)
        totals = {
            (name, entry.direction): (entry.num_frames, entry.size_bytes)
            for name in ("leaf", "hub")
            for entry in net.counters[name].entries()
        }
        up, down = (sum(map(len, net.sent[name])) for name in ("leaf", "hub"))
        assert totals["leaf", Direction.SENT] == totals["hub", Direction.RECEIVED] == (2, up)
        assert totals["hub", Direction.SENT] == totals["leaf", Direction.RECEIVED] == (2, down)

    run(scene)


def test_frame_of_several_megabytes_arrives_intact(run: Run) -> None:
    async def scene(net: Net) -> None:
        await net.hub.serve(HUB, echo)
        x = np.random.default_rng(0).integers(0, 256, 3_000_000, dtype=np.uint8)
        reply = await net.leaf.query(HUB, make_frame("ask", tensors={"x": x}), timeout_s=WAIT_S)
        assert np.array_equal(reply.array("x"), x)

    run(scene)


def test_closing_twice_is_harmless_and_a_closed_transport_refuses(run: Run) -> None:
    async def scene(net: Net) -> None:
        await net.hub.serve(HUB, echo)
        await net.leaf.close()
        await net.leaf.close()
        with pytest.raises(Unreachable, match="is closed"):
            await net.leaf.query(HUB, make_frame("ask"), timeout_s=WAIT_S)

    run(scene)


class Liar:
    """A guard whose answers are given bytes."""

    def __init__(self, guard: Any, answer: bytes) -> None:
        self._guard, self._answer = guard, answer

    def open(self, data: bytes) -> Frame:
        return self._guard.open(data)  # type: ignore[no-any-return]

    def seal(self, frame: Frame, key: str) -> bytes:
        return self._answer


def test_no_answer_however_crafted_outlives_its_deadline(run: Run) -> None:
    async def scene(net: Net) -> None:
        await net.hub.serve(HUB, echo)
        await known_to(net.leaf, HUB)
        guard, asked = net.hub.guard, make_frame("ask", purpose=Purpose.SERVING)  # type: ignore[attr-defined]
        for crafted in REPLIES.values():
            net.hub.guard = Liar(guard, crafted)  # type: ignore[attr-defined]
            with pytest.raises((FrameRefused, RemoteError)):
                await asyncio.wait_for(net.leaf.query(HUB, asked, timeout_s=WAIT_S), WAIT_S / 2)
            assert await asyncio.wait_for(net.leaf.query_all(HUB, asked, timeout_s=WAIT_S), WAIT_S / 2) == []
            ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            net.leaf.ask(HUB, asked, lambda *end, ended=ended: ended.set_result(end), timeout_s=WAIT_S)
            answer, error = await asyncio.wait_for(ended, WAIT_S / 2)
            assert answer is None
            assert isinstance(error, (FrameRefused, RemoteError))
        net.hub.guard = guard  # type: ignore[attr-defined]
        assert (await net.leaf.query(HUB, asked, timeout_s=WAIT_S)).kind == "answer"

    run(scene)
