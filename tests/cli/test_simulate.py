"""`edgewise simulate` runs a job file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgewise.cli.main import run

JOB = """
[task]
file = "digits"
settings = { clients = 3, sizes = { train = 150 }, model = {} }

[training]
algorithm = { name = "fed_avg", local = { name = "sgd", learning_rate = 0.05 }, uplink = "int8" }
rounds = 1
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    (tmp_path / "job.toml").write_text(JOB)
    return tmp_path / "job.toml"


def test_a_job_runs_and_its_rounds_are_printed(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simulate", str(job), "--out", str(job.with_name("model.onnx"))]) == 0
    shown = capsys.readouterr()
    assert "clients 3   examples 150" in shown.out
    assert "3 of 3" in shown.out
    assert "round 1/1" in shown.err
    assert job.with_name("model.onnx").stat().st_size > 10_000


def test_there_is_one_loss_and_it_has_its_name(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simulate", str(job)]) == 0
    shown = capsys.readouterr()
    assert "digits: fed_avg, synchronous" in shown.out
    assert [shown.out.count("loss"), shown.out.count("training loss")] == [1, 1]
    assert [shown.err.count("loss"), shown.err.count("training loss")] == [1, 1]


@pytest.mark.parametrize("out", ["job.toml/model.onnx", "."])
def test_a_model_that_cannot_be_written_is_said_before_anything_is_trained(
    job: Path, capsys: pytest.CaptureFixture[str], out: str
) -> None:
    assert run(["simulate", str(job), "--out", str(job.parent / out)]) == 1
    shown = capsys.readouterr()
    assert f"error [input.file]: cannot use {str(job.parent / out)!r}" in shown.err
    assert "round 1" not in shown.err


def test_json_is_the_record(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simulate", str(job), "--set", "training.algorithm.uplink=none", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert len(record["rounds"]) == 1
    assert record["outcome"]["kind"] == "completed"
    assert record["rounds"][0]["uplink_bytes"] > 0


def test_a_dry_run_prints_the_resolved_job(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simulate", str(job), "--dry-run", "--set", "training.rounds=7", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["job"]["training"]["rounds"] == 7
    assert "int8" in answer["algorithm"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("training.ronds=3", "training.ronds is not a setting. Did you mean 'rounds'?"),
        ("training.rounds=0", "training.rounds must be"),
        ("training.algorithm.name=fed_awg", "Did you mean 'fed_avg'?"),
        ("task.file=nowhere.py", "does not exist"),
    ],
)
def test_a_mistake_in_the_job_is_named(job: Path, change: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simulate", str(job), "--set", change]) == 1
    assert text in capsys.readouterr().err


def test_a_missing_job_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simulate", str(tmp_path / "job.toml")]) == 1
    assert "does not exist" in capsys.readouterr().err


def test_a_model_without_its_clients_own_tensors_says_so_where_it_is_written(
    job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    algorithm = '{ name = "fed_per", own = ["*.bias"], local = { name = "sgd", learning_rate = 0.05 } }'
    change = ["--set", f"training.algorithm={algorithm}", "--out", str(job.with_name("model.onnx"))]
    assert run(["simulate", str(job), *change]) == 0
    said = f"caution: the model in {job.with_name('model.onnx')} is the part that its clients share; *.bias have"
    assert said in " ".join(capsys.readouterr().out.split())


OWN = """
import numpy as np
import torch

from edgewise.models.task import Examples, Task


class Net(torch.nn.Linear):
    def forward(self, x):
        out = super().forward(x)
        return torch.linalg.eigvals(out.reshape(-1, 2, 2)).real if SERVES == "no" else out


class Own(Task):
    name, input_shape = "own", (3,)

    def model(self): return Net(3, 4)

    def loss(self, outputs, targets): return (outputs ** 2).mean()

    def clients(self): return ["a", "b"]

    def data(self, client): return Examples.of(np.eye(3)[[0, 1, 2, 0]], np.zeros(4, "i4"))
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    text = '[task]\nfile = "own.py"\n[training]\nrounds = 1\nengine = "sequential"\n'
    (tmp_path / "job.toml").write_text(text)
    return tmp_path / "job.toml"


def test_tensors_are_written_under_their_names_and_the_audit_notes_what_was_done_to_the_data(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own.with_name("own.py").write_text('SERVES = "yes"\n' + OWN)
    found = []
    for name in ("w.npz", "w.safetensors"):
        assert run(["simulate", str(own), "--weights", str(own.with_name(name))]) == 0
        found.append(own.with_name(name).read_bytes())
    arrays = np.load(own.with_name("w.npz"))
    assert {name: array.shape for name, array in arrays.items()} == {"weight": (4, 3), "bias": (4,)}
    size = int.from_bytes(found[1][:8], "little")
    start, end = json.loads(found[1][8 : 8 + size])["bias"]["data_offsets"]
    assert np.frombuffer(found[1][8 + size :][start:end], "<f4").tolist() == arrays["bias"].tolist()
    shown = capsys.readouterr().out
    assert "note: every client: inputs are converted from float64 to float32" in shown
    assert "note: every client: 2 of its 4 examples have inputs that another of them has, too" in shown


def test_a_model_that_cannot_be_exported_is_told_before_the_first_round_and_its_weights_are_kept_where_asked(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own.with_name("own.py").write_text('SERVES = "no"\n' + OWN)
    words = ["simulate", str(own), "--out", str(own.with_name("m.onnx"))]
    assert run(words) == 1
    shown = capsys.readouterr()
    assert "cannot be exported to ONNX" in shown.err
    assert "--weights FILE.npz" in shown.err
    assert "round 1" not in shown.err
    assert run([*words, "--weights", str(own.with_name("w.npz"))]) == 1
    shown = capsys.readouterr()
    assert "m.onnx will not be written: the model of task 'own' cannot be exported" in shown.out.replace("\n", " ")
    assert own.with_name("w.npz").exists()
    assert not own.with_name("m.onnx").exists()


def test_a_file_that_weights_cannot_go_to_is_refused_before_anything_is_trained(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (own.parent / "file").touch()
    for name, text in (("w.pt", "End the name in .npz or .safetensors"), ("file/w.npz", "cannot use")):
        assert run(["simulate", str(own), "--weights", str(own.parent / name)]) != 0
        assert text in " ".join(capsys.readouterr().err.split())
