"""`nodes`, `train`, `rollback`, and `plan` and `serve` with `--connect`: what they print, and what a new user does wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import pytest

from edgewise.cli.main import run
from edgewise.cli.nodes import COLUMNS, cautions, cells, changes, show
from edgewise.cli.output import Output
from edgewise.cli.rollback import roll_back
from edgewise.cli.train import TrainingSession, print_end, read_job
from edgewise.core.errors import RemoteError, TaskError
from edgewise.core.ids import ClientId, Generation, NodeId, Revision, RunId, Tier, digest_of
from edgewise.core.seeds import Seeds
from edgewise.fleet.messages import (
    Capability,
    DriftStatus,
    FleetAnswer,
    InForce,
    NodeInfo,
    NodeRow,
    RoundRecord,
    RunStatus,
    Versions,
)
from edgewise.fleet.operator.operator import connect_operator
from edgewise.models.flat import initial_vector, layout_of
from edgewise.models.version import ModelVersion
from edgewise.security.access import access_control
from edgewise.security.authority import Authority, create_authority
from edgewise.testing import LoopbackFleet, tiny_task
from edgewise.transport.zenoh.zenoh_transport import TlsFiles, ZenohSettings, open_zenoh

T = TypeVar("T")
UNEXPORTABLE = """
import numpy as np
import torch
from edgewise.models.task import Examples, Task

class Net(torch.nn.Linear):
    def forward(self, x): return torch.linalg.eigvals(super().forward(x).reshape(-1, 2, 2)).real

class Own(Task):
    name, input_shape = "own", (3,)
    def model(self): return Net(3, 4)
    def loss(self, outputs, targets): return (outputs ** 2).mean()
    def clients(self): return ["a", "b"]
    def data(self, client): return Examples.of(np.eye(3, dtype="f4"), np.zeros(3, "i8"))
"""
NOWHERE = "tls/127.0.0.1:1"
EDGE_OF = {"a": "edge-1", "b": "edge-1"}
JOB = f"""
[task]
file = "{tiny_task.__file__}"
[training]
rounds = 2
protocol = "hierarchical"
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fleet's folder: `operator`, `device-1`, `edge-1`, `expired`; `job.toml`."""
    folder = tmp_path_factory.mktemp("home")
    create_authority(folder / "ca", "home")
    authority = Authority.load(folder / "ca")
    for name, tier in (("operator", Tier.CLOUD), ("device-1", Tier.DEVICE), ("edge-1", Tier.EDGE)):
        authority.issue(name, tier, folder=folder / name)
    authority.issue("late", Tier.CLOUD, days=1e-9, folder=folder / "expired")
    (folder / "job.toml").write_text(JOB)
    return folder


def info(name: str, tier: Tier, parent: str = "", **fields: Any) -> NodeInfo:
    can = Capability(4, 2**33, 12.5e9, 20.0, 3.0, "3.11")
    return NodeInfo(NodeId(name), tier, Generation(1), "PEM", NodeId(parent), can, **fields)


DEVICE = NodeRow(
    info("device-1", Tier.DEVICE, "edge-1", client=ClientId("a"), task="tiny", num_examples=40, http_port=8001), "alive"
)
MODELS = {"digits": InForce(3, Revision(64)), "faces": InForce(4, Revision(129))}
SERVING = msgspec.structs.replace(DEVICE, info=msgspec.structs.replace(DEVICE.info, models=MODELS))
GONE = NodeRow(info("edge-1", Tier.EDGE, "cloud"), "gone", "edge-1 is unreachable: its liveliness token is gone")


# What they print


def test_a_node_is_one_row_and_empty_numbers_stay_empty() -> None:
    row = dict(zip(COLUMNS, cells(DEVICE), strict=True))
    assert (row["GFLOP/s"], row["dilation"], row["examples"], row["http"]) == ("12.5", "20", "40", "8001")
    assert row["models"] == ""


def test_a_node_shows_the_version_of_each_of_its_models() -> None:
    row = dict(zip(COLUMNS, cells(SERVING), strict=True))
    assert row["models"] == "digits 3 (plan 64), faces 4 (plan 129)"


def test_who_is_not_well_and_what_was_refused_is_said_below(capsys: pytest.CaptureFixture[str]) -> None:
    found = DriftStatus(
        "drift: look here.", "answers", False, "labels, 40 held", "", 12.5, 250.0, 100.0, 40, 900, 0.2, 0.05, version=3
    )
    show(
        Output(),
        FleetAnswer(
            (DEVICE, GONE), {"train_order by device-1, a device": 2}, {"digits": found.sentence}, {"digits": found}
        ),
    )
    shown = capsys.readouterr().out
    assert "2 nodes" in shown
    assert "edge-1: edge-1 is unreachable" in shown
    said = "refused 2 times: train_order by device-1, a device\ndigits: drift: look here. Version 3: evidence of harm 12.5 of 100 and of "
    assert (
        said + "change 250 of 100; 900 requests, 40 labels, 20.0% wrong (held-out 5.0%). Waits for labels, 40 held."
        in shown
    )


PART = ModelVersion(3, digest_of(b""), digest_of(b""), "digits", own=("head.*",))
WHOLE = msgspec.structs.replace(PART, number=4, own=())


def test_what_a_version_in_force_lacks_is_said_below_the_nodes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cautions(Versions((PART, WHOLE), {"digits": 4})) == {}
    found = cautions(Versions((PART, WHOLE), {"digits": 3}))
    assert found == {"digits": PART.caution}
    show(Output(), FleetAnswer((SERVING,)), found)
    show(Output(as_json=True), FleetAnswer((SERVING,)), found)
    text, as_json = capsys.readouterr().out.rsplit("\n{", 1)
    assert "digits: version 3 is the part that its clients share; head.* have their first values in it" in text
    assert json.loads("{" + as_json)["caution"] == found


def test_a_trainings_end_says_what_its_version_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    done = RunStatus(RunId("run"), "completed", rounds=(RoundRecord(1, 0.5, 0.9, 2, {}, 1.0),), version=3)
    print_end(Output(), done, PART)
    assert f"caution: {PART.caution}\n" in capsys.readouterr().out
    print_end(Output(), done, WHOLE)
    assert "caution" not in capsys.readouterr().out


def test_json_has_every_node_without_its_certificate(capsys: pytest.CaptureFixture[str]) -> None:
    show(Output(as_json=True), FleetAnswer((DEVICE, GONE)))
    found = json.loads(capsys.readouterr().out)["nodes"]
    assert [row["node"] for row in found] == ["edge-1", "device-1"]  # from the cloud outward
    assert "certificate" not in found[0]


def test_watching_says_what_changed_only() -> None:
    assert changes(FleetAnswer((DEVICE, GONE)), FleetAnswer((SERVING, GONE))) == {"device-1": {"models": MODELS}}


async def on_loopback(folder: Path, work: Callable[[LoopbackFleet], Awaitable[T]]) -> T:
    async with LoopbackFleet(folder, edge_of=EDGE_OF) as fleet:
        return await work(fleet)


def test_a_run_prints_audit_rounds_and_end(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = read_job(home / "job.toml", [])
    asyncio.run(on_loopback(tmp_path, lambda fleet: TrainingSession(Output()).train(fleet.operator, job)))
    shown = capsys.readouterr()
    assert shown.out.startswith("clients 2   examples ")
    assert "submitted run=tiny-1 task=tiny clients=2 rounds=2" in shown.out
    assert "tiny-1: round 2/2 loss" in shown.err
    assert "completed: run tiny-1 completed 2 rounds." in shown.out
    assert "version 1: accuracy unknown, the coordinator has no --holdout; no gate" in shown.out


def test_json_is_one_line_an_event(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = read_job(home / "job.toml", ["training.rounds=1"])
    asyncio.run(on_loopback(tmp_path, lambda fleet: TrainingSession(Output(as_json=True)).train(fleet.operator, job)))
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events] == ["audit", "submitted", "round", "ended"]
    assert events[2]["num_updates"] == 2
    assert (events[3]["state"], events[3]["version"]) == ("completed", 1)


def test_a_run_is_followed_again_and_goes_on_from_a_version(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def work(fleet: LoopbackFleet) -> None:
        await TrainingSession(Output()).train(fleet.operator, read_job(home / "job.toml", []))
        capsys.readouterr()
        await TrainingSession(Output(), "tiny-1").train(fleet.operator, None)
        assert "round 1 loss" in capsys.readouterr().out
        again = {"start_version": 1, "name": "more"}
        ended = await TrainingSession(Output()).train(fleet.operator, read_job(home / "job.toml", []), **again)
        assert (ended.run, ended.version) == ("more", 2)
        assert (await fleet.operator.versions()).versions[1].parent == 1

    asyncio.run(on_loopback(tmp_path, work))


def test_a_cancelled_run_ends_with_its_cause(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def work(fleet: LoopbackFleet) -> None:
        job = read_job(home / "job.toml", ["training.rounds=1000"])
        session = TrainingSession(Output())
        running = asyncio.create_task(session.train(fleet.operator, job))
        async with asyncio.timeout(20):
            await session.submitted.wait()
            await TrainingSession(Output(), session.run).cancel(fleet.operator)
            assert (await running).state == "cancelled"

    asyncio.run(on_loopback(tmp_path, work))
    assert "cancelled: " in capsys.readouterr().out


def test_the_tensors_of_a_live_run_are_written_also_where_it_ends_early(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def work(fleet: LoopbackFleet) -> None:
        job = read_job(home / "job.toml", ["training.rounds=1000"])
        session = TrainingSession(Output(), weights=tmp_path / "w.npz")
        running = asyncio.create_task(session.train(fleet.operator, job))
        async with asyncio.timeout(20):
            await session.submitted.wait()
            async for status in fleet.operator.watch(session.run):
                if len(status.rounds) >= 2:
                    break
            await TrainingSession(Output(), session.run, tmp_path / "again.safetensors").cancel(fleet.operator)
            ended = await running
        layout, trained = layout_of(fleet.task.model()), fleet.model(ended)
        arrays = np.load(tmp_path / "w.npz")
        assert layout.flatten(dict(arrays)).tolist() == trained.tolist()
        assert not np.array_equal(trained, initial_vector(fleet.task, Seeds(0)))
        assert trained.tobytes() in (tmp_path / "again.safetensors").read_bytes()
        assert f"wrote {tmp_path / 'w.npz'}, of round {len(ended.rounds)} of 1000" in capsys.readouterr().out

    asyncio.run(on_loopback(tmp_path / "fleet", work))


def test_a_model_that_cannot_be_exported_trains_live_and_leaves_its_tensors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.py").write_text(UNEXPORTABLE)
    (tmp_path / "job.toml").write_text('[task]\nfile = "own.py"\n[training]\nrounds = 2\n')
    job = read_job(tmp_path / "job.toml", [])

    async def work() -> None:
        async with LoopbackFleet(tmp_path / "fleet", edge_of=EDGE_OF, task_file=tmp_path / "own.py") as fleet:
            with pytest.raises(TaskError, match=r"cannot be exported to ONNX.*--weights FILE\.npz"):
                await TrainingSession(Output()).train(fleet.operator, job)
            session = TrainingSession(Output(as_json=True), weights=tmp_path / "w.npz")
            ended = await session.train(fleet.operator, job)
            assert (ended.state, ended.version, len(ended.rounds)) == ("completed", 0, 2)
            assert np.load(tmp_path / "w.npz")["weight"].tobytes() == fleet.model(ended)[:12].tobytes()

    asyncio.run(work())
    shown = capsys.readouterr().out.splitlines()
    assert not any("IR graph" in line for line in shown)
    events = {event["event"]: event for event in (json.loads(line) for line in shown if line[:1] == "{")}
    assert "cannot be exported" in events["no_version"]["cause"]
    assert events["weights"]["path"] == str(tmp_path / "w.npz")


def test_interrupted_it_says_how_to_look_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert TrainingSession(Output(), "tiny-1").left("--connect tls/h:1 --identity me") == 130
    assert "edgewise train --follow tiny-1 --connect tls/h:1 --identity me" in capsys.readouterr().out


def test_nothing_to_roll_back_to_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RemoteError, match="no model is in force on this fleet"):
        asyncio.run(on_loopback(tmp_path, lambda fleet: roll_back(fleet.operator)))


def test_an_unknown_run_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(RemoteError, match="there is no run 'other'\\. Known: none"):
        asyncio.run(on_loopback(tmp_path, lambda fleet: fleet.operator.status(RunId("other"))))


def test_a_dry_run_prints_the_job_and_asks_nobody(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", str(home / "job.toml"), "--set", "training.rounds=7", "--connect", NOWHERE, "--dry-run"]
    assert run(words) == 0
    assert "training.rounds = 7" in capsys.readouterr().out
    assert run([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["job"]["training"]["rounds"] == 7


# What a new user does wrong


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '[task]\nfile = "digits"\n[training]\nroundz = 3',
            "bad.toml:4 training.roundz is not a setting. Did you mean",
        ),
        ('[task]\nfile = "digits"\n[trainin]\n', "bad.toml:3 trainin is not a setting. Did you mean 'training'?"),
        (
            '[task]\nfile = "digits"\n[training]\nrounds = "three"',
            "training.rounds must be a whole number, got 'three'",
        ),
        ('[task]\nfile = "digits"\n[training]\nrounds = 0', "training.rounds must be at least 1, got 0"),
        (
            '[task]\nfile = "digits"\n[training]\nalgorithm = "fed_avgg"',
            "bad.toml [training] algorithms has no",
        ),
        ('[task]\nfile = "digits"\nsettings = { client = 2 }', "task 'digits' has no setting 'client'. Did you mean"),
        ("[task\n", "bad.toml is not TOML"),
        ('[task]\nfile = "nowhere.py"', "nowhere.py' does not exist"),
        ('[task]\nfile = "."', "is no file. Give the path of a Python file"),
        ('[task]\nfile = "broken.py"', "broken.py' does not import: SyntaxError"),
        ('[task]\nfile = "binary.py"', "binary.py' does not import"),
        ('[task]\nfile = "two.py"', "two.py' has 2 Task classes, needed is exactly one"),
        ('[task]\nfile = "mine.py"\nsettings = { alpa = 1 }', "is not made with settings {'alpa': 1}: TypeError"),
    ],
)
def test_a_job_that_cannot_be_read_says_where(
    tmp_path: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    head = "from edgewise.models.task import Task\n"
    (tmp_path / "broken.py").write_text("class")
    (tmp_path / "binary.py").write_bytes(b"\x00\xff\x80")
    (tmp_path / "two.py").write_text(f"{head}class A(Task): ...\nclass B(Task): ...\n")
    mine = f"{head}class A(Task):\n    model = loss = clients = data = None\n    def __init__(self, alpha=1): ...\n"
    (tmp_path / "mine.py").write_text(mine)
    (tmp_path / "bad.toml").write_text(text)
    assert run(["train", str(tmp_path / "bad.toml"), "--dry-run"]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nodes"], "no fleet given. Say --connect tls/HOST:PORT"),
        (["nodes", "--connect", NOWHERE], "no identity given. Say --identity FOLDER"),
        (["nodes", "--connect", NOWHERE, "--identity", "nowhere"], "no usable certificate in 'nowhere'"),
        (["nodes", "--connect", NOWHERE, "--identity", "{home}/device-1"], "takes orders from tier cloud only"),
        (["nodes", "--connect", NOWHERE, "--identity", "{home}/expired"], "the certificate of 'late' expired"),
        (
            ["nodes", "--connect", "here:1", "--identity", "{home}/operator"],
            "'here:1' is not an endpoint. Write it like",
        ),
        (["nodes", "--connect", NOWHERE, "--identity", "{home}/operator"], "nothing listens on that port"),
        (
            ["nodes", "--connect", NOWHERE, "--identity", "{home}/operator", "--fleet", "x"],
            "is of fleet 'home', --fleet",
        ),
        (["train"], "say what to train, a job file, or which run to look at"),
        (["train", "job.toml", "--follow", "digits-1"], "say what to train, a job file, or which run to look at"),
        (["train", "nofile.toml"], "nofile.toml does not exist"),
        (["train", "{home}/job.toml", "--weights", "w.pt"], "End the name in .npz or .safetensors"),
        (["rollback"], "no fleet given"),
        (["plan"], "give a model and --data with real inputs, or --connect"),
        (["plan", "--connect", NOWHERE, "--stages", "0.1,x"], "'0.1,x' are no stages. Write them like '0.1,0.5,1'"),
        (["plan", "--connect", NOWHERE, "--stages", "0.5,0.1"], "rollout fractions (0.5, 0.1) must rise"),
        (["plan", "--model", "digits"], "--model is for a running fleet"),
        (["plan", "--deploy"], "--deploy is for a running fleet. Say --connect and --identity too."),
        (["plan", "m.onnx", "--connect", NOWHERE], "a fleet plans its own versions"),
        (["plan", "--connect", NOWHERE, "--policy", "nofile.toml"], "nofile.toml does not exist"),
        (["serve", "m.onnx", "--policy", "policy.toml"], "--policy is for a running fleet"),
        (["serve", "m.onnx", "--connect", NOWHERE], "ONNX file 'm.onnx' does not exist"),
        (["serve", "{home}/job.toml", "--connect", NOWHERE], "is not readable as ONNX"),
        (
            ["agent", "--tier", "devic", "--identity", "{home}/device-1"],
            "'devic' is not a tier. Did you mean 'device'?",
        ),
        (
            ["agent", "--tier", "edge", "--identity", "{home}/device-1"],
            "is for 'device-1' (device), this node is to be",
        ),
        (["agent", "--tier", "device", "--identity", "{home}/device-1"], "'device-1' has no parent. Say --connect"),
        (
            ["agent", "--tier", "device", "--identity", "{home}/device-1", "--http", "x"],
            "'x' is not an address to answer on",
        ),
        (
            ["agent", "--tier", "device", "--identity", "{home}/device-1", "--fleet", "x"],
            "is of fleet 'home', --fleet says 'x'",
        ),
        (["agent", "--tier", "device"], "no identity given"),
        (["coordinator", "--identity", "{home}/edge-1"], "is for 'edge-1' (edge), this node is to be 'edge-1' (cloud)"),
    ],
)
def test_a_wrong_word_is_a_sentence_with_its_cure(
    home: Path, tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGEWISE_STATE", str(tmp_path))
    monkeypatch.setattr("edgewise.fleet.agent_process.log_refused_links", lambda: None)  # it is for whole processes
    assert run([word.format(home=home) for word in words]) == 1
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.startswith("error [")
    assert shown.count("\n") == 1


@pytest.mark.parametrize("word", ["--dilation", "--power"])
def test_numbers_out_of_range_are_misuse(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["agent", "--tier", "device", word, "-1"]) == 2
    assert word in capsys.readouterr().err


@pytest.mark.live
def test_an_endpoint_without_a_coordinator_says_so(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEWISE_STATE", str(tmp_path))
    tls = TlsFiles.of(home / "edge-1")
    settings = ZenohSettings(
        node=NodeId("edge-1"),
        generation=Generation(1),
        mode="router",
        listen=("tls/127.0.0.1:0",),
        tls=tls,
        access_control=access_control("home"),
    )

    async def ask() -> int:
        async with await open_zenoh(settings) as router:
            words = ["nodes", "--connect", router.endpoints[0], "--identity", str(home / "operator")]
            return await asyncio.to_thread(run, words)

    assert asyncio.run(ask()) == 1
    assert "answers but no coordinator is in fleet 'home' (seen: no node). Check --fleet" in capsys.readouterr().err


def test_orders_are_taken_from_the_cloud_only(home: Path, tmp_path: Path) -> None:
    async def connect() -> None:
        async with connect_operator(home / "edge-1", NOWHERE, tmp_path, "home"):
            pass

    with pytest.raises(Exception, match="is of 'edge-1' \\(edge\\); a fleet takes orders from tier cloud only"):
        asyncio.run(connect())
