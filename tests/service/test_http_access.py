"""Tokens on an HTTP port: roles by route, guessing is paused, TLS off loopback."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature

from edgewise.cli.infer import client_of
from edgewise.cli.main import run
from edgewise.core.errors import Busy, IdentityRefused, InputError, RemoteError, SecurityError, Unreachable
from edgewise.core.ids import Tier
from edgewise.fleet.node.settings import AgentSettings
from edgewise.fleet.serving.serving_role import security_of
from edgewise.inference.serving_node import local_server
from edgewise.security.authority import create_authority
from edgewise.security.http_port import PortSecurity
from edgewise.security.tokens import ROLES, TokenFile
from edgewise.security.verifier import Verifier
from edgewise.service.client import InferenceClient, error_text
from edgewise.service.connection import HttpLimits
from edgewise.service.http_access import FREE_GUESSES, GuessLimit
from edgewise.service.http_server import HttpServer
from edgewise.service.open_inference import serve_http
from tests.inference.tiny import images, two_exit_graph

GRAPH = two_exit_graph()
MODEL = "/v2/models/tiny"


def with_tokens(folder: Path, check: Callable[[HttpServer, dict[str, str]], Awaitable[None]], **security: Any) -> None:
    """Serves the tiny model; gives the check a token of each role."""
    file = TokenFile(folder / "tokens.json")
    texts = {role: file.create(role, [role]) for role in ROLES}

    async def run() -> None:
        node = await local_server(GRAPH, name="tiny")
        endpoint = await serve_http(node, security=PortSecurity(tokens=file.path, **security))
        try:
            async with asyncio.timeout(60):
                await check(endpoint, texts)
        finally:
            await endpoint.close()
            await node.close()

    asyncio.run(run())


async def status_of(endpoint: HttpServer, method: str, path: str, token: str, body: bytes = b"") -> int:
    async with InferenceClient(endpoint.host, endpoint.port, token=token) as client:
        return (await client.call(method, path, body))[0]


def test_each_route_takes_its_role_and_manage_takes_all(tmp_path: Path) -> None:
    body = b'{"labels": {}}'
    routes = {
        ("POST", f"{MODEL}/infer"): "infer",
        ("POST", f"{MODEL}/versions/1/infer/"): "infer",
        ("POST", f"{MODEL}/feedback"): "feedback",
        ("GET", "/metrics"): "metrics",
        ("GET", f"{MODEL}/stats"): "metrics",
        ("GET", "/v2/models/stats"): "metrics",
    }

    async def check(endpoint: HttpServer, texts: dict[str, str]) -> None:
        for (method, path), role in routes.items():
            for given in ROLES:
                status = await status_of(endpoint, method, path, texts[given], body if method == "POST" else b"")
                assert (status == 403) == (given not in (role, "manage")), (path, given, status)
                assert status != 401
            assert await status_of(endpoint, method, path, "") == 401
        for path in ("/v2/health/live", "/v2/health/ready"):
            assert await status_of(endpoint, "GET", path, "") == 200
        for path in ("/v2", MODEL, f"{MODEL}/config"):
            assert await status_of(endpoint, "GET", path, "") == 401
            assert await status_of(endpoint, "GET", path, texts["feedback"]) == 200
        async with InferenceClient(endpoint.host, endpoint.port, token=texts["infer"]) as client:
            assert (await client.infer("tiny", {"x": images()})).outputs["end"].shape == (1, 10)
            with pytest.raises(RemoteError, match=r"token 'infer' may ask models; this needs the role 'feedback'"):
                await client.feedback("tiny", {"r1": 3})

    with_tokens(tmp_path, check)


def test_a_revoked_token_is_refused_from_the_next_request_on(tmp_path: Path) -> None:
    async def check(endpoint: HttpServer, texts: dict[str, str]) -> None:
        async with InferenceClient(endpoint.host, endpoint.port, token=texts["infer"]) as client:
            await client.infer("tiny", {"x": images()})
            TokenFile(tmp_path / "tokens.json").revoke("infer")
            with pytest.raises(RemoteError, match="this token is unknown, was revoked or has expired"):
                await client.infer("tiny", {"x": images()})

    with_tokens(tmp_path, check)


def test_whoever_guesses_is_not_looked_at_for_a_while_and_counted(tmp_path: Path) -> None:
    async def check(endpoint: HttpServer, texts: dict[str, str]) -> None:
        for guess in range(FREE_GUESSES):
            assert await status_of(endpoint, "GET", MODEL, f"edgewise_guess-{guess}") == 401
        async with InferenceClient(endpoint.host, endpoint.port, token=texts["manage"]) as client:
            status, headers, content = await client.call("GET", MODEL)  # so that guessing tells nothing either
            assert (status, headers["retry-after"]) == (429, "1")
            assert "5 wrong tokens came from this address" in error_text(content)
            while status == 429:
                await asyncio.sleep(0.1)
                status, _, content = await client.call("GET", "/metrics")
        counted = dict(line.split(" ") for line in content.decode().splitlines() if "http_access_total{" in line)
        assert counted['edgewise_http_access_total{end="wrong_token"}'] == str(FREE_GUESSES)
        assert float(counted['edgewise_http_access_total{end="limited"}']) >= 1

    with_tokens(tmp_path, check)


def test_each_wrong_token_more_doubles_the_pause_of_its_address_alone() -> None:
    now = [0.0]
    limit = GuessLimit(lambda: now[0])

    def left(address: str) -> float:
        try:
            limit.check(address)
        except Busy as error:
            return float(error.fields["retry_after_s"])
        return 0.0

    pauses = []
    for _ in range(FREE_GUESSES + 10):
        limit.guessed("2001:db8::1")
        pauses.append(left("2001:db8::ffff"))  # its network
        now[0] += pauses[-1]
    assert pauses == [0, 0, 0, 0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    assert (left("2001:db8:0:1::1"), left("10.0.0.1")) == (0.0, 0.0)
    for number in range(5000):  # addresses are many, what is remembered is not
        limit.guessed(f"10.0.{number // 256}.{number % 256}")
    assert len(limit._wrong) == 4096


def test_off_loopback_a_port_needs_both_tls_and_tokens(tmp_path: Path) -> None:
    tokens = TokenFile(tmp_path / "tokens.json")
    files = create_authority(tmp_path / "ca", "home").issue("edge-1", "edge").write(tmp_path / "edge-1")
    tls = (files / "node.pem", files / "node.key")

    async def refused(security: PortSecurity) -> str:
        with pytest.raises((SecurityError, InputError)) as found:
            await serve_http({}, "0.0.0.0", security=security)
        return found.value.message

    async def run() -> None:
        assert "no TLS" in (said := await refused(PortSecurity()))
        assert "no tokens" in said
        assert "no tokens can be read from" in await refused(PortSecurity(tls, tokens.path))
        tokens.create("cam-7", ["infer"])
        assert "no tokens" in await refused(PortSecurity(tls))
        assert "no TLS" in await refused(PortSecurity(tokens=tokens.path))
        await (await serve_http({}, "0.0.0.0", security=PortSecurity(tls, tokens.path))).close()
        await (await serve_http({}, "0.0.0.0", security=PortSecurity(insecure=True))).close()

    asyncio.run(run())


def test_https_with_a_certificate_of_the_fleet_and_a_token_from_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = create_authority(tmp_path / "ca", "home").issue("edge-1", "edge").write(tmp_path / "edge-1")

    async def check(endpoint: HttpServer, texts: dict[str, str]) -> None:
        token = tmp_path / "infer.token"
        token.write_text(texts["infer"] + "\n")
        assert endpoint.url.startswith("https://127.0.0.1:")
        async with client_of(endpoint.url, token, files / "ca.pem") as client:
            assert (await client.infer("tiny", {"x": images()})).outputs
        monkeypatch.setenv("EDGEWISE_TOKEN_FILE", str(token))
        async with client_of(endpoint.url, None, files / "ca.pem") as client:
            assert (await client.call("GET", MODEL))[0] == 200
        async with client_of(endpoint.url) as client:
            with pytest.raises(Unreachable, match="speaks no TLS that is trusted here"):
                await client.call("GET", MODEL)
        async with InferenceClient(endpoint.host, endpoint.port) as plain:
            with pytest.raises(Unreachable):
                await plain.call("GET", MODEL)

    with_tokens(tmp_path, check, tls=(files / "node.pem", files / "node.key"))
    with pytest.raises(InputError, match=r"a token is not sent to '10\.0\.0\.1' in the clear"):
        client_of("http://10.0.0.1:8000", tmp_path / "infer.token")
    with pytest.raises(InputError, match="no token can be read from"):
        client_of("http://127.0.0.1:8000", tmp_path / "none.token")


def test_a_devices_port_has_a_certificate_that_opens_nothing_in_the_fleet(tmp_path: Path) -> None:
    authority = create_authority(tmp_path / "ca", "home")
    device = authority.issue("device-1", "device").write(tmp_path / "device-1")
    assert run(["ca", "https", "device-1", "--ca", str(tmp_path / "ca"), "--out", str(tmp_path / "port")]) == 0
    assert run(["ca", "https", "device-1", "--ca", str(tmp_path / "ca"), "--out", str(device)]) == 1
    port = tmp_path / "port"
    assert (port / "http.key").stat().st_mode & 0o777 == 0o600
    with pytest.raises((IdentityRefused, InputError)):
        Verifier(authority.ca_pem).learn((port / "http.pem").read_bytes())
    certificate = x509.load_pem_x509_certificate((port / "http.pem").read_bytes())
    with pytest.raises((ValueError, TypeError, InvalidSignature)):
        certificate.verify_directly_issued_by(authority.certificate)

    async def check(endpoint: HttpServer, texts: dict[str, str]) -> None:
        token = tmp_path / "infer.token"
        token.write_text(texts["infer"])
        async with client_of(endpoint.url, token, port / "ca.pem") as client:
            assert (await client.call("GET", MODEL))[0] == 200

    with_tokens(tmp_path, check, tls=(port / "http.pem", port / "http.key"))


@pytest.mark.parametrize(
    ("tier", "http", "own"),
    [("edge", "192.168.1.2:8000", True), ("edge", "127.0.0.1:8000", False), ("device", "192.168.1.2:8000", False)],
)
def test_a_node_shows_its_own_certificate_off_loopback_where_it_may_serve(tier: str, http: str, own: bool) -> None:
    settings = AgentSettings(name="n", tier=Tier(tier), identity="id", state="s", http=http, tokens="tokens.json")
    security = security_of(settings)
    assert security.tls == ((Path("id/node.pem"), Path("id/node.key")) if own else None)
    given = security_of(msgspec.structs.replace(settings, http_certificate="a.pem", http_key="a.key"))
    assert given.tls == (Path("a.pem"), Path("a.key"))
    with pytest.raises(InputError, match="needs both"):
        security_of(msgspec.structs.replace(settings, http_key="a.key"))


def test_a_tls_handshake_that_does_not_come_is_cut_off(tmp_path: Path) -> None:
    files = create_authority(tmp_path / "ca", "home").issue("edge-1", "edge").write(tmp_path / "edge-1")

    async def run() -> None:
        tls = (files / "node.pem", files / "node.key")
        endpoint = await serve_http({}, security=PortSecurity(tls), limits=HttpLimits(head_s=0.3))
        reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
        writer.write(b"\x16\x03\x01")
        async with asyncio.timeout(30):
            assert await reader.read() == b""
        writer.close()
        assert endpoint.num_open == 0
        context = ssl.create_default_context(cafile=files / "ca.pem")
        async with InferenceClient(endpoint.host, endpoint.port, tls=context) as client:
            assert (await client.call("GET", "/v2/health/live"))[0] == 200
        await endpoint.close()

    asyncio.run(run())
