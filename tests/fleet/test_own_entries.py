"""The canary of personal models: what is a client's own is in no frame of a fleet, as no byte of it, in no round."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from edgewise.core.ids import digest_of
from edgewise.core.seeds import Seeds
from edgewise.models.flat import initial_vector
from edgewise.testing import LoopbackFleet
from edgewise.testing.quadratics import run_rounds
from edgewise.training.algorithms import ditto, fed_bn, fed_per
from edgewise.training.local import make_engine, sgd

LOCAL = sgd(0.1, 1, 4)
PERSONAL = {
    "fed_per": (fed_per(own=("3.*",), local=LOCAL), {}, "own"),
    "fed_bn": (fed_bn(local=LOCAL), {"batch_norm": True}, "own"),
    "ditto": (ditto(local=LOCAL), {}, "personal"),
}
ROUNDS = 2


async def lived(folder, algorithm, settings, frames):
    edge_of = {"a": "edge-1", "b": "edge-1", "c": "edge-2"}
    async with LoopbackFleet(folder, edge_of=edge_of, settings=settings, tap=frames.append) as fleet:
        return await fleet.train(algorithm.spec.to_dict(), num_rounds=ROUNDS, seed=7), fleet.task


def runs_of(vector):
    """Every three values that stand beside each other, as bytes; constant ones tell nothing."""
    data = np.ascontiguousarray(vector, "<f4")
    parts = [data[i : i + 3] for i in range(len(data) - 2)]
    return {part.tobytes() for part in parts if len(np.unique(part)) == 3}


@pytest.mark.parametrize("name", PERSONAL)
def test_what_is_own_is_in_no_frame(name, tmp_path):
    algorithm, settings, section = PERSONAL[name]
    frames: list[bytes] = []
    status, task = asyncio.run(lived(tmp_path, algorithm, settings, frames))
    sent = b"".join(bytes(frame) for frame in frames)
    clients, start = {c: task.data(c) for c in task.clients()}, initial_vector(task, Seeds(7))
    for num_rounds in range(1, ROUNDS + 1):
        # The same run without a fleet says what each device keeps.
        ran = run_rounds(algorithm, make_engine("sequential", task), clients, start, num_rounds, seed=7)
        for client, kept in ran.kept.items():
            # Where a unit never fires, what is own is still what was received.
            secrets = runs_of(kept[section]).difference(*(runs_of(model) for model in (start, *ran.models)))
            assert len(secrets) > 5
            assert not [run for run in secrets if run in sent], f"{client} in round {num_rounds}"
    assert status.model == digest_of(ran.model.tobytes())
    assert all(run in sent for run in runs_of(ran.models[0]))  # what is shared is there to be found


def test_a_version_of_such_a_run_says_what_it_lacks(tmp_path):
    async def registered():
        async with LoopbackFleet(tmp_path, edge_of={"a": "edge-1", "b": "edge-1"}) as fleet:
            found = []
            for algorithm in (fed_per(own=("3.*",), local=LOCAL), ditto(local=LOCAL)):
                status = await fleet.train(algorithm.spec.to_dict(), num_rounds=1, register=True)
                found.append(fleet.coordinator.versions.get(status.version))
            return found

    part, whole = asyncio.run(registered())
    assert part.own == ("3.*",)
    assert "is the part that its clients share; 3.* have their first values in it" in part.caution
    assert (whole.own, whole.caution) == ((), "")
