"""`simulate`, `plan` and `serve` as a notebook calls them: what they take, and what they say to what they do not."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgewise import (
    EdgewiseError,
    InMemoryTask,
    LocalEndpoint,
    ModelPlan,
    RunEndedEarly,
    fed_avg,
    plan,
    scaffold,
    serve,
    sgd,
    simulate,
    split_examples,
)
from edgewise.simulation.record import SimulatedRound
from tests.inference.tiny import two_exit_graph

RNG = np.random.default_rng(0)
X = RNG.normal(size=(160, 4))  # float64, as numpy gives it
Y = X[:, :3].argmax(1)
PARTS = split_examples(X[:120], Y[:120], 4)
TASK = InMemoryTask(lambda: nn.Linear(4, 3), PARTS, test=(X[120:], Y[120:]), name="tiny")
JOB = """
[task]
file = "mine.py"
[training]
rounds = 3
protocol = "hierarchical"
"""
MINE = """
import numpy as np
from torch import nn
from torch.nn import functional
from edgewise import Examples, Task
class Mine(Task):
    name, input_shape, num_classes = "mine", (4,), 2
    def model(self): return nn.Linear(4, 2)
    def loss(self, outputs, targets): return functional.cross_entropy(outputs, targets)
    def clients(self): return ("a", "b")
    def data(self, client): return Examples.of(np.ones((8, 4), np.float32), np.zeros(8, np.int64))
"""


def test_an_own_module_learns_and_is_itself_again() -> None:
    run = simulate(TASK, fed_avg(local=sgd(0.5, epochs=2)), rounds=15)
    assert run.metrics["accuracy"] > 0.85  # 1/3 is guessing
    with torch.no_grad():
        logits = run.module()(torch.tensor(X[120:], dtype=torch.float32))
    assert float((logits.numpy().argmax(1) == Y[120:]).mean()) == pytest.approx(run.metrics["accuracy"])
    assert [row["round"] for row in run.table()] == list(range(1, 16))
    assert str(run).splitlines()[0].split("  ")[0] == "round"


def test_words_and_parts_of_an_algorithm_are_the_same_run() -> None:
    by_words = simulate(TASK, {"name": "fed_avg", "local": {"name": "sgd", "epochs": 2}}, rounds=2, clients_per_round=2)
    by_parts = simulate(TASK, fed_avg(local=sgd(epochs=2)), rounds=2, clients_per_round=2)
    np.testing.assert_allclose(by_words.vector, by_parts.vector, rtol=0, atol=1e-5)  # engines are chosen by time
    assert by_parts.table()[0]["updates"] == "2 of 2"


def test_a_job_file_is_run_and_what_is_said_here_wins(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "job.toml").write_text(JOB)
    seen: list[SimulatedRound] = []
    run = simulate(tmp_path / "job.toml", scaffold(), rounds=2, on_round=seen.append)
    assert (run.record.protocol, len(seen)) == ("hierarchical", 2)


def test_a_regression_has_its_error_and_a_module_starts_from_its_weights() -> None:
    start = nn.Linear(4, 1)
    targets = (X @ np.array([1.0, -2.0, 0.5, 0.0])).astype(np.float32)
    task = InMemoryTask(start, split_examples(X, targets, 2), test=(X, targets))
    run = simulate(task, rounds=12)
    assert run.metrics["mean_absolute_error"] < 0.1
    assert task.model() is not start
    np.testing.assert_array_equal(task.model().weight.detach(), start.weight.detach())  # type: ignore[union-attr]


def test_a_run_that_ends_early_says_so() -> None:
    task = InMemoryTask(lambda: nn.Linear(4, 3), PARTS, loss=lambda outputs, targets: outputs.sum() * float("nan"))
    with pytest.raises(RunEndedEarly, match=r"client-0 .*has diverged: lower its learning rate") as error:
        simulate(task, rounds=2)
    assert "Closed rounds: 0 of 2; what there is, is the error's `run`, with the untrained model." in str(error.value)
    assert error.value.to_dict()["fields"] == {"kind": "too_few_clients", "rounds": 0}
    run = error.value.run
    assert "no round closed" in str(run)
    assert "has diverged" in run._repr_html_()


def test_batch_norm_is_said_in_a_word_also_beside_parts() -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3))

    for algorithm in (None, fed_avg(), {"name": "scaffold"}):
        run = simulate(InMemoryTask(make, PARTS), algorithm, rounds=1, batch_norm="frozen")
        norm = run.module()[0]  # type: ignore[index]
        assert not norm.running_mean.any()
        assert (norm.weight == 1).all()


GIVEN: dict[str, Any] = {
    **{kind: (X > 0).astype(kind) for kind in ("uint8", "bool", "float16", "int32", "int64")},
    "tensor": torch.tensor(X, requires_grad=True),
    "list": X.tolist(),
}


@pytest.mark.parametrize("kind", GIVEN)
def test_the_usual_kinds_of_arrays_are_taken(kind: str) -> None:
    looked_up = nn.Sequential(nn.Embedding(2, 3), nn.Flatten(), nn.Linear(12, 3))
    model = looked_up if kind in ("int32", "int64") else nn.Linear(4, 3)
    run = simulate(InMemoryTask(model, {"a": (GIVEN[kind], Y.tolist())}), rounds=1)
    assert len(run.record.rounds) == 1


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: simulate(3), "simulate takes a Task or the path of a job file, found a int"),  # type: ignore[arg-type]
        (lambda: simulate(InMemoryTask), "found the class InMemoryTask, not yet made"),  # type: ignore[arg-type]
        (lambda: simulate(TASK, rounds=0), "training.rounds must be at least 1, got 0"),
        (lambda: simulate(TASK, "fed_avgg"), "fed_avg"),
        (lambda: simulate("no.toml"), "no.toml does not exist"),
        (lambda: InMemoryTask(nn.Linear, {}), "a task needs at least one client"),
        (lambda: InMemoryTask(nn.Linear, {"a": (X, Y[:3])}), "client 'a' has inputs [160, 4] and targets [3]"),
        (lambda: InMemoryTask(nn.Linear, {"a": X}), "client 'a' are ndarray, needed is a pair (inputs, targets)"),  # type: ignore[dict-item]
        (lambda: InMemoryTask(nn.Linear, {"a": (X[:2], ["x", "y"])}), "the targets of client 'a' are <U1"),
        (lambda: plan(nn.Linear(3, 3), X), "the model of task 'Linear' does not take inputs of its input_shape, [2, 4]"),
        (lambda: plan(nn.Linear(4, 3), {"a": X}), "a torch module is exported with one input"),
        (lambda: plan(two_exit_graph(), {"imag": X}), "the model has no input 'imag'"),
        (lambda: serve(nn.Linear(4, 3), example=X, port=70000), "there is no port 70000"),
        (lambda: simulate(InMemoryTask(lambda: 3, PARTS)), "the model of task 'task' is int"),  # type: ignore[arg-type, return-value]
        (lambda: split_examples(X, Y[:1], 2), "there are 160 inputs and 1 targets"),
        (lambda: plan(nn.Linear(4, 3), X, policy={"raw_may_rech": "edge"}), "Did you mean 'raw_may_reach'?"),
        (lambda: plan(nn.Linear(4, 3), X, policy={"min_accuracy": "high"}), "min_accuracy must be a number, got 'high'"),
        (lambda: plan(nn.Linear(4, 3), X, fleet={"devices": {"dilatoin": 3}}), "Did you mean 'dilation'?"),
        (lambda: plan(nn.Linear(4, 3), X, policy=3), "policy= takes a table, a TOML file or a Policy"),  # type: ignore[arg-type]
        (lambda: plan(two_exit_graph(), X, budget="0.1 s"), "holds shape [160, 4] for input"),
        (lambda: plan(3, X), "int is no model"),
        (lambda: serve(nn.Linear(4, 3)), "Give example=inputs too"),
        (lambda: serve("no.onnx"), "no.onnx"),
        (lambda: serve(two_exit_graph(), host="0.0.0.0"), "not a loopback address"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(call: Any, sentence: str) -> None:
    before = set(threading.enumerate())
    with pytest.raises(EdgewiseError) as said:
        call()
    assert sentence in said.value.message
    for thread in set(threading.enumerate()) - before:  # a server that could not start leaves none behind
        thread.join(20)
        assert not thread.is_alive(), thread.name


@pytest.fixture(scope="module")
def found() -> ModelPlan:
    policy = {"raw_may_reach": "device"}
    return plan(
        two_exit_graph(), RNG.normal(size=(12, 1, 8, 8)), RNG.integers(0, 10, 12), policy=policy, budget="0.2 s"
    )


def test_a_plan_is_compared_with_what_the_policy_allows(found: ModelPlan) -> None:
    assert found.ways[0] is found.plan
    assert not any(handover.carries_raw for way in found.ways for handover in way.handovers)
    rest = [row["mean ms"] for row in found.table()[1:]]
    assert rest == sorted(rest)
    assert f"recommended: {found.recommendation.reason}" in str(found)
    assert "device: declared as a dilation" in str(found)
    assert [each.variant for each in found.variants] == ["int8"]
    assert any(way.variant == "int8" for way in found.ways)


def test_a_plan_draws_every_way_and_writes_it(found: ModelPlan, tmp_path: Path) -> None:
    drawing = found.plot()
    (axes,) = drawing.figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [way.name for way in found.ways]
    widths = [bar.get_width() for bar in axes.patches]
    np.testing.assert_allclose(widths, [row["mean ms"] for row in found.table()])
    assert drawing.save(tmp_path / "plan.svg").read_text().startswith("<?xml")


@pytest.fixture
def endpoint() -> Iterator[LocalEndpoint]:
    with serve(two_exit_graph(), name="tiny") as opened:
        yield opened


def test_a_served_model_answers_any_client(endpoint: LocalEndpoint) -> None:
    with urllib.request.urlopen(f"{endpoint.url}/v2/models/tiny", timeout=20) as answer:
        assert json.load(answer)["name"] == "tiny"


def test_threads_of_a_program_may_ask_at_once(endpoint: LocalEndpoint) -> None:
    one = RNG.normal(size=(1, 8, 8))
    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda _: endpoint.infer(one), range(12)))
    first = list(replies[0].outputs.values())[-1]
    assert all(np.array_equal(list(reply.outputs.values())[-1], first) for reply in replies)


def test_a_taken_port_is_said_and_a_closed_endpoint_too(endpoint: LocalEndpoint) -> None:
    port = int(endpoint.url.rpartition(":")[2])
    with pytest.raises(EdgewiseError, match=str(port)):
        serve(two_exit_graph(), port=port)
    endpoint.close()
    endpoint.close()
    with pytest.raises(EdgewiseError, match="the endpoint of 'tiny' is closed"):
        endpoint.infer(np.zeros((1, 1, 8, 8)))


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.near, self.far = nn.Linear(3, 2), nn.Embedding(5, 2)

    def forward(self, near, far):
        return {"kind": self.near(near) + self.far(far)}


def test_named_inputs_and_targets_train_from_arrays():
    def loss(outputs, targets):
        return nn.functional.cross_entropy(outputs["kind"], targets["kind"])

    rng = np.random.default_rng(0)
    inputs = {"near": rng.normal(size=(20, 3)), "far": rng.integers(0, 5, 20)}
    held = (inputs, {"kind": (inputs["near"][:, 0] > 0).astype("i4")})
    run = simulate(InMemoryTask(TwoInputs, {"a": held, "b": held}, loss=loss), rounds=3, seed=0)
    losses = [row.client_metrics["loss"] for row in run.record.rounds]
    assert losses[-1] < losses[0]
    with pytest.raises(EdgewiseError, match=r"has several targets, \['kind'\]\. Say how they are learned: loss="):
        InMemoryTask(TwoInputs, {"a": held})
