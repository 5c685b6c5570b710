"""Types the commands of docs/tutorials/two-terminals.md, in their order, with free ports; then stops and starts each node."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.live, pytest.mark.slow]

PAGE = Path(__file__).resolve().parents[2] / "docs/tutorials/two-terminals.md"
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
START_S, STOP_S, CAUSE_S = 30.0, 5.0, 5.0
STARTING_S = 3.0
"""Starting the interpreter on a busy machine is not the network's."""
BLACK_HOLE = "192.0.2.1:7447"
DEVICES = ("device-1", "device-2", "device-3")


class Terminals:
    """Processes by name, each with a log file, and what the other commands printed."""

    def __init__(self, folder: Path, ports: dict[str, str]) -> None:
        self.folder = folder
        self.ports = ports
        self.commands: dict[str, str] = {}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.printed = ""
        self.environment = {**os.environ, "PATH": PATH, "EDGEWISE_STATE": str(folder / "state")}

    def start(self, name: str, command: str) -> None:
        with open(self.log(name), "wb") as log:
            self.processes[name] = subprocess.Popen(
                ["bash", "-c", f"exec {command}"], cwd=self.folder, env=self.environment,
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        self.commands[name] = command
        self.wait_for(name, lambda text: re.search("^ready", text, re.M) is not None)

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def wait_for(self, name: str, is_there: Callable[[str], bool]) -> None:
        """Polls a log file until it says something, for at most `START_S`."""
        end = time.monotonic() + START_S
        while not is_there(self.log(name).read_text()):
            assert self.processes[name].poll() is None, self.log(name).read_text()
            assert time.monotonic() < end, f"{name} says only: {self.log(name).read_text()}"
            time.sleep(0.05)

    def times_ready(self, node: str) -> int:
        """How often the coordinator's log says that a node is ready."""
        return self.log("cloud").read_text().count(f"node_ready {{'node': '{node}'")

    def stop(self, name: str, number: int = signal.SIGTERM) -> int:
        self.processes[name].send_signal(number)
        return self.processes[name].wait(timeout=STOP_S)

    def type_in(self, code: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-euc", code], cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip

    def ask(self, words: str) -> Any:
        """A verb's JSON, spoken to the fleet as its operator."""
        done = self.type_in(
            f"edgewise {words} --json --connect tls/127.0.0.1:{self.ports['7447']} --identity nodes/operator"
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def infer(self, port: str) -> Any:
        done = self.type_in(
            f"edgewise infer --source holdout.npz --limit 20 --url http://127.0.0.1:{self.ports[port]} "
            "--model digits --wait '20 s' --json"
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@contextmanager
def black_hole() -> Iterator[str]:
    """An address on this machine at which greetings are not answered: the backlog is full."""
    with ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        yield f"127.0.0.1:{full.getsockname()[1]}"


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return str(server.getsockname()[1])


def blocks(ports: dict[str, str], hole: str) -> list[str]:
    """The page's commands, with free ports in place of its own and a black hole on this machine."""
    text = PAGE.read_text().replace(BLACK_HOLE, hole)
    text = re.sub(r"(?<=127\.0\.0\.1:)(7447|800[123])\b", lambda match: ports[match[0]], text)
    return re.findall(r"```bash\n(.*?)\n```", text, re.S)


REFUSED = [
    block for block in blocks({p: p for p in ("7447", "8001", "8002", "8003")}, BLACK_HOLE) if "# refused" in block
]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminals]:
    """The fleet as the page leaves it after its last block that is not refused."""
    terminals = Terminals(
        tmp_path_factory.mktemp("tutorial"), {port: free_port() for port in ("7447", "8001", "8002", "8003")}
    )
    try:
        for block in blocks(terminals.ports, BLACK_HOLE):
            name = re.match(r"# terminal (\S+)\n(.*)", block, re.S)
            if name is not None:
                terminals.start(name[1], name[2])
            elif not block.startswith("# refused"):
                done = terminals.type_in(block)
                assert done.returncode == 0, f"{block}\n{done.stdout}{done.stderr}"
                terminals.printed += done.stdout + done.stderr
        yield terminals
    finally:
        for process in terminals.processes.values():
            if process.poll() is None:
                process.kill()
            process.wait()


@pytest.mark.parametrize(
    "words",
    [
        "clients 2   examples 760",  # the audit, before anything is trained
        "submitted run=digits-1 task=digits clients=2 rounds=2",
        "digits-1: round 2/2 loss",
        "completed: run digits-1 completed 2 rounds.",
        "version 1: accuracy 0.",
        "round 1 loss",  # --follow
        "levels of edge intelligence",
        "version 1 is in force on 2 devices",
        "answers of 'digits'",
    ],
)
def test_the_page_prints_what_it_promises(fleet: Terminals, words: str) -> None:
    assert words in fleet.printed


def test_nodes_lists_everybody_with_what_they_can_do(fleet: Terminals) -> None:
    for name in ("cloud", *DEVICES):
        if fleet.times_ready(name) == 0 and name != "cloud":
            fleet.wait_for("cloud", lambda text, name=name: f"node_ready {{'node': '{name}'" in text)  # type: ignore[misc]
    rows = {row["node"]: row for row in fleet.ask("nodes")[0]["nodes"]}
    assert set(rows) == {"cloud", *DEVICES}
    assert rows["device-1"]["parent"] == "cloud"
    assert rows["device-1"]["examples"] + rows["device-2"]["examples"] == 760
    assert rows["device-3"]["client"] == ""
    assert all(row["capability"]["flops"] > 0 for row in rows.values())


def test_a_device_that_joined_serves_what_is_in_force(fleet: Terminals) -> None:
    answered = fleet.infer("8003")
    assert answered["requests"] == 20
    assert {a["parameters"]["model_version"] for a in answered["answers"]} == {1}


@pytest.mark.parametrize("block", REFUSED, ids=lambda block: block.split("\n")[0].removeprefix("# refused: "))
def test_a_mistake_is_told_with_its_cause(fleet: Terminals, block: str) -> None:
    code, _, cause = block.split("\n")[0].removeprefix("# refused: ").partition(", ")
    with black_hole() as hole:
        started = time.monotonic()
        typed = re.sub(r"(?<=127\.0\.0\.1:)7447\b", fleet.ports["7447"], block.replace(BLACK_HOLE, hole))
        done = fleet.type_in(typed)
        seconds = time.monotonic() - started
    assert done.returncode == 1
    assert f"error [{code}]" in done.stderr
    assert cause in done.stderr
    assert "Traceback" not in done.stderr
    assert seconds < CAUSE_S + STARTING_S


@pytest.mark.parametrize("name", ["device-1", "device-3"])
def test_a_device_stops_on_ctrl_c_and_starts_again(fleet: Terminals, name: str) -> None:
    seen = fleet.times_ready(name)
    assert fleet.stop(name, signal.SIGINT) == 0
    fleet.start(name, fleet.commands[name])
    fleet.wait_for("cloud", lambda _: fleet.times_ready(name) > seen)
    assert fleet.infer({"device-1": "8001", "device-3": "8003"}[name])["requests"] == 20


def test_the_coordinator_stops_on_sigterm_and_finds_everything_again(fleet: Terminals) -> None:
    assert fleet.stop("cloud") == 0
    assert fleet.infer("8001")["requests"] == 20  # a device answers while the coordinator is away
    fleet.start("cloud", fleet.commands["cloud"])
    for name in DEVICES:
        fleet.wait_for("cloud", lambda _, name=name: fleet.times_ready(name) > 0)  # type: ignore[misc]
    events = fleet.ask("train job.toml --start-version 1 --set training.rounds=1")
    assert [event["event"] for event in events] == ["audit", "submitted", "round", "ended"]
    assert events[-1]["state"] == "completed"
    assert events[-1]["version"] >= 2
    assert events[-1]["gate"]["num_examples"] == 337
