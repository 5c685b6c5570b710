"""`edgewise serve` and `edgewise infer` as two programs; nothing in either needs torch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from edgewise.cli.main import run
from edgewise.models.graph.graph import Graph
from tests.inference.tiny import two_exit_graph

pytestmark = pytest.mark.live

WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; from edgewise.cli.main import main; main()"


class Served(NamedTuple):
    """A running `edgewise serve`."""

    process: subprocess.Popen[str]
    url: str
    graph: Graph
    data: Path


def start(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WITHOUT_TORCH, *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def first_event(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    found: dict[str, Any] = json.loads(line)
    return found


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    graph = two_exit_graph()
    (folder / "tiny.onnx").write_bytes(graph.model_bytes)
    inputs = np.random.default_rng(0).normal(size=(5, 1, 8, 8)).astype(np.float32)
    np.savez(folder / "data.npz", x=inputs, y=whole_model(graph, inputs).argmax(1))
    process = start("serve", str(folder / "tiny.onnx"), "--port", "0", "--json")
    yield Served(process, first_event(process)["url"], graph, folder / "data.npz")
    process.terminate()
    process.communicate(timeout=5)


def whole_model(graph: Graph, inputs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(graph.model_bytes, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["end"], {"x": inputs})[0])


def test_served_answers_are_the_whole_models(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["infer", "--source", str(served.data), "--url", served.url, "--model", "tiny", "--json"]
    assert run(words) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["requests"], answer["accuracy"]) == (5, 1.0)
    assert 0 < answer["p50_ms"] <= answer["p95_ms"]


def test_several_models_share_an_endpoint_whatever_their_files_are_called(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["my model (1) é", "stats"]
    files = [served.data.with_name(f"{name}.onnx") for name in names]
    for file in files:
        file.write_bytes(served.graph.model_bytes)
    process = start("serve", *map(str, files), "--port", "0", "--json")
    events = [first_event(process) for _ in files]
    assert [event["model"] for event in events] == ["my model (1) é", "stats_"]  # a word of the protocol
    for event in events:
        words = ["infer", "--source", str(served.data), "--url", event["url"], "--model", event["model"], "--json"]
        assert run(words) == 0
        assert json.loads(capsys.readouterr().out)["accuracy"] == 1.0
    process.terminate()
    assert [json.loads(line)["event"] for line in process.communicate(timeout=60)[0].splitlines()] == ["stopped"] * 2


def test_answers_are_printed_for_people(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["infer", "--source", str(served.data), "--url", served.url, "--model", "tiny", "--limit", "2"]) == 0
    shown = capsys.readouterr()
    assert "answers of 'tiny'" in shown.out
    assert "requests 2, accuracy 1" in shown.out
    assert "inference 2/2" in shown.err


def test_feedback_needs_labels_and_a_node_that_learns(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(bare := served.data.with_name("bare.npy"), np.zeros((2, 1, 8, 8), np.float32))
    words = ["--url", served.url, "--model", "tiny", "--feedback"]
    assert run(["infer", "--source", str(bare), *words]) == 1
    assert "has no labels to send. Give an npz with `y`" in capsys.readouterr().err
    assert run(["infer", "--source", str(served.data), *words]) == 1
    assert "keeps no examples to learn from. Serve the model on a device of a fleet." in capsys.readouterr().err


def test_another_models_name_is_refused(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["infer", "--source", str(served.data), "--url", served.url, "--model", "tony"]) == 1
    assert "has no model 'tony'" in capsys.readouterr().err


def test_a_port_in_use_is_said(served: Served) -> None:
    port = served.url.rpartition(":")[2]
    second = start("serve", str(served.data.with_name("tiny.onnx")), "--port", port)
    assert "cannot listen on 127.0.0.1:" in second.communicate(timeout=60)[1]
    assert second.returncode == 1


def test_a_closed_port_is_said(served: Served, capsys: pytest.CaptureFixture[str], free_port: int) -> None:
    assert run(["infer", "--source", str(served.data), "--url", f"http://127.0.0.1:{free_port}"]) == 1
    assert "error [transport.unreachable]" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_within_five_seconds(served: Served, number: signal.Signals) -> None:
    process = start("serve", str(served.data.with_name("tiny.onnx")), "--port", "0", "--json")
    first_event(process)
    os.kill(process.pid, number)
    out, err = process.communicate(timeout=5)
    assert (process.returncode, json.loads(out)["event"], err) == (0, "stopped", "")


@pytest.mark.parametrize("url", ["ftp://x:1", "http://x", "http://x:y"])
def test_an_address_that_is_none_is_refused(served: Served, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["infer", "--source", str(served.data), "--url", url]) == 1
    assert "is not the address of an endpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--host", "0.0.0.0"], "is not a loopback address and there is no TLS"),
        (["--certificate", "x.pem"], "TLS needs both a certificate and its key"),
        (["--input-shape", "x=1,a"], "'x=1,a' is not an input's shape"),
    ],
)
def test_what_cannot_be_served_is_refused(
    served: Served, words: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["serve", str(served.data.with_name("tiny.onnx")), *words]) == 1
    assert text in capsys.readouterr().err
