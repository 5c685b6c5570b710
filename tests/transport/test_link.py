from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from edgewise.core.errors import InputError
from edgewise.simulation.links.link import Link, LinkSpec, open_link
from edgewise.simulation.links.link_control import LinkControl, main, read_specs
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
        async with linked(Shape(bytes_per_s=1e6, delay_s=0.02)) as (_, dial):
            took = await exchange(await dial(), 400_000)
            # The echo overlaps: up and down both run at 1 MB/s, one after the other's first bytes.
            assert 0.44 <= took <= 0.70

    play(scene)


def test_rate_can_change_while_bytes_are_on_their_way() -> None:
    async def scene() -> None:
        async with linked(Shape(bytes_per_s=2000.0)) as (link, dial):
            echo = await dial()
            asyncio.get_running_loop().call_later(0.1, lambda: link.set(bytes_per_s=None))
            assert await exchange(echo, 50_000) < 5.0  # 25 s at the first rate

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


@pytest.mark.live
def test_link_process_tells_its_ports_obeys_and_ends_with_its_owner() -> None:
    async def scene() -> None:
        spec = json.dumps([{"name": "a", "target": "127.0.0.1:1", "shape": {"bytes_per_s": 1000}}])
        pipe = asyncio.subprocess.PIPE
        command = ("-m", "edgewise.simulation.links.link_control", "--spec", spec, "--until-stdin-closes")
        process = await asyncio.create_subprocess_exec(sys.executable, *command, stdin=pipe, stdout=pipe)
        assert process.stdout is not None
        assert process.stdin is not None
        ports = json.loads(await process.stdout.readline())
        control = await LinkControl.connect(ports["control"])
        assert await control.add(LinkSpec(name="b", target="127.0.0.1:2")) > 0
        await control.set("a", bytes_per_s=5.0, outage="cut")
        assert set(await control.counters()) == {"a", "b"}
        with pytest.raises(InputError, match=r"there is no link 'c'\."):
            await control.set("c", delay_s=1)
        with pytest.raises(InputError, match="no operation 'jump'"):
            await control.call("jump")
        with pytest.raises(InputError, match="link 'b' exists"):
            await control.add(LinkSpec(name="b", target="127.0.0.1:2"))
        with pytest.raises(InputError, match="cannot be called so"):
            await control.call("counters", what=1)
        await control.close()
        process.stdin.close()
        assert await process.wait() == 0

    play(scene)


@pytest.mark.live
def test_link_process_ends_on_sigterm() -> None:
    async def scene() -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "edgewise.simulation.links.link_control", stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        await process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0

    play(scene)


def test_wrong_spec_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="a link spec is not usable"):
        read_specs([{"name": "a", "goal": "x"}])
    with pytest.raises(SystemExit) as caught:
        main(["--spec", "[{]"])
    assert caught.value.code == 2
    assert "--spec" in capsys.readouterr().err


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
