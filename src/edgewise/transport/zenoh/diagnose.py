"""Diagnoses why an endpoint cannot be reached, with a cure, within four seconds.

    finding = await diagnose("tls/edge.example:7447", files)
    if finding.cause is not Cause.REACHABLE:
        print(finding.sentence, finding.cure)

`open_zenoh` asks it when no parent answers. Zenoh itself only says that it could not connect.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import socket
import ssl
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from edgewise.transport.zenoh.session_config import TlsFiles, split_endpoint

LIMIT_S = 3.5
_CONNECT_SHARE = 0.6
_SETTLE_S = 0.5
_REFUSED_WORDS = ("ALERT", "alert")
_TLS_RECORDS = (b"\x16\x03", b"\x15\x03")
"""How a TLS greeting and a TLS alert begin."""


class Cause(StrEnum):
    """Names why an endpoint cannot be reached."""

    REACHABLE = "reachable"
    NAME_UNKNOWN = "name_unknown"
    REFUSED = "refused"
    BLACK_HOLE = "black_hole"
    NO_ROUTE = "no_route"
    NOT_TLS = "not_tls"
    IS_TLS = "is_tls"
    SERVER_UNTRUSTED = "server_untrusted"
    SERVER_NAME = "server_name"
    SERVER_EXPIRED = "server_expired"
    CERTIFICATE_REFUSED = "certificate_refused"
    CERTIFICATE_EXPIRED = "certificate_expired"
    CERTIFICATE_UNUSABLE = "certificate_unusable"
    NO_ANSWER = "no_answer"


@dataclass(frozen=True, slots=True)
class EndpointFinding:
    """Holds a diagnosis.

    Attributes:
        cause: What stands in the way; `reachable` if nothing does.
        sentence: The cause as a sentence, with the endpoint.
        cure: What to do.
        is_final: Whether waiting cannot help: a file, a name or a certificate must be changed, here or there.
    """

    cause: Cause
    sentence: str
    cure: str
    is_final: bool = False

    def __str__(self) -> str:
        return f"{self.sentence} {self.cure}"


async def diagnose(endpoint: str, tls: TlsFiles | None = None) -> EndpointFinding:
    """Diagnoses why an endpoint cannot be reached.

    Args:
        endpoint: `tcp/host:port` or `tls/host:port`.
        tls: This node's files, for `tls/`.

    Returns:
        The finding, within four seconds.

    Raises:
        InputError: If the endpoint cannot be read.
    """
    protocol, host, port = split_endpoint(endpoint)
    unusable = _own_files(tls) if protocol == "tls" else None
    if unusable is not None:
        return unusable
    try:
        found = await asyncio.wait_for(_resolve(host, port), LIMIT_S * 0.3)
    except (OSError, TimeoutError):
        return EndpointFinding(
            Cause.NAME_UNKNOWN, f"{endpoint!r}: the name {host!r} does not resolve.", "Check its spelling and the DNS."
        )
    connection = await _connect(endpoint, found)
    if isinstance(connection, EndpointFinding):
        return connection
    with connection:
        if protocol == "tcp":
            return await _plain(endpoint, connection)
        assert tls is not None
        return await _handshake(endpoint, connection, host, tls)


async def _resolve(host: str, port: int) -> tuple[int, tuple[object, ...]]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    family, _, _, _, address = found[0]
    return family, address


async def _connect(endpoint: str, found: tuple[int, tuple[object, ...]]) -> socket.socket | EndpointFinding:
    family, address = found
    connection = socket.socket(family, socket.SOCK_STREAM)
    connection.setblocking(False)
    try:
        await asyncio.wait_for(asyncio.get_running_loop().sock_connect(connection, address), LIMIT_S * _CONNECT_SHARE)
        return connection
    except ConnectionRefusedError:
        finding = EndpointFinding(
            Cause.REFUSED, f"{endpoint!r}: nothing listens on that port.", "Check the port, and that the node is up."
        )
    except TimeoutError:
        finding = EndpointFinding(
            Cause.BLACK_HOLE,
            f"{endpoint!r}: no answer at all; the address is wrong, the machine is off, or a firewall drops it.",
            "Check the address, and that the firewall lets the port through.",
        )
    except OSError as error:
        finding = EndpointFinding(
            Cause.NO_ROUTE, f"{endpoint!r}: {error.strerror or error}.", "Check the address and this machine's network."
        )
    connection.close()
    return finding


async def _plain(endpoint: str, connection: socket.socket) -> EndpointFinding:
    """Probes a plain TCP endpoint: a node waits for the client to speak, and a TLS greeting tells it nothing."""
    loop = asyncio.get_running_loop()
    try:
        data = await asyncio.wait_for(loop.sock_recv(connection, 1), _SETTLE_S)
    except TimeoutError:
        return await _spoken_to(endpoint, connection)
    except OSError:
        data = b""
    what = "it speaks first, which a node does not" if data else "it closes every connection"
    return EndpointFinding(
        Cause.NO_ANSWER, f"{endpoint!r}: {what}.", "Check that the port is a node's, and that its link is up."
    )


async def _spoken_to(endpoint: str, connection: socket.socket) -> EndpointFinding:
    """Greets a silent endpoint in TLS: only one that speaks it answers in it, with a greeting or an alert."""
    loop, incoming, outgoing = asyncio.get_running_loop(), ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = (
        False,
        ssl.CERT_NONE,
    )  # nobody is trusted: it is only asked what it speaks
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing).do_handshake()
    data = b""
    with contextlib.suppress(OSError, TimeoutError):
        await asyncio.wait_for(loop.sock_sendall(connection, outgoing.read()), _SETTLE_S)
        data = await asyncio.wait_for(loop.sock_recv(connection, 2), _SETTLE_S)
    if data not in _TLS_RECORDS:
        return _reachable(endpoint)
    return EndpointFinding(
        Cause.IS_TLS,
        f"{endpoint!r}: what answers there speaks TLS, it was dialled without.",
        f"Dial it as 'tls/{endpoint.partition('/')[2]}', with the node's certificate.",
        is_final=True,
    )


async def _handshake(endpoint: str, connection: socket.socket, host: str, tls: TlsFiles) -> EndpointFinding:
    context = ssl.create_default_context(cafile=str(tls.authority))
    context.check_hostname = tls.verify_name
    context.load_cert_chain(str(tls.certificate), str(tls.key))
    try:
        reader, writer = await asyncio.wait_for(
            asyncio.open_connection(sock=connection.dup(), ssl=context, server_hostname=host), LIMIT_S * 0.3
        )
    except TimeoutError:
        return EndpointFinding(
            Cause.NO_ANSWER,
            f"{endpoint!r}: the port is open, but nobody answers the TLS greeting; the node hangs, its link is "
            "black, or it speaks plain TCP.",
            "Check that it is a node's tls/ port and that the node is alive.",
        )
    except ssl.SSLCertVerificationError as error:
        return _of_server(endpoint, error)
    except (ssl.SSLError, ConnectionError) as error:
        return _of_tls(endpoint, error)
    try:
        # TLS 1.3: the server judges our certificate after our side is done; its alert comes with the first read.
        await asyncio.wait_for(reader.read(1), _SETTLE_S)
    except TimeoutError:
        return _reachable(endpoint)
    except (ssl.SSLError, ConnectionError) as error:
        return _of_tls(endpoint, error)
    finally:
        writer.transport.abort()
    return EndpointFinding(
        Cause.CERTIFICATE_REFUSED,
        f"{endpoint!r}: the node closed the connection after it saw our certificate {str(tls.certificate)!r}.",
        "Check that it was issued by the fleet's authority, is valid and not revoked.",
    )


def _own_files(tls: TlsFiles | None) -> EndpointFinding | None:
    """Returns what is wrong with this node's own certificate files, or None."""
    if tls is None:
        return EndpointFinding(
            Cause.CERTIFICATE_UNUSABLE,
            "a tls/ endpoint needs certificates, none are given.",
            "Give the node's folder.",
            True,
        )
    for path in (tls.authority, tls.certificate, tls.key):
        if not Path(path).is_file():
            return EndpointFinding(
                Cause.CERTIFICATE_UNUSABLE,
                f"the file {str(path)!r} is missing.",
                "Copy the node's folder as the authority wrote it: ca.pem, node.pem, node.key.",
                is_final=True,
            )
    from cryptography import x509

    try:
        certificate = x509.load_pem_x509_certificate(Path(tls.certificate).read_bytes())
        ssl.create_default_context(cafile=str(tls.authority)).load_cert_chain(str(tls.certificate), str(tls.key))
    except (ValueError, ssl.SSLError) as error:
        return EndpointFinding(
            Cause.CERTIFICATE_UNUSABLE,
            f"the files beside {str(tls.certificate)!r} cannot be used: {error}.",
            "Issue the node's certificate again.",
            is_final=True,
        )
    if certificate.not_valid_after_utc < dt.datetime.now(dt.UTC):
        return EndpointFinding(
            Cause.CERTIFICATE_EXPIRED,
            f"our certificate {str(tls.certificate)!r} expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC.",
            "Issue a new one.",
            is_final=True,
        )
    return None


def _of_server(endpoint: str, error: ssl.SSLCertVerificationError) -> EndpointFinding:
    reason = error.verify_message
    if "expired" in reason:
        return EndpointFinding(
            Cause.SERVER_EXPIRED, f"{endpoint!r}: the node's certificate has expired.", "Issue it a new one."
        )
    if "mismatch" in reason or "not valid for" in reason:
        return EndpointFinding(
            Cause.SERVER_NAME,
            f"{endpoint!r}: {reason}.",
            "Dial a name or address its certificate was issued for, or issue it with this one as host.",
            is_final=True,
        )
    return EndpointFinding(
        Cause.SERVER_UNTRUSTED,
        f"{endpoint!r}: its certificate is not of our fleet's authority ({reason}).",
        "Check that this is your fleet's node, and that ca.pem is the same on both.",
        is_final="not yet valid" not in reason,  # a clock that lost its time is set some time after the start
    )


def _of_tls(endpoint: str, error: Exception) -> EndpointFinding:
    text = str(error)
    if isinstance(error, ssl.SSLError) and any(word in text for word in _REFUSED_WORDS):
        return EndpointFinding(
            Cause.CERTIFICATE_REFUSED,
            f"{endpoint!r}: the node refuses our certificate ({error.reason}).",
            "Check that it was issued by the fleet's authority, is valid and not revoked.",
            is_final=True,
        )
    if isinstance(error, (ConnectionError, ssl.SSLEOFError)):  # whoever passes connections on to a node that is down
        return EndpointFinding(
            Cause.NO_ANSWER,
            f"{endpoint!r}: it closes every connection.",
            "Check that the port is a node's, and that its link is up.",
        )
    return EndpointFinding(
        Cause.NOT_TLS,
        f"{endpoint!r}: what answers there does not speak TLS.",
        "Check the port, or dial it as tcp/.",
        is_final=True,
    )


def _reachable(endpoint: str) -> EndpointFinding:
    return EndpointFinding(Cause.REACHABLE, f"{endpoint!r} answers.", "Try again.")
