"""An edge and a shaped link as processes of their own, for benchmarks that measure what crosses a wire."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from edgewise.core.ids import Generation, NodeId, Tier
from edgewise.security import Authority, Identity, create_authority
from edgewise.simulation.links.link import LinkSpec
from edgewise.simulation.links.link_control import LinkControl
from edgewise.simulation.links.shape import Shape
from edgewise.transport.bulk.blobs import FolderBlobs
from edgewise.transport.bulk.fetch import fetch_blob, serve_blobs
from edgewise.transport.frame import Frame, make_frame
from edgewise.transport.keys import Keys
from edgewise.transport.zenoh.zenoh_transport import TlsFiles, ZenohSettings, ZenohTransport, open_zenoh

KEYS = Keys("bench")


class FetchOrder(msgspec.Struct, frozen=True):
    """Tells the edge to fetch a blob from the device."""

    digest: str
    size_bytes: int


@dataclass(frozen=True)
class Bench:
    """What a benchmark works with: the device's transport, the link's control, both stores."""

    device: ZenohTransport
    link: LinkControl
    blobs: FolderBlobs
    edge_blobs: FolderBlobs


@contextlib.asynccontextmanager
async def fleet(folder: Path, shape: Shape) -> AsyncIterator[Bench]:
    """Starts an edge process and a link process; the device is this process.

    Args:
        folder: For certificates and blobs.
        shape: Of the link.

    Yields:
        The running fleet.
    """
    create_authority(folder / "ca", "bench")
    authority = Authority.load(folder / "ca")
    authority.issue("edge-1", Tier.EDGE, folder=folder / "edge-1")
    authority.issue("device-1", Tier.DEVICE, folder=folder / "device-1")
    async with contextlib.AsyncExitStack() as stack:
        edge = await _start(stack, "benchmarks.fleet_processes", str(folder))
        target = edge["endpoint"].split("/")[1]
        spec = msgspec.to_builtins([LinkSpec(name="link", target=target, shape=shape)])
        ports = await _start(
            stack, "edgewise.simulation.links.link_control", "--until-stdin-closes", "--spec", json.dumps(spec)
        )
        link = await LinkControl.connect(ports["control"])
        stack.push_async_callback(link.close)
        way = f"tls/127.0.0.1:{ports['links']['link']}"
        device = await open_zenoh(
            ZenohSettings(
                node=NodeId("device-1"),
                generation=Generation(1),
                connect=(way,),
                tls=TlsFiles.of(folder / "device-1"),
                sign=Identity.load(folder / "device-1").sign,
            )
        )
        await stack.enter_async_context(device)
        blobs = FolderBlobs(folder / "device-blobs")
        await serve_blobs(device, KEYS.service("device-1", "blob"), blobs)
        yield Bench(device, link, blobs, FolderBlobs(folder / "edge-blobs"))


async def _start(stack: contextlib.AsyncExitStack, module: str, *arguments: str) -> dict[str, Any]:
    """Starts a module that prints one JSON line and ends when its standard input closes."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", module, *arguments, stdin=pipe, stdout=pipe)

    async def end() -> None:
        assert process.stdin is not None
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), 5.0)
        except TimeoutError:
            process.kill()
            await process.wait()

    stack.push_async_callback(end)
    assert process.stdout is not None
    line = await process.stdout.readline()
    return {"pid": process.pid, **json.loads(line)}


async def _edge(folder: Path) -> None:
    settings = ZenohSettings(
        node=NodeId("edge-1"),
        generation=Generation(1),
        mode="router",
        listen=("tls/127.0.0.1:0",),
        tls=TlsFiles.of(folder / "edge-1"),
    )
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_reader(0, stopped.set)
    blobs = FolderBlobs(folder / "edge-blobs")
    async with await open_zenoh(settings) as edge:

        async def stage(question: Frame) -> Frame:
            return make_frame("stage_answer", tensors={"y": question.array("x")[:10]})

        async def fetch(question: Frame) -> Frame:
            order = question.read(FetchOrder)
            key = KEYS.service("device-1", "blob")
            await fetch_blob(edge, key, order.digest, order.size_bytes, blobs)  # type: ignore[arg-type]
            return make_frame("fetched")

        async def take(question: Frame) -> Frame:
            return make_frame("acknowledged")

        await edge.serve(KEYS.service("edge-1", "stage"), stage)
        await edge.serve(KEYS.service("edge-1", "control"), fetch)
        await edge.serve(KEYS.service("edge-1", "report"), take)
        await serve_blobs(edge, KEYS.service("edge-1", "blob"), blobs)
        print(json.dumps({"endpoint": edge.endpoints[0]}), flush=True)
        await stopped.wait()


if __name__ == "__main__":
    asyncio.run(_edge(Path(sys.argv[1])))
