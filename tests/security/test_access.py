"""Access rules and certificates against real Zenoh sessions: one cloud router, one edge router, devices as clients."""

from __future__ import annotations

import json
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import zenoh

from edgewise.core.ids import Tier
from edgewise.security import Authority, create_authority
from edgewise.security.access import access_control, tls_config

pytestmark = pytest.mark.live
DEADLINE_S = 5.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def configuration(folder: Path, mode: str, listen: str = "", connect: str = "") -> zenoh.Config:
    config = zenoh.Config()
    values: dict[str, Any] = {
        "mode": mode,
        "listen/endpoints": [listen] if listen else [],
        "connect/endpoints": [connect] if connect else [],
        "scouting/multicast/enabled": False,
        "scouting/gossip/enabled": False,
        "transport/shared_memory/enabled": False,
        "transport/link/tls": tls_config(folder),
    }
    if mode == "router":
        values["access_control"] = access_control("main")
    else:
        values |= {"connect/timeout_ms": 1500, "connect/exit_on_failure": True}
    for key, value in values.items():
        config.insert_json5(key, json.dumps(value))
    return config


@dataclass
class Fabric:
    """Routers of a cloud and an edge, and whoever dials in."""

    folder: Path
    authority: Authority
    cloud_port: int = field(default_factory=free_port)
    edge_port: int = field(default_factory=free_port)
    sessions: list[Any] = field(default_factory=list)

    def open(self, node: str, tier: Tier, **config: str) -> Any:
        folder = self.authority.issue(node, tier).write(self.folder / node)
        session = zenoh.open(configuration(folder, "client" if tier is Tier.DEVICE else "router", **config))
        self.sessions.append(session)
        return session

    def device(self, node: str) -> Any:
        return self.open(node, Tier.DEVICE, connect=f"tls/127.0.0.1:{self.edge_port}")


@pytest.fixture(scope="module")
def fabric(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fabric]:
    folder = tmp_path_factory.mktemp("fabric")
    made = Fabric(folder, create_authority(folder / "ca", "main"))
    cloud = f"tls/127.0.0.1:{made.cloud_port}"
    made.open("cloud", Tier.CLOUD, listen=cloud)
    made.open("edge-1", Tier.EDGE, listen=f"tls/127.0.0.1:{made.edge_port}", connect=cloud)
    made.device("device-1")
    made.device("device-2")
    yield made
    for session in reversed(made.sessions):
        session.close()


def serve(session: Any, key: str, answer: str, heard: Callable[[], None] = lambda: None) -> Any:
    def reply(query: Any) -> None:
        heard()
        query.reply(query.key_expr, answer.encode())

    return session.declare_queryable(key, reply)


def ask(session: Any, key: str) -> list[str]:
    return [reply.ok.payload.to_string() for reply in session.get(key, timeout=DEADLINE_S) if reply.ok]


def ask_until_answered(session: Any, key: str) -> list[str]:
    """Declarations travel while we ask; each try ends by itself when nobody is found."""
    end = time.monotonic() + DEADLINE_S
    found: list[str] = []
    while not found and time.monotonic() < end:
        found = ask(session, key)
    return found


def test_every_tier_reaches_what_it_needs(fabric: Fabric) -> None:
    cloud, edge, device, _ = fabric.sessions[:4]
    with (
        serve(device, "ew/main/node/device-1/control", "device"),
        serve(edge, "ew/main/node/edge-1/report", "edge"),
        serve(cloud, "ew/main/node/cloud/report", "cloud"),
    ):
        assert ask_until_answered(cloud, "ew/main/node/device-1/control") == ["device"]
        assert ask_until_answered(device, "ew/main/node/edge-1/report") == ["edge"]
        assert ask_until_answered(device, "ew/main/node/cloud/report") == ["cloud"]


@pytest.mark.parametrize("key", ["edge-1/control", "cloud/report", "edge-7/info", "device-1/report", "device-1/stage"])
def test_a_device_cannot_serve_another_tiers_keys(fabric: Fabric, key: str) -> None:
    cloud, _, honest, device = fabric.sessions[:4]
    with (
        serve(device, f"ew/main/node/{key}", "forged"),
        serve(device, "ew/main/node/**", "forged"),
        serve(device, "ew/main/node/device-2/info", "declared after the forged one"),
    ):
        assert ask_until_answered(cloud, "ew/main/node/device-2/info")[:1] != []
        assert ask(cloud, f"ew/main/node/{key}") == []
        assert ask(honest, f"ew/main/node/{key}") == []


def test_a_device_with_a_wildcard_hears_nothing_asked_of_an_edge(fabric: Fabric) -> None:
    cloud, edge, honest, device = fabric.sessions[:4]
    heard: list[str] = []
    with (
        serve(device, "ew/main/node/*/control", "forged", lambda: heard.append("overheard")),
        serve(edge, "ew/main/node/edge-1/control", "edge"),
    ):
        assert ask_until_answered(cloud, "ew/main/node/edge-1/control") == ["edge"]
        assert ask_until_answered(honest, "ew/main/node/edge-1/control") == ["edge"]
    assert heard == []


def test_a_device_publishes_under_no_other_tiers_name(fabric: Fabric) -> None:
    cloud, _, _, device = fabric.sessions[:4]
    heard: list[str] = []
    arrived = threading.Event()

    def hear(sample: Any) -> None:
        heard.append(str(sample.key_expr))
        arrived.set()

    with cloud.declare_subscriber("ew/main/**", hear):
        for _ in range(500):  # until the subscription has reached the device's edge
            for key in ("event/edge-1", "event/cloud", "node/device-1/control", "event/device-2"):
                device.put(f"ew/main/{key}", b"")
            if arrived.wait(0.01):
                break
    assert set(heard) == {"ew/main/event/device-2"}


def test_a_device_holds_no_token_of_another_tier(fabric: Fabric) -> None:
    cloud, edge, _, device = fabric.sessions[:4]
    heard: queue.Queue[str] = queue.Queue()
    with (
        cloud.liveliness().declare_subscriber("ew/main/alive/**", lambda sample: heard.put(str(sample.key_expr))),
        device.liveliness().declare_token("ew/main/alive/edge/edge-1/6"),
        device.liveliness().declare_token("ew/main/alive/cloud/cloud/6"),
        device.liveliness().declare_token("ew/main/alive/device/device-2/6"),
    ):
        assert heard.get(timeout=DEADLINE_S) == "ew/main/alive/device/device-2/6"
        with edge.liveliness().declare_token("ew/main/alive/edge/edge-1/5"):
            assert heard.get(timeout=DEADLINE_S) == "ew/main/alive/edge/edge-1/5"


def test_a_ninth_device_joins_while_the_routers_run(fabric: Fabric) -> None:
    cloud = fabric.sessions[0]
    ninth = fabric.device("device-9")
    with serve(ninth, "ew/main/node/device-9/control", "ninth"):
        assert ask_until_answered(cloud, "ew/main/node/device-9/control") == ["ninth"]


@pytest.fixture
def strangers(fabric: Fabric, tmp_path: Path) -> dict[str, Path]:
    """Folders of those who must not get in; each knows our authority, so that it is we who refuse."""
    folders = {
        "wrong authority": create_authority(tmp_path / "ca", "main").issue("device-1", Tier.DEVICE),
        "expired": fabric.authority.issue("device-8", Tier.DEVICE, days=1e-9),
    }
    made = {}
    for name, files in folders.items():
        made[name] = files.write(tmp_path / name)
        (made[name] / "ca.pem").write_bytes(fabric.authority.ca_pem)
    return made


@pytest.mark.parametrize("who", ["wrong authority", "expired", "no certificate"])
def test_a_stranger_is_refused_and_nobody_is_disturbed(fabric: Fabric, strangers: dict[str, Path], who: str) -> None:
    cloud, _, device = fabric.sessions[:3]
    config = configuration(
        strangers.get(who, fabric.folder / "device-1"), "client", connect=f"tls/127.0.0.1:{fabric.edge_port}"
    )
    if who == "no certificate":
        only_ca = {"root_ca_certificate": str(fabric.folder / "device-1" / "ca.pem")}
        config.insert_json5("transport/link/tls", json.dumps(only_ca))
    with serve(device, "ew/main/node/device-1/info", "undisturbed"):
        with pytest.raises(zenoh.ZError, match="Unable to connect"):
            zenoh.open(config)
        assert ask_until_answered(cloud, "ew/main/node/device-1/info") == ["undisturbed"]


ROUTER = """
import sys, zenoh
from edgewise.security.access import log_refused_links
log_refused_links()
session = zenoh.open(zenoh.Config.from_file(sys.argv[1]))
print("open", flush=True)
sys.stdin.readline()
session.close()
print("closed")
"""


def test_a_router_logs_why_it_refused(fabric: Fabric, strangers: dict[str, Path], tmp_path: Path) -> None:
    port = free_port()
    folder = fabric.authority.issue("edge-2", Tier.EDGE).write(tmp_path / "edge-2")
    (tmp_path / "edge-2.json5").write_text(str(configuration(folder, "router", listen=f"tls/127.0.0.1:{port}")))
    words = [sys.executable, "-c", ROUTER, str(tmp_path / "edge-2.json5")]
    env = {name: value for name, value in os.environ.items() if name != "RUST_LOG"}
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=env) as router:
        assert router.stdout is not None
        assert router.stdout.readline() == "open\n"
        for folder in strangers.values():
            with pytest.raises(zenoh.ZError, match="Unable to connect"):
                zenoh.open(configuration(folder, "client", connect=f"tls/127.0.0.1:{port}"))
        answers, log = router.communicate("\n", timeout=30)
    assert answers == "closed\n"  # what a program reads is not mixed with the log
    assert "invalid peer certificate: BadSignature" in log
    assert "certificate expired" in log


def test_a_device_cannot_pose_as_a_router(fabric: Fabric) -> None:
    port = free_port()
    posing = zenoh.open(configuration(fabric.folder / "device-2", "router", listen=f"tls/127.0.0.1:{port}"))
    try:
        with pytest.raises(zenoh.ZError, match="Unable to connect"):
            zenoh.open(configuration(fabric.folder / "device-1", "client", connect=f"tls/127.0.0.1:{port}"))
    finally:
        posing.close()


def test_tls_names_the_files_of_the_nodes_folder() -> None:
    section = tls_config("/state/device-1")
    assert section["enable_mtls"] is True
    assert section["connect_private_key"] == "/state/device-1/node.key"


def test_importing_security_starts_no_fabric() -> None:
    code = "import sys, edgewise.security.access; sys.exit('zenoh' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
