"""Builds the configuration of a node's Zenoh session. `zenoh_transport.py` opens it."""

from __future__ import annotations

import hashlib
import ipaddress
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from edgewise.core.errors import InputError, SecurityError
from edgewise.core.ids import Generation, NodeId
from edgewise.ledger.entry import FrameCounter, Purpose
from edgewise.transport.guard import AllowOrigins, Sign, Tap

SEND_BUFFER_BYTES = 128 * 1024
KEEP_ALIVES_PER_LEASE = 16
BATCH_BYTES = 13 * 1024
QUEUE_BATCHES = {
    "control": 2,
    "real_time": 2,
    "interactive_high": 8,
    "interactive_low": 4,
    "data_high": 8,
    "data": 2,
    "data_low": 8,
    "background": 16,
}
PRIORITIES = {
    Purpose.SERVING: "INTERACTIVE_HIGH",
    Purpose.CONTROL: "DATA_HIGH",
    Purpose.TRAINING: "DATA_LOW",
    Purpose.BULK: "BACKGROUND",
}
WATCHES_SOCKETS = hasattr(socket, "TCP_INFO") and Path("/proc/self/fd").is_dir()
"""Whether this system lets `link_sockets.py` end a link's connection: Linux. Zenoh's own lease is the second line then."""
_ZENOH_LEASES = 4 if WATCHES_SOCKETS else 1
_DROP_AFTER_US = 20_000
_OPEN_TIMEOUT_MS = 3000


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Names the files of mutual TLS: the fleet's authority and this node's certificate.

    Attributes:
        authority: PEM file of the authority's certificate.
        certificate: PEM file of the node's certificate.
        key: PEM file of its private key.
        verify_name: Whether a server's certificate must name the address dialled.
    """

    authority: Path
    certificate: Path
    key: Path
    verify_name: bool = True

    @staticmethod
    def of(folder: str | Path) -> TlsFiles:
        """Returns the files of a node's folder: `ca.pem`, `node.pem`, `node.key`."""
        folder = Path(folder)
        return TlsFiles(folder / "ca.pem", folder / "node.pem", folder / "node.key")


@dataclass(frozen=True, slots=True, kw_only=True)
class ZenohSettings:
    """Configures how a node joins the fabric.

    Attributes:
        node: Its name.
        generation: Its incarnation.
        mode: `router` takes part in routing and may listen; `client` has one way out.
        listen: Endpoints to listen on, e.g. `tls/127.0.0.1:0`; port 0 is resolved before.
        connect: Endpoints of its parents.
        tls: Files for `tls/` endpoints.
        access_control: Zenoh's own `access_control` block; the coarse fence.
        scout: Whether nodes may be found by multicast and gossip, beside the given endpoints.
        insecure: Allows listening beyond loopback without TLS.
        lease_s: Silence after which a link counts as lost.
        blocked_s: How long a link may take nothing of what waits for it in one priority; then it is closed. A link that cannot move
            a batch of `BATCH_BYTES` within its lease is lost anyway.
        connect_timeout_s: How long `open_zenoh` waits for a first connection.
        must_connect: Whether a router without a parent is an error; a restarted edge may go on alone.
        counter: Counts frames; made if None.
        sign: Signs control and training frames.
        allow: The data policy.
        tap: Receives the plain bytes of every outgoing frame.
        panicked: Told, on any thread, that Zenoh has panicked: this process cannot use it any more.
    """

    node: NodeId
    generation: Generation
    mode: Literal["router", "client"] = "client"
    listen: tuple[str, ...] = ()
    connect: tuple[str, ...] = ()
    tls: TlsFiles | None = None
    access_control: Mapping[str, Any] | None = None
    scout: bool = False
    insecure: bool = False
    lease_s: float = 2.0
    blocked_s: float = 10.0
    connect_timeout_s: float = 4.0
    must_connect: bool = True
    counter: FrameCounter | None = None
    sign: Sign | None = field(default=None, repr=False)
    allow: AllowOrigins | None = field(default=None, repr=False)
    tap: Tap | None = field(default=None, repr=False)
    panicked: Callable[[], object] = field(default=lambda: None, repr=False)


def resolved(settings: ZenohSettings) -> ZenohSettings:
    """Validates the endpoints and replaces every listening port 0 by a free one.

    Args:
        settings: As the user gave them.

    Returns:
        Settings whose endpoints can be announced to other nodes.

    Raises:
        InputError: If an endpoint is not `tcp/host:port` or `tls/host:port`, or tls/ lacks its files.
        SecurityError: If it listens beyond loopback without TLS and `insecure` is not set.
    """
    for endpoint in (*settings.listen, *settings.connect):
        protocol, host, _ = split_endpoint(endpoint)
        if protocol == "tls" and settings.tls is None:
            raise InputError(f"endpoint {endpoint!r} needs TLS files. Give the authority, certificate and key.")
        if endpoint in settings.listen and protocol == "tcp" and not settings.insecure and not _is_loopback(host):
            raise SecurityError(
                f"{endpoint!r} would listen beyond this machine without TLS. Use tls/ with certificates of the "
                "fleet's authority, or say --insecure."
            )
    return replace(settings, listen=tuple(_with_port(endpoint) for endpoint in settings.listen))


def split_endpoint(endpoint: str) -> tuple[str, str, int]:
    """Parses an endpoint such as `tls/host:port`.

    Args:
        endpoint: Protocol tcp or tls, a host name, IPv4 or `[IPv6]`, a port.

    Returns:
        Protocol, host, port.

    Raises:
        InputError: If it is written otherwise.
    """
    protocol, _, address = endpoint.partition("/")
    host, _, port = address.rpartition(":")
    if protocol not in ("tcp", "tls") or not host or not port.isdigit() or int(port) > 65535:
        raise InputError(f"{endpoint!r} is not an endpoint. Write it like 'tls/192.168.1.10:7447'.")
    return protocol, host.strip("[]"), int(port)


def zenoh_id(node: NodeId, generation: Generation) -> str:
    """Returns the Zenoh id of a node's incarnation, so that neighbours can be recognised by name.

    Args:
        node: Its name.
        generation: Its incarnation.

    Returns:
        30 hexadecimal digits that do not start with 0.
    """
    return "f" + hashlib.sha256(f"{node}/{generation}".encode()).hexdigest()[:29]


def zenoh_config(settings: ZenohSettings) -> dict[str, Any]:
    """Returns the session's configuration by Zenoh's own keys.

    Batches are small, so that an inference waits for few bytes of the batch before it and a slow link still
    moves a batch within its lease; the queues are ordered by priority. The send buffer is bounded, but holds
    a frame of 64 KiB: Zenoh does not flush TLS, so the tail of a write that found the buffer full waits for
    the next write, at the latest a keep-alive. A queue that stands still for `blocked_s` closes its link, though its
    lease holds: a peer that keeps its link alive and reads nothing would else block whoever sends it something through
    this router, for ever (zenoh#1876). The lease that Zenoh knows is longer, so that `link_sockets.py` ends lost links.

    Args:
        settings: Resolved settings.

    Returns:
        Values by Zenoh's configuration path.
    """
    buffers = {"so_sndbuf": SEND_BUFFER_BYTES}
    config: dict[str, Any] = {
        "id": zenoh_id(settings.node, settings.generation),
        "mode": settings.mode,
        "listen/endpoints": list(settings.listen),
        "connect/endpoints": list(settings.connect),
        "connect/timeout_ms": {"router": -1, "peer": -1, "client": int(settings.connect_timeout_s * 1000)},
        "connect/exit_on_failure": {"router": False, "peer": False, "client": True},
        "connect/retry": {"period_init_ms": 50, "period_max_ms": 1000, "period_increase_factor": 2},
        "scouting/multicast/enabled": settings.scout,
        "scouting/gossip/enabled": settings.scout,
        "scouting/delay": 500 if settings.scout else 0,
        "transport/shared_memory/enabled": False,
        "transport/unicast/open_timeout": _OPEN_TIMEOUT_MS,
        "transport/unicast/max_sessions": 100_000,
        "transport/link/tcp": buffers,
        "transport/link/tls": buffers | _tls_config(settings.tls),
        "transport/link/tx/lease": int(settings.lease_s * 1000) * _ZENOH_LEASES,
        "transport/link/tx/keep_alive": KEEP_ALIVES_PER_LEASE * _ZENOH_LEASES,
        "transport/link/tx/batch_size": BATCH_BYTES,
        "transport/link/tx/queue/size": QUEUE_BATCHES,
        "transport/link/tx/queue/congestion_control/block/wait_before_close": int(settings.blocked_s * 1e6),
        "transport/link/tx/queue/congestion_control/drop/wait_before_drop": _DROP_AFTER_US,
    }
    if settings.access_control is not None:
        config["access_control"] = dict(settings.access_control)
    return config


def _tls_config(tls: TlsFiles | None) -> dict[str, Any]:
    if tls is None:
        return {}
    return {
        "root_ca_certificate": str(tls.authority),
        "enable_mtls": True,
        "listen_certificate": str(tls.certificate),
        "listen_private_key": str(tls.key),
        "connect_certificate": str(tls.certificate),
        "connect_private_key": str(tls.key),
        "verify_name_on_connect": tls.verify_name,
        "close_link_on_expiration": True,
    }


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _with_port(endpoint: str) -> str:
    protocol, host, port = split_endpoint(endpoint)
    if port != 0:
        return endpoint
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        port = probe.getsockname()[1]
    return f"{protocol}/[{host}]:{port}" if family == socket.AF_INET6 else f"{protocol}/{host}:{port}"
