"""Frozen tensors and those that stay on a client are in no update, in a simulation and in a fleet; words that fit no model."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from edgewise.core.config import load_toml
from edgewise.core.errors import ConfigError, EdgewiseError, InputError, MisfitError
from edgewise.core.ids import digest_of
from edgewise.models.flat import layout_of
from edgewise.models.task import load_task
from edgewise.simulation.simulate import SimulationOptions, simulate, simulate_rounds
from edgewise.testing import LoopbackFleet
from edgewise.training.algorithms import make_algorithm
from edgewise.training.batch_norm import with_batch_norm
from edgewise.training.job import JobFile, check_job
from edgewise.training.local import own_patterns

TASK = """
import numpy as np
from torch import nn
from torch.nn import functional
from edgewise.models.task import Examples, Task

class Backbone(Task):
    "A wide layer that is frozen, batch norm, and a narrow head."

    name, input_shape = "backbone", (64,)

    def model(self):
        wide, norm = nn.Linear(64, 64), nn.BatchNorm1d(64)
        if self.settings.get("plain"):
            return nn.Sequential(wide, nn.Linear(64, 3))
        wide.requires_grad_(not self.settings.get("frozen", True))
        return nn.Sequential(wide, norm, nn.ReLU(), nn.Linear(64, 3))

    def loss(self, outputs, targets):
        return functional.cross_entropy(outputs, targets)

    def clients(self):
        return ["a", "b"]

    def data(self, client):
        rng = np.random.default_rng(self.clients().index(client))
        return Examples.of(rng.normal(size=(20, 64)).astype("f4"), rng.integers(0, 3, 20))
"""
WIDE, NORM, HEAD = 64 * 64 + 64, 4 * 64, 64 * 3 + 3
OPTIONS = SimulationOptions(engine="sequential")
LOCAL = {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9, "weight_decay": 0.1, "batch_size": 10}
ONLY = {"name": "local_work", "rules": [{"name": "only", "rule": "descent", "trains": ["3.*"]}]}
FEEDBACK = {"name": "error_feedback", "codec": {"name": "top_k", "fraction": 0.5}}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "backbone.py").write_text(TASK)
    return tmp_path / "backbone.py"


@pytest.mark.parametrize(
    ("words", "batch_norm", "sent"),
    [
        ({"name": "fed_avg", "local": LOCAL}, "averaged", NORM + HEAD),
        ({"name": "fed_avg", "local": LOCAL}, "local", HEAD),
        ({"name": "fed_avg", "local": LOCAL}, "frozen", HEAD),
        ({"name": "fed_avg", "local": ONLY}, "averaged", HEAD),
        ({"name": "fed_avg", "local": ONLY}, "frozen", HEAD),
        ({"name": "scaffold"}, "frozen", 2 * HEAD),
        ({"name": "fed_avg", "local": LOCAL, "uplink": FEEDBACK}, "frozen", HEAD),
    ],
    ids=[
        "frozen",
        "and batch norm local",
        "and batch norm frozen",
        "only",
        "only and batch norm frozen",
        "scaffold",
        "error feedback",
    ],
)
def test_what_does_not_move_is_in_no_update_and_a_fleet_ends_as_the_simulation(
    source: Path, tmp_path: Path, words: dict[str, object], batch_norm: str, sent: int
) -> None:
    algorithm, task = with_batch_norm(make_algorithm(words), batch_norm), load_task(source)
    layout = layout_of(task.model())

    async def live() -> tuple[str, list[int]]:
        async with LoopbackFleet(tmp_path / "fleet", edge_of={"a": "", "b": ""}, task_file=source) as fleet:
            status = await fleet.train(algorithm.spec.to_dict(), num_rounds=3, protocol="synchronous", seed=2)
            return status.model, [row.uplink_bytes for row in status.rounds]

    run = simulate_rounds(task, algorithm, rounds=3, seed=2, options=OPTIONS)
    digest, uplink = asyncio.run(live())
    assert digest == digest_of(run.vector.tobytes())
    first = simulate_rounds(task, algorithm, rounds=1, seed=2, options=OPTIONS)
    moved = layout.unflatten(run.vector - first.vector)
    assert not np.any(moved["0.weight"])
    assert np.any(moved["3.weight"])
    beside = 400  # headers of a bundle
    assert all(row.uplink_bytes <= 2 * (4 * sent + beside) < 4 * WIDE for row in run.record.rounds)
    assert uplink == [row.uplink_bytes for row in run.record.rounds]


def job(source: Path, training: str, settings: str = "") -> JobFile:
    path = source.with_name("job.toml")
    path.write_text(f'[task]\nfile = "backbone.py"\nsettings = {{ {settings} }}\n[training]\nrounds = 1\n{training}\n')
    return check_job(load_toml(path, JobFile))


@pytest.mark.parametrize(
    ("training", "error", "text"),
    [
        (
            'batch_norm = "frosen"',
            ConfigError,
            r"batch_norm is one of averaged, local, frozen, found 'frosen'\. Did you",
        ),
        ('batch_norm = "frozen"\nalgorithm = "fed_bn"', MisfitError, "clients keep batch_norm to themselves already"),
        ('batch_norm = "local"\nalgorithm = "dane"', MisfitError, "stays local where a client trains one model"),
        ('batch_norm = "frozen"', InputError, r"no layer of the model keeps running statistics \(a running_mean\)"),
        ('algorithm = { name = "fed_per", own = ["hed.*"] }', InputError, r"no tensor of the model matches 'hed\.\*'"),
    ],
)
def test_words_that_fit_no_model_or_algorithm_are_refused_before_the_first_round(
    source: Path, training: str, error: type[EdgewiseError], text: str
) -> None:
    with pytest.raises(error, match=text):
        simulate(job(source, training, "plain = true"), folder=str(source.parent), options=OPTIONS)


def test_a_fleet_refuses_them_when_they_are_submitted(source: Path, tmp_path: Path) -> None:
    words = with_batch_norm(make_algorithm("fed_avg"), "frozen").spec.to_dict()

    async def submitted() -> None:
        fleet_of = {"a": "", "b": ""}
        async with LoopbackFleet(tmp_path / "f", edge_of=fleet_of, task_file=source, settings={"plain": True}) as fleet:
            await fleet.train(words, num_rounds=1, protocol="synchronous")

    with pytest.raises(EdgewiseError, match="batch norm is named, and no layer of the model keeps running statistics"):
        asyncio.run(submitted())


def test_what_rules_inside_each_other_keep_and_leave_out_is_said_by_the_outermost(source: Path) -> None:
    """A personal part inside `only` was not seen: its version would have served without the caution."""
    inner = {"name": "personal", "rule": "descent", "own": ["batch_norm"]}
    words = {"name": "local_work", "rules": [{"name": "only", "rule": inner, "trains": ["3.*", "1.*"]}]}
    work = make_algorithm({"name": "fed_avg", "local": words}).exchanges[0].local
    assert own_patterns(work) == ("batch_norm",)
    layout = layout_of(load_task(source, frozen=False).model())
    assert int(work.rules[0].unsent(layout).sum()) == WIDE + NORM
