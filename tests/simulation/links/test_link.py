from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from edgewise.core.errors import InputError
from edgewise.simulation.links.link import Link, LinkSpec, open_link
from edgewise.simulation.links.shape import PACKET_BYTES, Shape

Echo = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def linked(shape: Shape) -> AsyncIterator[tuple[Link, Callable[[], Awaitable[Echo]]]]:
    """A link to an echo server, and a way to dial it."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    link = await open_link(LinkSpec(name="l", target=f"127.0.0.1:{server.sockets[0].getsockname()[1]}", shape=shape))
    writers: list[asyncio.StreamWriter] = []

    async def dial() -> Echo:
        reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
        writers.append(writer)
        return reader, writer

    try:
        yield link, dial
    finally:
        for writer in writers:
            writer.close()
        await link.close()
        server.close()
        await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)


def play(scene: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scene(), 30.0))


async def exchange(echo: Echo, size: int) -> float:
    reader, writer = echo
    start = asyncio.get_running_loop().time()
    writer.write(os.urandom(size))
    await reader.readexactly(size)
    return asyncio.get_running_loop().time() - start


def test_bytes_pass_unchanged_and_are_counted_exactly() -> None:
    async def scene() -> None:
        async with linked(Shape()) as (link, dial):
            reader, writer = await dial()
            sent = os.urandom(300_000)
            writer.write(sent)
            assert await reader.readexactly(len(sent)) == sent
            counters = link.counters_dict()
            assert counters["up"]["read_bytes"] == counters["up"]["delivered_bytes"] == len(sent)
            assert counters["down"]["read_bytes"] == counters["down"]["delivered_bytes"] == len(sent)
            if sys.platform == "linux":
                assert counters["up"]["kernel_bytes"] == counters["down"]["kernel_bytes"] == len(sent)

    play(scene)


def test_transfer_takes_size_over_rate_plus_the_delays() -> None:
    async def scene() -> None:
        async with linked(Shape(bytes_per_s=1e6, delay_s=0.02)) as (link, dial):
            echo, size = await dial(), 400_000
            fast = await exchange(echo, size)
            link.set(bytes_per_s=0.5e6)
            slow = await exchange(echo, size)
            # Never earlier than size / rate and two delays: up and down overlap but for the first bytes.
            assert fast >= size / 1e6 + 2 * 0.02
            assert slow >= size / 0.5e6 + 2 * 0.02
            assert 1.4 < slow / fast < 2.6  # half the rate, twice the time

    play(scene)


def test_delay_is_waited_once_each_way() -> None:
    async def scene() -> None:
        async with linked(Shape(delay_s=0.01)) as (link, dial):
            echo = await dial()
            near = min([await exchange(echo, 10) for _ in range(3)])
            link.set(delay_s=0.1)
            far = min([await exchange(echo, 10) for _ in range(3)])
            assert near >= 0.02
            assert far >= 0.2
            assert far > 4 * near  # ten times the delay, and what the machine adds

    play(scene)


def test_rate_can_change_while_bytes_are_on_their_way() -> None:
    async def scene() -> None:
        async with linked(Shape(bytes_per_s=2000.0)) as (link, dial):
            echo = await dial()
            asyncio.get_running_loop().call_later(0.1, lambda: link.set(bytes_per_s=None))
            await exchange(echo, 200_000)  # 100 s at the first rate, beyond the scene's limit

    play(scene)


def test_black_hole_stops_bytes_and_keeps_the_connection() -> None:
    async def scene() -> None:
        async with linked(Shape()) as (link, dial):
            reader, writer = await dial()
            await exchange((reader, writer), 10)
            link.set(outage="black_hole")
            writer.write(b"hello")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.readexactly(5), 0.1)
            assert link.counters_dict()["up"]["delivered_bytes"] == 10
            link.set(outage=None)
            assert await reader.readexactly(5) == b"hello"

    play(scene)


def test_cut_closes_connections_and_refuses_new_ones_until_healed() -> None:
    async def scene() -> None:
        async with linked(Shape()) as (link, dial):
            reader, _ = echo = await dial()
            await exchange(echo, 10)
            link.set(outage="cut")
            with pytest.raises(ConnectionError):
                await reader.readexactly(1)
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await exchange(await dial(), 1)
            link.set(outage=None)
            await exchange(await dial(), 10)

    play(scene)


def test_end_of_one_side_reaches_the_other_after_its_last_byte() -> None:
    async def scene() -> None:
        async with linked(Shape(bytes_per_s=1e5, delay_s=0.01)) as (_, dial):
            reader, writer = await dial()
            writer.write(b"x" * 20_000)
            writer.write_eof()
            assert len(await reader.read()) == 20_000

    play(scene)


def test_target_that_is_down_looks_like_a_reset() -> None:
    async def scene() -> None:
        async with linked(Shape()) as (link, dial):
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                link.set(target=f"127.0.0.1:{free.getsockname()[1]}")
            reader, _ = await dial()
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await reader.readexactly(1)

    play(scene)


def test_wrong_settings_are_refused() -> None:
    async def scene() -> None:
        async with linked(Shape()) as (link, _):
            with pytest.raises(InputError, match="outage 'flood' is not known"):
                link.set(outage="flood")  # type: ignore[arg-type]
            with pytest.raises(InputError, match="cannot be set so"):
                link.set(speed=3)
            with pytest.raises(InputError, match="cannot listen on"):
                await open_link(LinkSpec(name="m", target="127.0.0.1:1", listen=f"127.0.0.1:{link.port}"))
            with pytest.raises(InputError, match="is not an address"):
                await open_link(LinkSpec(name="m", target="nowhere"))

    play(scene)


def test_a_senders_segments_have_a_networks_size_and_fit_any_window() -> None:
    async def scene() -> None:
        async with linked(Shape(bytes_per_s=1e6, delay_s=0.001)) as (_, dial):
            _, writer = await dial()
            end = writer.get_extra_info("socket")
            assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) <= PACKET_BYTES

    play(scene)


def test_a_link_that_is_changed_while_its_receiver_takes_nothing_goes_on_when_it_does() -> None:
    async def scene() -> None:
        async with linked(Shape(bytes_per_s=50e6, delay_s=0.0001)) as (link, dial):
            reader, writer = await dial()
            size = 16 * 2**20  # more than all buffers hold
            writer.write(b"x" * size)
            sending = asyncio.ensure_future(writer.drain())
            before = -1
            while (now := link.counters["down"].delivered_bytes) != before or now == 0:  # until nothing moves any more
                before = now
                await asyncio.sleep(0.05)
            link.set(delay_s=0.001)
            assert len(await reader.readexactly(size)) == size
            await sending

    play(scene)
