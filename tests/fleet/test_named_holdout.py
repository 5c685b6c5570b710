"""Held-out data of several inputs and outputs by name: written, judged at the coordinator, gated; a task's own metrics."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgewise.cli.main import run
from edgewise.fleet.serving.holdout import Holdout, is_right, judged_of, misfit
from edgewise.models.data_check import DataCheck
from edgewise.models.export import export_template
from edgewise.models.flat import vector_of
from edgewise.models.graph.graph import Graph
from edgewise.models.graph.weights import with_weights
from edgewise.models.task import load_task
from edgewise.testing import LoopbackFleet
from edgewise.training.local.evaluate import Evaluator

TASK = '''
import numpy as np
import torch
from torch import nn
from torch.nn import functional
from edgewise.models.task import Examples, Task

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.waves, self.words = nn.Linear(3, 8), nn.Embedding(9, 8)
        self.kind, self.size, self.shade = nn.Linear(8, 3), nn.Linear(8, 1), nn.Linear(8, 2)

    def forward(self, waves, words):
        state = torch.relu(self.waves(waves) + self.words(words).mean(1))
        return {"kind": self.kind(state), "size": self.size(state), "shade": self.shade(state)}

class Named(Task):
    name, input_shape = "named", {"waves": (3,), "words": (2,)}

    def model(self): return Two()

    def loss(self, outputs, targets):
        sizes = functional.mse_loss(outputs["size"], targets["size"])
        return functional.cross_entropy(outputs["kind"], targets["kind"]) + sizes

    def metrics(self, outputs, targets):
        found = outputs["kind"].argmax(-1) == targets["kind"]
        return {"kinds": found.mean(), "error": np.abs(outputs["size"] - targets["size"]).mean()}

    def clients(self): return ["a", "b"]

    def data(self, client): return self.drawn(ord(client), 60)

    def test_data(self): return self.drawn(1, 640)

    def drawn(self, seed, n):
        rng = np.random.default_rng(seed)
        kind, words = rng.integers(0, 3, n), rng.integers(0, 9, (n, 2))
        waves = rng.normal(size=(n, 3)) + 3 * np.eye(3)[kind]
        targets = {"kind": kind, "size": kind[:, None].astype("f4"), "shade": rng.integers(0, 2, n)}
        return Examples.of({"waves": waves, "words": words.astype("i4")}, targets)
'''  # fmt: skip


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "named.py").write_text(TASK)
    assert run(["data", str(tmp_path / "named.py"), "--holdout", str(tmp_path / "held.npz"), "--json"]) == 0
    return tmp_path / "named.py"


def test_rounds_are_judged_by_name_versions_are_gated_and_the_tasks_own_metrics_are_told(
    source: Path, tmp_path: Path
) -> None:
    local = {"name": "adam", "learning_rate": 0.02, "epochs": 3}
    bad = {"name": "sgd", "learning_rate": 1e-9}

    async def scene() -> tuple[Any, Any, Any, bytes]:
        held = str(tmp_path / "held.npz")
        where = {"edge_of": {"a": "", "b": ""}, "holdout": held, "judge": str(source)}
        async with LoopbackFleet(tmp_path / "f", task_file=source, **where) as fleet:
            words = {"num_rounds": 4, "protocol": "synchronous", "register": True}
            good = await fleet.train({"name": "fed_avg", "local": local}, **words)
            await fleet.train({"name": "fed_avg", "local": bad}, **words)
            versions = (await fleet.operator.versions()).versions
            return good, versions, fleet.model(good), await fleet.operator.graph(1)

    good, versions, vector, graph = asyncio.run(scene())
    task, held = load_task(source), Holdout.load(tmp_path / "held.npz")
    calibration, _ = task.held_out()  # type: ignore[misc]
    examples = DataCheck(task).check(calibration).examples
    own = Evaluator(task).metrics(vector, examples)
    assert good.rounds[-1].metrics == pytest.approx({name: own[name] for name in ("kinds", "error")}, abs=1e-5)
    right = is_right(Graph.load(graph), held.calibration_x, held.calibration_y)
    assert good.rounds[-1].accuracy == right.mean() == pytest.approx(versions[0].evidence[0].accuracy)
    assert right.mean() < own["kinds"]  # kind and shade must both be right
    assert versions[0].gate is None
    assert (versions[1].gate.passed, versions[1].gate.reference) == (False, 1)
    assert "the candidate loses" in versions[1].gate.reason


def test_a_regression_alone_is_judged_by_its_own_metrics_only(source: Path, tmp_path: Path) -> None:
    held = Holdout.load(tmp_path / "held.npz")
    sizes = {"size": np.asarray(held.calibration_y["size"])}
    task = load_task(source)
    template, layout = export_template(task)
    graph = Graph.load(with_weights(template, layout, vector_of(task.model())))
    assert judged_of(graph, sizes) == {}
    assert "no output of model 'named' gives scores of classes" in misfit(graph, held.gate_x, sizes, "named")
    assert "are not what model 'named' takes" in misfit(graph, {"waves": held.gate_x["waves"]}, held.gate_y, "named")
