from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgewise.core.errors import InputError, SecurityError, Unreachable
from edgewise.core.ids import Generation, NodeId
from edgewise.ledger.entry import Direction, Purpose
from edgewise.simulation.links.link import LinkSpec, open_link
from edgewise.transport.frame import Frame, encode_frame, make_frame
from edgewise.transport.zenoh.session_config import WATCHES_SOCKETS, resolved, split_endpoint, zenoh_config
from edgewise.transport.zenoh.zenoh_transport import TlsFiles, ZenohSettings, open_zenoh


def settings(name: str = "n", **fields: Any) -> ZenohSettings:
    return ZenohSettings(node=NodeId(name), generation=Generation(1), **fields)


async def echo(query: Frame) -> Frame:
    return make_frame("answer", tensors=query.tensors)


def test_nodes_find_nobody_but_their_given_endpoints() -> None:
    config = zenoh_config(settings())
    assert config["scouting/multicast/enabled"] is config["scouting/gossip/enabled"] is False
    assert config["transport/shared_memory/enabled"] is False
    assert zenoh_config(settings(scout=True))["scouting/multicast/enabled"] is True


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "[::]", "edge.example"])
def test_listening_beyond_loopback_without_tls_is_refused(host: str) -> None:
    with pytest.raises(SecurityError, match=r"beyond this machine without TLS.*--insecure"):
        resolved(settings(listen=(f"tcp/{host}:7447",)))
    assert resolved(settings(listen=(f"tcp/{host}:7447",), insecure=True)).listen == (f"tcp/{host}:7447",)


def test_loopback_may_be_plain_and_port_0_becomes_a_free_one() -> None:
    (endpoint,) = resolved(settings(listen=("tcp/127.0.0.1:0",))).listen
    assert split_endpoint(endpoint)[2] > 0


def test_tls_endpoint_without_files_is_refused() -> None:
    with pytest.raises(InputError, match="needs TLS files"):
        resolved(settings(connect=("tls/127.0.0.1:1",)))


@pytest.mark.parametrize("endpoint", ["udp/1.2.3.4:1", "tcp/host", "tcp/:1", "tcp/host:port", "host:1"])
def test_endpoint_must_be_protocol_host_port(endpoint: str) -> None:
    with pytest.raises(InputError, match="is not an endpoint"):
        resolved(settings(connect=(endpoint,)))


def test_taken_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        endpoint = f"tcp/127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(InputError, match=r"port of .* is in use"):
            asyncio.run(open_zenoh(settings(mode="router", listen=(endpoint,))))


def test_missing_key_file_is_named(certificates: Path) -> None:
    files = TlsFiles(certificates / "edge-1" / "ca.pem", certificates / "edge-1" / "node.pem", certificates / "no.key")
    with pytest.raises(InputError, match=r"cannot listen on .*Check address and TLS files"):
        asyncio.run(open_zenoh(settings(mode="router", listen=("tls/127.0.0.1:0",), tls=files)))


def test_registration_lives_without_being_kept() -> None:
    async def scene() -> None:
        async with await open_zenoh(settings("hub", mode="router", listen=("tcp/127.0.0.1:0",))) as hub:
            await hub.serve("ew/f/node/hub/info", echo)
            gc.collect()
            reply = await hub.query("ew/f/node/hub/info", make_frame("ask"), timeout_s=10.0)
            assert reply.sender == "hub"

    asyncio.run(scene())


@pytest.mark.parametrize("mode", ["client", "router"])
@pytest.mark.parametrize("protocol", ["tcp", "tls"])
def test_what_is_written_beside_frames_is_told(protocol: str, mode: Any, certificates: Path) -> None:
    """A prediction for a slow link needs every byte; Zenoh and TLS add about as much as a small frame has."""

    def node(name: str, **fields: Any) -> ZenohSettings:
        tls = TlsFiles.of(certificates / name) if protocol == "tls" else None
        return ZenohSettings(node=NodeId(name), generation=Generation(1), tls=tls, **fields)

    async def scene() -> None:
        hub = await open_zenoh(node("edge-1", mode="router", listen=(f"{protocol}/127.0.0.1:0",)))
        link = await open_link(LinkSpec(name="l", target=hub.endpoints[0].split("/")[1]))
        leaf = await open_zenoh(node("device-1", mode=mode, connect=(f"{protocol}/127.0.0.1:{link.port}",)))
        key, asked = "ew/f/node/edge-1/a-service", make_frame("ask", purpose=Purpose.SERVING)
        await hub.serve(key, echo)
        told, is_told = leaf.bytes_beside_frames(key), False
        while not is_told:  # until the way to the key is known, and no keep-alive comes between
            before = link.counters_dict()
            try:
                answer = await leaf.query(key, asked, timeout_s=20.0)
            except Unreachable:
                continue
            await asyncio.sleep(0.05)  # for the record behind the answer
            after = link.counters_dict()
            wire = [after[way]["read_bytes"] - before[way]["read_bytes"] for way in ("up", "down")]
            up, down = wire[0] - len(leaf.guard.seal(asked, key)), wire[1] - len(encode_frame(answer))
            # Behind the answer Zenoh says that it was the last, in a record of its own; nobody waits for that.
            is_told = abs(up - told[0]) <= 6 and 6 < down - told[1] <= 45
        for each in (leaf, link, hub):
            await each.close()

    asyncio.run(asyncio.wait_for(scene(), 60.0))


def test_no_byte_passes_beside_the_link() -> None:
    """Every byte of every frame is in the proxy's count; without the proxy nothing arrives."""

    async def scene() -> None:
        async with await open_zenoh(settings("hub", mode="router", listen=("tcp/127.0.0.1:0",))) as hub:
            link = await open_link(LinkSpec(name="l", target=hub.endpoints[0].split("/")[1]))
            leaf = await open_zenoh(settings("leaf", connect=(f"tcp/127.0.0.1:{link.port}",)))
            await hub.serve("ew/f/node/hub/stage", echo)
            before = link.counters_dict()
            for purpose in Purpose:
                tensors = {"x": np.random.default_rng(0).integers(0, 256, 200_000, np.uint8)}
                await leaf.query(
                    "ew/f/node/hub/stage", make_frame("ask", tensors=tensors, purpose=purpose), timeout_s=20.0
                )
            after = link.counters_dict()
            for way, direction in (("up", Direction.SENT), ("down", Direction.RECEIVED)):
                frames = sum(e.size_bytes for e in leaf.counter.entries() if e.direction is direction)
                wire = after[way]["delivered_bytes"] - before[way]["delivered_bytes"]
                assert frames <= wire <= 1.02 * frames
            await link.close()
            received = sum(e.num_frames for e in hub.counter.entries() if e.direction is Direction.RECEIVED)
            with pytest.raises(Unreachable):
                await leaf.query("ew/f/node/hub/stage", make_frame("ask"), timeout_s=20.0)
            assert received == sum(e.num_frames for e in hub.counter.entries() if e.direction is Direction.RECEIVED)
            await leaf.close()

    asyncio.run(asyncio.wait_for(scene(), 60.0))


def test_server_two_routers_away_that_goes_is_unreachable_before_the_deadline() -> None:
    async def scene() -> None:
        async with await open_zenoh(settings("cloud", mode="router", listen=("tcp/127.0.0.1:0",))) as cloud:
            between = settings("edge", mode="router", listen=("tcp/127.0.0.1:0",), connect=cloud.endpoints)
            async with (
                await open_zenoh(between) as edge,
                await open_zenoh(settings("device", connect=edge.endpoints)) as device,
            ):
                asked = asyncio.Event()

                async def never(query: Frame) -> Frame:
                    asked.set()
                    return await asyncio.get_running_loop().create_future()

                await cloud.serve("ew/f/node/cloud/stage", never)
                task = asyncio.create_task(ask_when_known(device, "ew/f/node/cloud/stage", asked))
                await asked.wait()
                await cloud.close()
                with pytest.raises(Unreachable, match="it was lost"):
                    await task

    asyncio.run(asyncio.wait_for(scene(), 20.0))


async def ask_when_known(transport: Any, key: str, asked: asyncio.Event) -> Frame:
    """Asks again until the declaration has travelled; the query that was received decides."""
    while True:
        try:
            return await transport.query(key, make_frame("ask"), timeout_s=60.0)
        except Unreachable:
            if asked.is_set():
                raise
            await asyncio.sleep(0.01)


def test_an_answer_that_was_read_needs_no_collector_to_go() -> None:
    """80 MB of a model stayed in memory once: each chunk's answer and its question held each other."""

    async def scene() -> list[bool]:
        async with await open_zenoh(settings("hub", mode="router", listen=("tcp/127.0.0.1:0",))) as hub:
            leaf = await open_zenoh(settings("leaf", connect=hub.endpoints))
            await hub.serve("ew/f/node/hub/blob", echo)
            answers: list[weakref.ref[Any]] = []
            gc.disable()
            try:
                for _ in range(5):
                    query = make_frame("ask", tensors={"x": np.zeros(1000, np.uint8)}, purpose=Purpose.BULK)
                    answers.append(weakref.ref(await _answer(leaf, query)))
                await asyncio.sleep(0)
                return [answer() is None for answer in answers]
            finally:
                gc.enable()
                await leaf.close()

    assert asyncio.run(asyncio.wait_for(scene(), 60.0)) == [True] * 5


async def _answer(leaf: Any, query: Frame) -> Any:
    return (await leaf.query("ew/f/node/hub/blob", query, timeout_s=20.0)).array("x")


@pytest.mark.skipif(not WATCHES_SOCKETS, reason="only Linux lets a connection be ended")
@pytest.mark.parametrize("mode", ["client", "router"])
def test_a_node_that_is_deaf_behind_its_router_is_linked_anew_until_it_sees_it(mode: Any) -> None:
    """Between routers, Zenoh 1.10 takes a link that broke within its first tenth of a second, and declares nothing over it again."""

    async def scene() -> None:
        async with contextlib.AsyncExitStack() as stack:

            async def opened(name: str, **how: Any) -> Any:
                transport = await open_zenoh(settings(name, **how))
                stack.push_async_callback(transport.close)
                return transport

            hub = await opened("hub", mode="router", listen=("tcp/127.0.0.1:0",))
            below = {"listen": ("tcp/127.0.0.1:0",)} if mode == "router" else {}
            edge = await opened("edge", mode=mode, connect=hub.endpoints, **below)
            leaf = await opened("leaf", connect=edge.endpoints) if below else edge
            seen: asyncio.Queue[bool] = asyncio.Queue()
            await hub.serve("ew/f/node/hub/info", echo)
            await hub.declare_presence("ew/f/alive/cloud/hub/1")
            await edge.watch_presence("ew/f/alive/cloud/hub/1", lambda _, there: seen.put_nowait(there))
            assert await seen.get()
            is_seen = False
            while not is_seen:
                await edge.relink("this test asks for it.")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(2.0):
                        while not is_seen:
                            is_seen = await seen.get()
            for asker in (edge, leaf):
                with contextlib.suppress(Unreachable):  # its queries may go the new way a moment later
                    await asker.query("ew/f/node/hub/info", make_frame("ask"), timeout_s=20.0)
                    continue
                await asyncio.sleep(0.5)
                await asker.query("ew/f/node/hub/info", make_frame("ask"), timeout_s=20.0)
            assert len(await leaf.routers()) == 1

    asyncio.run(asyncio.wait_for(scene(), 60.0))
