"""Types the commands of docs/tutorials/two-terminals.md, in their order, with free ports; then stops and starts each node."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from edgewise.fleet.operator.operator import connect_operator
from tests.models.toys import digits_cnn

pytestmark = [pytest.mark.live, pytest.mark.slow]

PAGE = Path(__file__).resolve().parents[2] / "docs/tutorials/two-terminals.md"
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
START_S, STOP_S, CAUSE_S = 60.0, 30.0, 5.0
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

    def start(self, name: str, command: str, says: str = "^ready") -> None:
        with open(self.log(name), "wb") as log:
            self.processes[name] = subprocess.Popen(
                ["bash", "-c", f"exec {command}"], cwd=self.folder, env=self.environment,
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        self.commands[name] = command
        self.wait_for(name, lambda text: re.search(says, text, re.M) is not None)

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

    def to_fleet(self, words: str) -> str:
        """A verb, spoken to the fleet as its operator."""
        return f"edgewise {words} --connect tls/127.0.0.1:{self.ports['7447']} --identity nodes/operator"

    def ask(self, words: str) -> Any:
        """What a verb prints with `--json`, line by line."""
        done = self.type_in(self.to_fleet(words) + " --json")
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def versions(self, model: str = "digits") -> set[int]:
        """Versions of a model that devices serve; one that does not serve it has none."""
        rows = self.ask("nodes")[0]["nodes"]
        return {row["models"].get(model, {"version": 0})["version"] for row in rows if row["tier"] == "device"}

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
        terminals.printed += "".join(terminals.log(name).read_text() for name in DEVICES)
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
        "version 1 of digits is in force on 2 devices",
        "answers of 'digits'",
        ", labels_taken ",
        "drift: for ",
        "completed: run after-drift completed 2 rounds.",
        "completed: run taught completed 1 rounds.",
        "hard examples have labels; training starts from version 1",  # retrain
        "serving: done: version 4 serves; every device that is there has it",
        "hard examples have a label from teacher(reads='device', min_confidence=0.8)",  # what a device says to itself
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


def test_a_run_goes_on_over_a_restart_of_the_coordinator(fleet: Terminals) -> None:
    again = "train job.toml --start-version 1 --set training.rounds=3 --name over-a-restart --json"
    fleet.start("follower", fleet.to_fleet(again), says='"event":"round"')
    assert fleet.stop("cloud") == 0
    assert fleet.infer("8001")["requests"] == 20  # a device answers while the coordinator is away
    fleet.start("cloud", fleet.commands["cloud"])
    assert fleet.processes["follower"].wait(timeout=START_S) == 0, fleet.log("follower").read_text()
    events = [json.loads(line) for line in fleet.log("follower").read_text().splitlines()]
    assert [event["round"] for event in events if event["event"] == "round"] == [1, 2, 3]
    assert events[-1]["state"] == "completed"
    assert events[-1]["gate"]["num_examples"] == 337
    for name in DEVICES:
        fleet.wait_for("cloud", lambda _, name=name: fleet.times_ready(name) > 0)  # type: ignore[misc]


def test_ctrl_c_leaves_the_run_and_says_how_to_look_again(fleet: Terminals) -> None:
    fleet.start("left", fleet.to_fleet("train job.toml --set training.rounds=1 --name left"), says="^submitted")
    assert fleet.stop("left", signal.SIGINT) == 130
    again = re.search("look_again=(.*)", fleet.log("left").read_text())
    assert again is not None
    assert "completed: run left completed 1 rounds." in fleet.type_in(again[1]).stdout


def test_a_second_version_is_deployed_and_rolled_back(fleet: Terminals) -> None:
    number = fleet.ask("train job.toml --start-version 1 --set training.rounds=1")[-1]["version"]
    found = fleet.ask(f"plan --version {number} --budget '300 ms' --deadline '2 s' --deploy")[0]
    assert found["deployed"]["version"] == number
    assert found["measured"] == [found["measured"][0], "cloud"]
    assert fleet.versions() == {number}
    assert fleet.ask("rollback --model digits")[0]["version"] == 1
    assert fleet.versions() == {1}


def test_a_model_of_ones_own_is_served_beside_the_first(fleet: Terminals) -> None:
    (fleet.folder / "own.onnx").write_bytes(digits_cnn())
    registered, found = fleet.ask("serve own.onnx --budget '300 ms'")
    assert (registered["event"], registered["task"]) == ("registered", "own")
    assert fleet.versions("own") == {registered["version"]} == {found["deployed"]["version"]}
    assert fleet.versions() == {1}
    refused = fleet.type_in(fleet.to_fleet("rollback"))
    assert "several models are in force: digits, own. Say which, with --model NAME." in refused.stderr
    alone = fleet.type_in(f"edgewise infer --source holdout.npz --limit 1 --url http://127.0.0.1:{fleet.ports['8001']}")
    assert "several models are served there: digits, own. Say which, with --model NAME." in alone.stderr
    assert fleet.infer("8001")["requests"] == 20


def test_two_terminals_may_share_a_certificate(fleet: Terminals) -> None:
    async def talk() -> None:
        identity, endpoint = fleet.folder / "nodes/operator", f"tls/127.0.0.1:{fleet.ports['7447']}"
        async with connect_operator(identity, endpoint, fleet.folder / "one", "home") as first:
            assert (await first.versions()).in_force["digits"] == 1
            for _ in range(3):
                async with connect_operator(identity, endpoint, fleet.folder / "two", "home") as second:
                    assert (await second.versions()).in_force["digits"] == 1
                    assert (await first.versions()).in_force["digits"] == 1  # overtaken: back under a newer incarnation
                assert (await first.versions()).in_force["digits"] == 1

    asyncio.run(talk())


def test_a_policy_that_cannot_be_met_names_the_limit_and_the_nearest(fleet: Terminals) -> None:
    (fleet.folder / "hard.toml").write_text("max_latency_s = 1e-6\n")
    done = fleet.type_in(fleet.to_fleet("plan --model digits --policy hard.toml --budget '200 ms'"))
    assert done.returncode == 1
    said = (
        "error [plan.infeasible]: no plan meets the policy: max_latency_s = 1e-06 is binding, the nearest feasible is"
    )
    assert said in done.stderr


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"datatype": "BYTES", "data": ["0"] * 64}, "the model takes float32"),
        ({"shape": [1, 1, 4, 4]}, "of shape [1, 1, 4, 4]"),
        ({"name": "image"}, "image"),
    ],
)
def test_wrong_inputs_get_the_protocols_error_object(fleet: Terminals, change: dict[str, Any], words: str) -> None:
    given = {"name": "input", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": [0.0] * 64} | change
    url = f"http://127.0.0.1:{fleet.ports['8001']}/v2/models/digits/infer"
    request = urllib.request.Request(
        url, json.dumps({"inputs": [given]}).encode(), {"Content-Type": "application/json"}
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=10)
    body = json.loads(refused.value.read())
    refused.value.close()
    assert refused.value.code == 400
    assert words in body["error"]
