from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from edgewise.core.errors import FrameRefused, RemoteError, StoreError, Unreachable
from edgewise.core.ids import Digest, Generation, NodeId, digest_of
from edgewise.simulation.links.link import Link, LinkSpec, open_link
from edgewise.simulation.links.shape import Shape
from edgewise.transport.bulk import fetch as bulk
from edgewise.transport.bulk.blobs import FolderBlobs
from edgewise.transport.bulk.fetch import ChunkRequest, fetch_blob, fetch_unsized, serve_blobs
from edgewise.transport.frame import make_frame
from edgewise.transport.loopback import LoopbackFabric
from edgewise.transport.transport import Transport
from edgewise.transport.zenoh.zenoh_transport import ZenohSettings, open_zenoh

KEY = "ew/main/node/hub/blob"


def play(scene: Callable[[], Awaitable[None]], seconds: float = 60.0) -> None:
    asyncio.run(asyncio.wait_for(scene(), seconds))


async def open_hub(stack: AsyncExitStack, folder: Path) -> tuple[Transport, FolderBlobs, str]:
    """A router that serves blobs; also its endpoint."""
    settings = ZenohSettings(node=NodeId("hub"), generation=Generation(1), mode="router", listen=("tcp/127.0.0.1:0",))
    hub = await stack.enter_async_context(await open_zenoh(settings))
    blobs = FolderBlobs(folder / "hub")
    await serve_blobs(hub, KEY, blobs)
    return hub, blobs, hub.endpoints[0].split("/")[1]  # type: ignore[attr-defined]


async def open_leaf(stack: AsyncExitStack, target: str, name: str, **shape: float) -> tuple[Transport, Link]:
    """A client behind a link of its own."""
    link = await open_link(LinkSpec(name=name, target=target, shape=Shape(**shape)))
    stack.push_async_callback(link.close)
    settings = ZenohSettings(node=NodeId(name), generation=Generation(1), connect=(f"tcp/127.0.0.1:{link.port}",))
    return await stack.enter_async_context(await open_zenoh(settings)), link


@pytest.mark.parametrize("size", [0, 1, 1024, 12 * 1024, 1_000_001])
def test_blob_arrives_whole_whatever_its_size(tmp_path: Path, size: int) -> None:
    async def scene() -> None:
        fabric = LoopbackFabric()
        hub, leaf = fabric.open("hub"), fabric.open("leaf")
        theirs, mine = FolderBlobs(tmp_path / "a"), FolderBlobs(tmp_path / "b")
        await serve_blobs(hub, KEY, theirs)
        digest, seen = theirs.put(os.urandom(size)), []
        await fetch_blob(leaf, KEY, digest, size, mine, progress=lambda done, total: seen.append((done, total)))
        assert mine.read(digest) == theirs.read(digest)
        assert seen == sorted(seen)
        assert not size or seen[-1] == (size, size)

    play(scene)


@pytest.mark.parametrize("is_sized", [True, False])
@pytest.mark.parametrize("torn", [b"\0" * 40, b"\0" * 1024, b"\0" * 5000])
def test_what_is_here_of_a_blob_and_torn_is_fetched_anew(tmp_path: Path, torn: bytes, is_sized: bool) -> None:
    async def scene() -> None:
        fabric = LoopbackFabric()
        hub, leaf = fabric.open("hub"), fabric.open("leaf")
        theirs, mine = FolderBlobs(tmp_path / "a"), FolderBlobs(tmp_path / "b")
        await serve_blobs(hub, KEY, theirs)
        digest = theirs.put(os.urandom(1024))
        mine.write_at(digest, 0, torn)
        await (fetch_blob(leaf, KEY, digest, 1024, mine) if is_sized else fetch_unsized(leaf, KEY, digest, mine))
        assert mine.read(digest) == theirs.read(digest)

    play(scene)


def test_blob_that_is_here_is_not_fetched(tmp_path: Path) -> None:
    async def scene() -> None:
        blobs = FolderBlobs(tmp_path)
        await fetch_blob(LoopbackFabric().open("leaf"), KEY, blobs.put(b"x"), 1, blobs)

    play(scene)


def test_two_who_want_the_same_blob_fetch_it_once(tmp_path: Path) -> None:
    async def scene() -> None:
        fabric = LoopbackFabric()
        hub, leaf = fabric.open("hub"), fabric.open("leaf")
        theirs, mine = FolderBlobs(tmp_path / "a"), FolderBlobs(tmp_path / "b")
        await serve_blobs(hub, KEY, theirs)
        digest = theirs.put(os.urandom(200_000))
        await asyncio.gather(*(fetch_blob(leaf, KEY, digest, 200_000, mine) for _ in range(3)))
        received = sum(e.size_bytes for e in leaf.guard.counter.entries() if e.kind == "chunk")
        assert 200_000 <= received < 220_000

    play(scene)


def test_what_is_still_coming_is_passed_on(tmp_path: Path) -> None:
    size, given = 300_000, itertools.count()

    async def scene() -> None:
        fabric = LoopbackFabric()
        hub, middle, leaf = (fabric.open(name) for name in ("hub", "middle", "leaf"))
        source, passing, mine = (FolderBlobs(tmp_path / name) for name in ("a", "b", "c"))
        digest, go_on, here = source.put(os.urandom(size)), asyncio.Event(), asyncio.Event()
        read = source.read_coming

        async def slow(digest: Digest, offset: int, size: int) -> bytes:
            if next(given) >= 4:  # three probes and a chunk
                await go_on.wait()
            return await read(digest, offset, size)

        source.read_coming = slow  # type: ignore[method-assign]
        await serve_blobs(hub, KEY, source)
        await serve_blobs(middle, "middle/blob", passing)
        first = asyncio.create_task(fetch_blob(middle, KEY, digest, size, passing))
        while not passing.partial_size(digest):  # noqa: ASYNC110
            await asyncio.sleep(0)
        second = asyncio.create_task(
            fetch_blob(leaf, "middle/blob", digest, size, mine, progress=lambda done, total: here.set())
        )
        await here.wait()
        assert not passing.has(digest)
        go_on.set()
        await asyncio.gather(first, second)
        assert mine.read(digest) == source.read(digest)

    play(scene)


def test_the_rest_of_a_blob_that_nobody_fetches_is_unreachable_for_now(tmp_path: Path) -> None:
    async def scene() -> None:
        fabric = LoopbackFabric()
        blobs, digest = FolderBlobs(tmp_path / "a"), digest_of(b"whole")
        blobs.write_at(digest, 0, b"who")
        await serve_blobs(fabric.open("hub"), KEY, blobs)
        with pytest.raises(RemoteError, match="only the first 3 bytes of blob") as caught:
            await fetch_blob(fabric.open("leaf"), KEY, digest, 5, FolderBlobs(tmp_path / "b"))
        assert caught.value.fields["remote_code"] == "transport.unreachable"

    play(scene)


def test_holder_without_the_blob_says_so(tmp_path: Path) -> None:
    async def scene() -> None:
        fabric = LoopbackFabric()
        await serve_blobs(fabric.open("hub"), KEY, FolderBlobs(tmp_path / "a"))
        with pytest.raises(RemoteError, match="is not in this node's store") as caught:
            await fetch_blob(fabric.open("leaf"), KEY, digest_of(b"?"), 10, FolderBlobs(tmp_path / "b"))
        assert caught.value.fields["remote_code"] == "store"

    play(scene)


def test_wrong_announcements_are_refused(tmp_path: Path) -> None:
    async def scene() -> None:
        fabric = LoopbackFabric()
        theirs, mine = FolderBlobs(tmp_path / "a"), FolderBlobs(tmp_path / "b")
        await serve_blobs(fabric.open("hub"), KEY, theirs)
        digest = theirs.put(b"x" * 100)
        with pytest.raises(FrameRefused, match="the announced size 101 is wrong"):
            await fetch_blob(fabric.open("leaf"), KEY, digest, 101, mine)
        mine.drop(digest)
        with pytest.raises(StoreError, match="thrown away"):
            await fetch_blob(fabric.open("leaf2"), KEY, digest, 99, mine)
        for request in (ChunkRequest(digest, 0, 2**30), ChunkRequest(digest, -1, 5)):
            with pytest.raises(RemoteError, match="a chunk has 1 to"):
                await fabric.open("leaf3").query(KEY, make_frame("chunk_request", request), timeout_s=5.0)

    play(scene)


def test_vanished_holder_is_unreachable_and_what_came_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "_GRACE_S", 0.3)

    async def scene() -> None:
        fabric = LoopbackFabric()
        hub, leaf = fabric.open("hub"), fabric.open("leaf")
        theirs, mine = FolderBlobs(tmp_path / "a"), FolderBlobs(tmp_path / "b")
        registration = await serve_blobs(hub, KEY, theirs)
        digest = theirs.put(os.urandom(30_000_000))

        def cut_early(done: int, total: int) -> None:
            if done > total / 10:  # far more is left than any window holds
                fabric.cut("hub")

        with pytest.raises(Unreachable, match=r"blob .* stands at .* of 30,000,000 bytes: nobody serves"):
            await fetch_blob(leaf, KEY, digest, 30_000_000, mine, progress=cut_early)
        there = mine.partial_size(digest)
        assert there > 3_000_000
        fabric.heal("hub")
        await registration.close()
        await serve_blobs(fabric.open("other"), KEY, theirs)  # another holder goes on
        first: list[int] = []
        await fetch_blob(leaf, KEY, digest, 30_000_000, mine, progress=lambda done, _: first.append(done))
        assert first[0] > there
        assert mine.has(digest)

    play(scene)


async def fetch_with_cuts(folder: Path, size: int, num_cuts: int) -> tuple[int, int]:
    """Pulls a blob over a link that is cut several times; returns bytes over the link and cuts made."""
    async with AsyncExitStack() as stack:
        _, theirs, target = await open_hub(stack, folder)
        leaf, link = await open_leaf(stack, target, "leaf")
        mine = FolderBlobs(folder / "leaf")
        digest = theirs.put(os.urandom(size))
        made = 0

        def cut(done: int, total: int) -> None:
            nonlocal made
            if made < num_cuts and done > total * (made + 1) / (num_cuts + 1):
                made += 1
                link.set(outage="cut")
                asyncio.get_running_loop().call_later(0.1, lambda: link.set(outage=None))

        await fetch_blob(leaf, KEY, digest, size, mine, progress=cut)
        assert mine.has(digest)
        return link.counters_dict()["down"]["read_bytes"], made


def test_dropped_connection_resumes_without_starting_over(tmp_path: Path) -> None:
    async def scene() -> None:
        size = 8_000_000
        crossed, cuts = await fetch_with_cuts(tmp_path, size, num_cuts=2)
        assert cuts == 2
        assert crossed < 1.5 * size  # windows in flight at a cut are asked for again, no more

    play(scene)


@pytest.mark.slow
def test_200_mb_resume_over_dropped_connections(tmp_path: Path) -> None:
    async def scene() -> None:
        size = 200_000_000
        crossed, cuts = await fetch_with_cuts(tmp_path, size, num_cuts=3)
        assert cuts == 3
        assert crossed < 1.1 * size

    play(scene, 240.0)


def test_slow_receiver_keeps_its_link_and_does_not_slow_the_others(tmp_path: Path) -> None:
    async def scene() -> None:
        async with AsyncExitStack() as stack:
            _, theirs, target = await open_hub(stack, tmp_path)
            fast, _ = await open_leaf(stack, target, "fast")
            slow, slow_link = await open_leaf(stack, target, "slow", bytes_per_s=8000.0, delay_s=0.005)
            digest, size = theirs.put(os.urandom(4_000_000)), 4_000_000
            crawling = asyncio.create_task(fetch_blob(slow, KEY, digest, size, FolderBlobs(tmp_path / "slow")))
            await until_moving(slow_link, 20_000)
            before = slow_link.counters["down"].delivered_bytes
            await fetch_blob(fast, KEY, digest, size, FolderBlobs(tmp_path / "fast"))
            crawled = slow_link.counters["down"].delivered_bytes - before
            assert crawled < size / 10  # in the time in which the other got all of it
            assert not crawling.done()
            assert slow_link.num_connections == 1
            crawling.cancel()

    play(scene)


async def timed_fetch(transport: Transport, digest: Digest, size: int, folder: Path) -> float:
    start = time.monotonic()
    await fetch_blob(transport, KEY, digest, size, FolderBlobs(folder))
    return time.monotonic() - start


async def until_moving(link: Link, size: int) -> None:
    while link.counters["down"].delivered_bytes < size:  # noqa: ASYNC110 - counters tell nobody
        await asyncio.sleep(0.02)


RECEIVER = """
import asyncio, sys
from edgewise.core.ids import Generation, NodeId
from edgewise.transport.bulk.blobs import FolderBlobs
from edgewise.transport.bulk.fetch import fetch_blob
from edgewise.transport.zenoh.zenoh_transport import ZenohSettings, open_zenoh

async def main(endpoint, digest, size, folder):
    async with await open_zenoh(ZenohSettings(node=NodeId("frozen"), generation=Generation(1), connect=(endpoint,))) as leaf:
        print("ready", flush=True)
        await fetch_blob(leaf, "ew/main/node/hub/blob", digest, int(size), FolderBlobs(folder))
        print("done", flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.live
def test_stopped_receiver_does_not_slow_the_others_and_goes_on_when_it_wakes(tmp_path: Path) -> None:
    async def scene() -> None:
        async with AsyncExitStack() as stack:
            _, theirs, target = await open_hub(stack, tmp_path)
            digest, size = theirs.put(os.urandom(4_000_000)), 4_000_000
            link = await open_link(LinkSpec(name="frozen", target=target, shape=Shape(bytes_per_s=1e6)))
            stack.push_async_callback(link.close)
            arguments = (f"tcp/127.0.0.1:{link.port}", digest, str(size), str(tmp_path / "frozen"))
            process: Any = await asyncio.create_subprocess_exec(
                sys.executable, "-c", RECEIVER, *arguments, stdout=asyncio.subprocess.PIPE
            )
            try:
                await process.stdout.readline()
                await until_moving(link, 300_000)
                process.send_signal(signal.SIGSTOP)
                fast, _ = await open_leaf(stack, target, "fast")
                assert await timed_fetch(fast, digest, size, tmp_path / "fast") < 5.0
                process.send_signal(signal.SIGCONT)
                assert await process.stdout.readline() == b"done\n"
                assert await process.wait() == 0
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()

    play(scene)
