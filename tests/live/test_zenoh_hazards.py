"""What Zenoh, which our routers are made of, is known to do wrong, each with a watchdog: it does not happen here, or is bounded.

Routers are processes of their own: Zenoh's threads are one pool for all sessions of a process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.link_flaps import BACK_S, bars_of, measure
from edgewise.core.errors import EdgewiseError
from edgewise.core.ids import Generation, NodeId, Tier
from edgewise.ledger.entry import Purpose
from edgewise.simulation.emulated.processes import Child
from edgewise.simulation.links.link import LinkSpec, open_link
from edgewise.simulation.links.shape import Shape
from edgewise.transport.frame import Frame, make_frame
from edgewise.transport.keys import Keys
from edgewise.transport.zenoh.zenoh_transport import ZenohSettings, ZenohTransport, open_zenoh

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(200)]
KEYS = Keys("f")
WAIT_S = 60.0
NODE = """
import asyncio, json, os, sys
from edgewise.core.ids import Generation, NodeId
from edgewise.transport.frame import make_frame
from edgewise.transport.keys import Keys
from edgewise.transport.zenoh.zenoh_transport import ZenohSettings, open_zenoh

given = json.loads(sys.argv[1])
settings = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
name = NodeId(settings.pop("node"))

async def echo(query):
    return make_frame("answer")

async def main():
    async with await open_zenoh(ZenohSettings(node=name, generation=Generation(1), **settings)) as node:
        await node.serve(Keys("f").service(name, "info"), echo)
        await node.declare_presence(Keys("f").alive(name.partition("-")[0], name, Generation(1)))
        print(json.dumps({"event": "ready", "endpoints": node.endpoints}), flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""


class Net:
    """Node processes, and sessions of this process."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.stack, self._number = folder, AsyncExitStack(), 0

    async def process(self, node: str, **settings: Any) -> Child:
        self._number += 1
        child = Child(
            node, ["-c", NODE, json.dumps({"node": node, **settings})], self.folder / f"{node}-{self._number}.log"
        )
        self.stack.push_async_callback(child.kill)
        await child.start()
        return child

    async def router(self, node: str, **settings: Any) -> Child:
        return await self.process(node, mode="router", listen=["tcp/127.0.0.1:0"], **settings)

    async def session(self, node: str, endpoint: str) -> ZenohTransport:
        settings = ZenohSettings(node=NodeId(node), generation=Generation(1), connect=(endpoint,))
        return await self.stack.enter_async_context(await open_zenoh(settings))  # type: ignore[return-value]

    def play(self, scene: Callable[[], Awaitable[None]]) -> None:
        async def whole() -> None:
            async with self.stack:
                await asyncio.wait_for(scene(), 2 * WAIT_S)

        asyncio.run(whole())


@pytest.fixture
def net(tmp_path: Path) -> Net:
    return Net(tmp_path)


async def answered(session: ZenohTransport, node: str) -> Frame:
    """Asks again and again until there is an answer."""
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                question = make_frame("ask", purpose=Purpose.SERVING)
                return await session.query(KEYS.service(node, "info"), question, timeout_s=1.0)
            except EdgewiseError:
                await asyncio.sleep(0.05)


class DeafLink:
    """Passes connections on; once deaf, it reads nothing of the router any more, and keeps the link alive in the node's place."""

    KEEP_ALIVE = b"\x01\x00\x04"

    def __init__(self, target: str) -> None:
        self._host, _, port = target.partition("/")[2].rpartition(":")
        self._port = int(port)
        self.is_deaf, self.closed = asyncio.Event(), asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> DeafLink:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.endpoint = f"tcp/127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.sleep(0)  # in which they close

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        if self.is_deaf.is_set():
            return writer.close()
        far_reader, far_writer = await asyncio.open_connection(self._host, self._port, limit=2**14)
        self._writers.append(far_writer)
        for work in (self._pass(reader, far_writer), self._pass(far_reader, writer), self._keep_alive(far_writer)):
            self._tasks.add(asyncio.create_task(work))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not self.is_deaf.is_set():
            reading = asyncio.ensure_future(reader.read(4096))
            deaf = asyncio.ensure_future(self.is_deaf.wait())
            await asyncio.wait({reading, deaf}, return_when=asyncio.FIRST_COMPLETED)
            deaf.cancel()
            if not reading.done() or not (data := reading.result()):
                reading.cancel()
                return
            writer.write(data)

    async def _keep_alive(self, writer: asyncio.StreamWriter) -> None:
        await self.is_deaf.wait()
        try:
            while True:
                writer.write(self.KEEP_ALIVE)
                await writer.drain()
                await asyncio.sleep(0.1)
        except ConnectionError:
            self.closed.set()


def test_a_peer_that_reads_nothing_blocks_the_others_no_longer_than_it_may(net: Net) -> None:
    """zenoh#1876: who sends to a blocked peer through a router was blocked there for ever, towards everybody."""

    async def scene() -> None:
        hub = await net.router("edge-1", blocked_s=2.0)
        endpoint = hub.ready["endpoints"][0]
        async with DeafLink(endpoint) as deaf:
            await net.process("device-deaf", connect=[deaf.endpoint])
            asker = await net.session("device-2", endpoint)
            assert (await answered(asker, "device-deaf")).sender == "device-deaf"
            deaf.is_deaf.set()
            data = {"x": np.zeros(60_000, np.uint8)}
            key, flood = KEYS.service("device-deaf", "info"), set()
            for _ in range(100):
                query = asker.query(key, make_frame("ask", tensors=data), timeout_s=WAIT_S)
                flood.add(asyncio.create_task(query))
            await asyncio.wait_for(deaf.closed.wait(), WAIT_S)
            assert (await answered(asker, "edge-1")).sender == "edge-1"
            for task in flood:
                task.cancel()
            await asyncio.gather(*flood, return_exceptions=True)

    net.play(scene)


def test_a_link_that_drops_while_frames_wait_for_it_is_back_at_once(net: Net) -> None:
    """Its loss blocked the thread that empties all queues, and Zenoh could forget the link that followed: for ever, as seen."""

    async def scene() -> None:
        cloud = await net.router("cloud-1")
        endpoint = cloud.ready["endpoints"][0]
        link = await open_link(LinkSpec(name="uplink", target=endpoint.partition("/")[2], shape=Shape(delay_s=0.001)))
        net.stack.push_async_callback(link.close)
        await net.router("edge-1", connect=[f"tcp/127.0.0.1:{link.port}"])
        asker = await net.session("operator-1", endpoint)
        await answered(asker, "edge-1")
        data = {"x": np.zeros(100_000, np.uint8)}

        async def ask(purpose: Purpose) -> None:
            with contextlib.suppress(EdgewiseError):
                question = make_frame("ask", tensors=data, purpose=purpose)
                await asker.query(KEYS.service("edge-1", "info"), question, timeout_s=2.0)

        for _ in range(3):
            link.set(outage="black_hole")
            async with asyncio.TaskGroup() as flood:
                for number in range(30):
                    flood.create_task(ask((Purpose.CONTROL, Purpose.SERVING, Purpose.BULK)[number % 3]))
                    await asyncio.sleep(0.1)
                link.set(outage=None)
            async with asyncio.timeout(BACK_S):
                await answered(asker, "edge-1")

    net.play(scene)


async def gone_from(session: ZenohTransport, *nodes: str) -> None:
    """Waits until neither a watch that was there nor a new one sees tokens of nodes."""
    async with asyncio.timeout(WAIT_S):
        while True:
            seen: set[str] = set()
            watch = await session.watch_presence(
                KEYS.alive("*", "*", "*"),
                lambda key, there, seen=seen: seen.add(Keys.read_alive(key)[1]) if there else None,
            )
            await asyncio.sleep(0.3)
            await watch.close()
            if not seen & set(nodes):
                return


def test_no_token_outlives_its_node_however_it_dies(net: Net) -> None:
    """zenoh#2248: killed, frozen, or behind a router that is killed; watched from a router further on, three times over."""

    async def scene() -> None:
        cloud = await net.router("cloud-1")
        watcher = await net.session("cloud-2", cloud.ready["endpoints"][0])
        there: set[str] = set()

        def seen(key: str, is_there: bool) -> None:
            tier, node, _ = Keys.read_alive(key)
            if tier is Tier.DEVICE:
                (there.add if is_there else there.discard)(node)

        await watcher.watch_presence(KEYS.alive("*", "*", "*"), seen)
        names = ("device-1", "device-2", "device-3")
        for _ in range(3):
            edge = await net.router("edge-1", connect=cloud.ready["endpoints"])
            killed, frozen, behind = [await net.process(name, connect=edge.ready["endpoints"]) for name in names]
            await _until(lambda: there == set(names))
            await killed.kill()
            frozen.send_signal(signal.SIGSTOP)
            await _until(lambda: there == {"device-3"})
            await edge.kill()
            await _until(lambda: not there)
            await gone_from(watcher, *names)
            for child in (frozen, behind):
                await child.kill()

    net.play(scene)


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not holds():  # noqa: ASYNC110 - what is looked at has no event
            await asyncio.sleep(0.02)


def test_memory_is_flat_over_link_flaps() -> None:
    """zenoh-ts#457: a router grew from 30 to 300 MB when a radio link dropped. An hour: python -m benchmarks.link_flaps --minutes 60"""
    figures = asyncio.run(measure(0.3))
    assert figures["flaps"] >= 3
    assert figures["answered"] > 0
    _, bars = bars_of(figures)
    assert [bar.measured for bar in bars if not bar.holds] == []
