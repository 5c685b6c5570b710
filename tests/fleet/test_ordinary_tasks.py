"""What people bring, on a live fleet: named inputs with embeddings, a client that diverges, code and data that are at fault."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from edgewise.core.errors import DataError, InputError
from edgewise.core.ids import digest_of
from edgewise.models.task import load_task
from edgewise.simulation.simulate import SimulationOptions, simulate_rounds
from edgewise.testing import LoopbackFleet
from edgewise.training.algorithms import make_algorithm

TIMEOUT_S = 40.0
EDGES = {"a": "edge-1", "b": "edge-1", "c": "edge-2"}
TASK = '''
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from edgewise.models.task import Examples, Task


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.words, self.end = nn.GRU(3, 8, batch_first=True), nn.Embedding(9, 8), nn.Linear(8, 3)
        self.words.requires_grad_(False)

    def forward(self, waves, words):
        return {"kind": self.end(self.body(waves)[0][:, -1] + self.words(words).sum(1))}


class Named(Task):
    name, input_shape = "named", {"waves": (5, 3), "words": (2,)}

    def model(self): return Two()

    def loss(self, outputs, targets):
        loss = functional.cross_entropy(outputs["kind"], targets)
        if self.settings.get("fault") == "raises" and len(targets) == 4:
            raise ValueError("four are too few")
        return loss

    def clients(self): return ["a", "b", "c"]

    def data(self, client):
        rng, n = np.random.default_rng(ord(client)), {"a": 12, "b": 4, "c": 9}[client]
        waves = rng.normal(size=(n, 5, 3))
        if client == "b" and self.settings.get("fault") == "nan":
            waves[2] = np.nan
        if client == "b" and self.settings.get("fault") == "diverges":
            self.loss = lambda outputs, targets: outputs["kind"].sum() * 1e38 * 1e38
        return Examples.of({"waves": waves, "words": rng.integers(0, 9, (n, 2)).astype("i4")}, rng.integers(0, 3, n))
'''  # fmt: skip


def trained(folder: Path, words: Any, job: Any = None, **settings: Any) -> Any:
    """Trains on a fleet of three; gives the run's status and what was noted of each client's data."""
    (folder / "task.py").write_text(TASK)

    async def run() -> Any:
        nodes = LoopbackFleet(folder / "nodes", edge_of=EDGES, task_file=folder / "task.py", settings=settings)
        async with asyncio.timeout(TIMEOUT_S), nodes as fleet:
            given = {"num_rounds": 2, "protocol": "hierarchical", **(job or {})}
            status = await fleet.train({"name": "fed_avg", **words}, **given)
            return status, {client: worker.notes for client, worker in fleet.workers.items()}

    return asyncio.run(run())


def test_a_task_of_named_inputs_trains_alike_live_and_simulated_and_its_audit_says_what_was_converted(tmp_path):
    words = {
        "local": {"name": "adam_w", "learning_rate": 0.01, "epochs": 2, "schedule": {"name": "cosine", "steps": 9}}
    }
    status, notes = trained(tmp_path, words)
    options = SimulationOptions(engine="sequential")
    algorithm = make_algorithm({"name": "fed_avg", **words})
    run = simulate_rounds(load_task(tmp_path / "task.py"), algorithm, rounds=2, options=options)
    assert status.model == digest_of(run.vector.tobytes())
    for found in notes.values():
        assert "inputs 'waves' are converted from float64 to float32" in found
        assert "inputs 'words' are converted from int32 to int64" in found


@pytest.mark.parametrize(
    ("protocol", "uplink"),
    [
        ("synchronous", "int8"),
        ("hierarchical", "int8"),
        ("hierarchical", "none"),
        ("gossip", "none"),
        ("gossip", "int8"),
    ],
)
def test_a_client_that_diverges_ends_a_run_whose_quorum_needs_it_with_the_cause(tmp_path, protocol, uplink):
    told = (
        r"(can never have them|needs 3 clients whose work succeeds).*The client has diverged: lower its learning rate"
    )
    with pytest.raises(InputError, match=told):
        trained(tmp_path, {"uplink": uplink}, {"protocol": protocol}, fault="diverges")


def test_code_that_raises_on_one_device_is_its_cause_with_file_and_line(tmp_path):
    status, _ = trained(tmp_path, {}, {"quorum": 2}, fault="raises")
    assert status.state == "completed"
    line = 1 + TASK.splitlines().index('            raise ValueError("four are too few")')
    assert status.rounds[0].missing["b"] == f"its task raised ValueError: four are too few (task.py:{line})"


def test_a_device_with_data_that_cannot_be_trained_on_says_so_as_it_starts(tmp_path):
    with pytest.raises(DataError, match=r"data of client 'b' .*: inputs 'waves' of 1 of 4 examples are not finite"):
        trained(tmp_path, {}, fault="nan")
