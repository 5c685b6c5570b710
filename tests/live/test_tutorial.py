"""Types the commands of docs/tutorials/two-terminals.md, in their order, with free ports."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.live, pytest.mark.slow]

PAGE = Path(__file__).resolve().parents[2] / "docs/tutorials/two-terminals.md"
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
START_S, STOP_S, CAUSE_S = 30.0, 5.0, 5.0


class Terminals:
    """Processes by name, each with a log file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.commands: dict[str, str] = {}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, command: str) -> None:
        with open(self.log(name), "wb") as log:
            self.processes[name] = subprocess.Popen(
                ["bash", "-c", f"exec {command}"], cwd=self.folder, env={**os.environ, "PATH": PATH},
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        self.commands[name] = command
        self.wait_for(name, lambda text: text.startswith("ready") or "\nready" in text)

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def wait_for(self, name: str, is_there: Callable[[str], bool]) -> None:
        """Polls a log file until it says something, for at most `START_S`."""
        end = time.monotonic() + START_S
        while not is_there(self.log(name).read_text()):
            assert self.processes[name].poll() is None, self.log(name).read_text()
            assert time.monotonic() < end, f"{name} says only: {self.log(name).read_text()}"
            time.sleep(0.05)

    def wait_for_node(self, node: str) -> None:
        """Until the coordinator's log says that the node is ready."""
        self.wait_for("cloud", lambda text: f"node_ready {{'node': '{node}'" in text)

    def stop(self, name: str) -> int:
        self.processes[name].send_signal(signal.SIGINT)
        return self.processes[name].wait(timeout=STOP_S)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminals]:
    """The fleet as the page leaves it after its last `terminal` block."""
    terminals = Terminals(tmp_path_factory.mktemp("tutorial"))
    try:
        for block in blocks():
            name = re.match(r"# terminal (\S+)\n(.*)", block, re.S)
            if name is not None:
                terminals.start(name[1], name[2])
            elif not block.startswith("# refused"):
                assert type_in(terminals.folder, block).returncode == 0
        yield terminals
    finally:
        for process in terminals.processes.values():
            if process.poll() is None:
                process.kill()
            process.wait()


PORTS: dict[str, str] = {}


def blocks() -> list[str]:
    """The page's commands, with free ports in place of 7447 and 7448."""
    for port in ("7447", "7448"):
        if port not in PORTS:
            with socket.create_server(("127.0.0.1", 0)) as server:
                PORTS[port] = str(server.getsockname()[1])
    text = re.sub("7447|7448", lambda match: PORTS[match[0]], PAGE.read_text())
    return re.findall(r"```bash\n(.*?)\n```", text, re.S)


def type_in(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-euc", code], cwd=folder, env={**os.environ, "PATH": PATH}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize("node", ["edge-1", "device-1", "device-2"])
def test_the_coordinator_sees_every_node(fleet: Terminals, node: str) -> None:
    fleet.wait_for_node(node)


@pytest.mark.parametrize(
    "block", [b for b in blocks() if b.startswith("# refused")], ids=lambda b: b.split("\n")[0][2:]
)
def test_a_mistake_is_told_with_its_cause(fleet: Terminals, block: str) -> None:
    started = time.monotonic()
    done = type_in(fleet.folder, block)
    code = block.split("\n")[0].removeprefix("# refused: ")
    assert done.returncode == 1
    assert f"error [{code}]" in done.stderr
    assert time.monotonic() - started < CAUSE_S + 3.0  # starting the interpreter on a busy machine is not the network's


@pytest.mark.parametrize("name", ["device-1", "edge-1", "cloud"])
def test_a_node_stops_on_ctrl_c_and_starts_again(fleet: Terminals, name: str) -> None:
    seen = fleet.log("cloud").read_text().count(f"node_ready {{'node': '{name}'")
    assert fleet.stop(name) == 0
    fleet.start(name, fleet.commands[name])
    if name == "cloud":
        fleet.wait_for_node("edge-1")
    else:
        fleet.wait_for("cloud", lambda text: text.count(f"node_ready {{'node': '{name}'") > seen)
