from __future__ import annotations

import asyncio
import re
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from edgewise.core.errors import InputError, Unreachable
from edgewise.core.ids import Generation, NodeId
from edgewise.transport.zenoh.diagnose import Cause, EndpointFinding, diagnose
from edgewise.transport.zenoh.zenoh_transport import TlsFiles, ZenohSettings, open_zenoh

HANGS_S = 30.0
"""A diagnosis that takes so long hangs; how long it takes is measured by the live tests alone."""


def found(find: Callable[[], Awaitable[EndpointFinding]]) -> EndpointFinding:
    async def scene() -> EndpointFinding:
        return await asyncio.wait_for(find(), HANGS_S)

    return asyncio.run(scene())


async def beside_a_node(folder: Path, name: str, ask: Callable[[str], Awaitable[EndpointFinding]]) -> EndpointFinding:
    """Asks while a TLS node with that certificate listens."""
    settings = ZenohSettings(
        node=NodeId(name),
        generation=Generation(1),
        mode="router",
        listen=("tls/127.0.0.1:0",),
        tls=TlsFiles.of(folder / name),
    )
    async with await open_zenoh(settings) as node:
        return await ask(node.endpoints[0])


def test_name_that_does_not_resolve() -> None:
    finding = found(lambda: diagnose("tcp/no-such-host.invalid:7447"))
    assert finding.cause is Cause.NAME_UNKNOWN
    assert "'no-such-host.invalid' does not resolve" in str(finding)


def test_closed_port() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        finding = found(lambda: diagnose(f"tcp/127.0.0.1:{free.getsockname()[1]}"))
    assert finding.cause is Cause.REFUSED
    assert "nothing listens" in finding.sentence


def test_black_hole() -> None:
    with ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(3):  # the backlog is full: further greetings are not answered
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        finding = found(lambda: diagnose(f"tcp/127.0.0.1:{full.getsockname()[1]}"))
    assert finding.cause is Cause.BLACK_HOLE
    assert "no answer at all" in finding.sentence


def test_port_that_does_not_speak_tls(certificates: Path) -> None:
    async def ask() -> EndpointFinding:
        async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"220 mail.example ESMTP\r\n")
            writer.close()

        async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            return await diagnose(f"tls/127.0.0.1:{port}", TlsFiles.of(certificates / "device-1"))

    assert found(ask).cause is Cause.NOT_TLS


@pytest.mark.parametrize("server", ["edge-1", "stranger"])
def test_a_tls_port_that_is_dialled_without(certificates: Path, server: str) -> None:
    finding = found(
        lambda: beside_a_node(certificates, server, lambda endpoint: diagnose(endpoint.replace("tls/", "tcp/")))
    )
    assert finding.cause is Cause.IS_TLS
    assert re.search(r"speaks TLS, it was dialled without. Dial it as 'tls/127.0.0.1:\d+'", str(finding))


def test_a_plain_node_answers() -> None:
    async def ask() -> EndpointFinding:
        settings = ZenohSettings(node=NodeId("n"), generation=Generation(1), mode="router", listen=("tcp/127.0.0.1:0",))
        async with await open_zenoh(settings) as node:
            return await diagnose(node.endpoints[0])

    assert found(ask).cause is Cause.REACHABLE


def test_port_that_closes_at_once() -> None:
    async def ask() -> EndpointFinding:
        async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0) as server:
            return await diagnose(f"tcp/127.0.0.1:{server.sockets[0].getsockname()[1]}")

    assert found(ask).cause is Cause.NO_ANSWER


def test_port_that_never_answers_the_greeting(certificates: Path) -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        endpoint = f"tls/127.0.0.1:{mute.getsockname()[1]}"
        finding = found(lambda: diagnose(endpoint, TlsFiles.of(certificates / "device-1")))
    assert finding.cause is Cause.NO_ANSWER


@pytest.mark.parametrize(
    ("server", "own", "cause"),
    [
        ("edge-1", "device-1", Cause.REACHABLE),
        ("stranger", "device-1", Cause.SERVER_UNTRUSTED),
        ("edge-1", "expired", Cause.CERTIFICATE_EXPIRED),
        ("edge-1", "nowhere", Cause.CERTIFICATE_UNUSABLE),
    ],
)
def test_certificates(certificates: Path, server: str, own: str, cause: Cause) -> None:
    files = TlsFiles.of(certificates / own)
    finding = found(lambda: beside_a_node(certificates, server, lambda endpoint: diagnose(endpoint, files)))
    assert finding.cause is cause


def test_certificate_of_another_authority_is_refused_by_the_node(certificates: Path) -> None:
    stranger = TlsFiles.of(certificates / "stranger")
    files = replace(stranger, authority=certificates / "edge-1" / "ca.pem")  # trusts the fleet, is not trusted
    finding = found(lambda: beside_a_node(certificates, "edge-1", lambda endpoint: diagnose(endpoint, files)))
    assert finding.cause is Cause.CERTIFICATE_REFUSED


def test_server_whose_certificate_names_another_host(certificates: Path) -> None:
    files = TlsFiles.of(certificates / "device-1")

    async def ask() -> EndpointFinding:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        own = TlsFiles.of(certificates / "device-2")  # issued for no host
        context.load_cert_chain(own.certificate, own.key)
        async with await asyncio.start_server(lambda *_: None, "127.0.0.1", 0, ssl=context) as server:
            return await diagnose(f"tls/127.0.0.1:{server.sockets[0].getsockname()[1]}", files)

    assert found(ask).cause in (Cause.SERVER_NAME, Cause.SERVER_UNTRUSTED)


def test_tls_without_files() -> None:
    assert asyncio.run(diagnose("tls/127.0.0.1:1")).cause is Cause.CERTIFICATE_UNUSABLE


def test_unreadable_endpoint() -> None:
    with pytest.raises(InputError, match="is not an endpoint"):
        asyncio.run(diagnose("127.0.0.1:7447"))


@pytest.mark.live
@pytest.mark.parametrize("mode", ["client", "router"])
def test_opening_a_session_to_nowhere_says_why_within_five_seconds(mode: str) -> None:
    async def scene() -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            endpoint = f"tcp/127.0.0.1:{free.getsockname()[1]}"
            await open_zenoh(
                ZenohSettings(node=NodeId("n"), generation=Generation(1), mode=mode, listen=(), connect=(endpoint,))
            )  # type: ignore[arg-type]

    start = time.monotonic()
    with pytest.raises(Unreachable, match=r"no parent can be reached: .*nothing listens on that port") as caught:
        asyncio.run(scene())
    assert time.monotonic() - start < 5.0
    assert caught.value.fields["causes"] == ["refused"]
