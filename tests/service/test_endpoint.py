"""What a node's endpoint costs by itself."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from edgewise.core.errors import ConfigError, SecurityError
from edgewise.security.authority import create_authority
from edgewise.security.http_port import PortSecurity
from edgewise.service.endpoint import open_endpoint
from edgewise.service.open_inference import serve_http
from tests.inference.tiny import close, images, model_server, two_exit_graph

GRAPH = two_exit_graph()


def test_an_endpoint_tells_what_it_costs_and_leaves_its_own_requests_alone() -> None:
    async def run() -> None:
        server = model_server(name="tiny")
        endpoint = await open_endpoint(server, "127.0.0.1", 0)
        before = len(asyncio.all_tasks())
        assert 0.0 < await endpoint.overhead_s(GRAPH, gap_s=0.001) < 5.0
        assert server.worker.completed == 0  # nothing was computed
        await asyncio.sleep(0.05)
        assert len(asyncio.all_tasks()) == before
        await endpoint.close()
        await close(server)

    asyncio.run(run())


def test_every_type_of_the_protocol_crosses_our_own_client() -> None:
    from edgewise.core.dtypes import DTYPES
    from edgewise.service.client import _request_body
    from edgewise.service.open_inference_format import read_request

    for name, dtype in DTYPES.items():
        array = images().astype(dtype)
        head, body = _request_body({"x": array}, "r", {})
        read = read_request(head + body, len(head)).inputs["x"]
        assert (str(read.dtype), read.tobytes()) == (name, array.tobytes())


def test_a_port_in_use_is_named() -> None:
    async def run() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            server = model_server()
            with pytest.raises(ConfigError, match=r"cannot listen on 127\.0\.0\.1"):
                await open_endpoint(server, "127.0.0.1", taken.getsockname()[1])
            await close(server)

    asyncio.run(run())


@pytest.mark.parametrize("pair", [("none.pem", "none.key"), ("junk", "junk"), ("one.pem", "two.key")])
def test_files_that_no_tls_can_be_served_with_are_named(pair: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "junk").write_text("junk")
    authority = create_authority(tmp_path / "ca", "home")
    for name in ("one", "two"):
        folder = authority.issue(name, "edge").write(tmp_path / name)
        (folder / "node.pem").rename(tmp_path / f"{name}.pem")
        (folder / "node.key").rename(tmp_path / f"{name}.key")

    async def run() -> None:
        with pytest.raises(
            ConfigError, match=rf"certificate '.*{pair[0]}' and the key '.*{pair[1]}': .*belong together"
        ):
            await serve_http({}, security=PortSecurity((tmp_path / pair[0], tmp_path / pair[1])))

    asyncio.run(run())


def test_beyond_loopback_only_where_that_is_said() -> None:
    async def run() -> None:
        with pytest.raises(SecurityError, match=r"0\.0\.0\.0:0 is not a loopback address .* or say --insecure"):
            await open_endpoint({}, "0.0.0.0", 0)
        await (await open_endpoint({}, "0.0.0.0", 0, security=PortSecurity(insecure=True))).close()

    asyncio.run(run())
