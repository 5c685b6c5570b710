"""The twin test: the simulator under a virtual clock and the fleet's own roles over frames end byte-equal."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from edgewise.core.ids import ClientId, NodeId, digest_of
from edgewise.fleet.messages import INLINE_BYTES
from edgewise.simulation.simulate import SimulationOptions, simulate_rounds
from edgewise.testing import LoopbackFleet, TinyTask
from edgewise.training.algorithms import make_algorithm
from tests.contracts.test_algorithms import EXAMPLES

HOMES = {"a": "edge-1", "b": "edge-1", "c": "edge-2"}
PROTOCOLS = ("synchronous", "hierarchical")
UPLINKS = {
    "uncoded": "none",
    "int8": "int8",
    "top_k with feedback": {"name": "error_feedback", "codec": {"name": "top_k", "fraction": 0.25}},
}


def simulated(task, words, protocol, rounds, *, seed=7, start=None, engine="sequential"):
    homes = {ClientId(c): NodeId(e) for c, e in HOMES.items()} if protocol == "hierarchical" else None
    algorithm, options = make_algorithm(words), SimulationOptions(engine)
    return simulate_rounds(task, algorithm, rounds=rounds, seed=seed, homes=homes, initial=start, options=options)


async def lived(folder: Path, words, rounds, *, settings=None, **wish):
    async with LoopbackFleet(folder, homes=HOMES, settings=settings) as fleet:
        return [
            (protocol, await fleet.train(words, num_rounds=rounds, seed=7, protocol=protocol, **wish), fleet.task)
            for protocol in PROTOCOLS
        ]


@pytest.mark.parametrize("uplink", sorted(UPLINKS))
def test_the_live_driver_ends_byte_equal_with_the_simulator(uplink, tmp_path):
    words = {"name": "fed_avg", "uplink": UPLINKS[uplink], "local": {"name": "sgd", "learning_rate": 0.1, "epochs": 2}}
    for protocol, status, task in asyncio.run(lived(tmp_path, words, 4)):
        run = simulated(task, words, protocol, 4)
        assert status.model == digest_of(run.vector.tobytes()), protocol


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_algorithm_of_the_contract_suite_ends_byte_equal(name, tmp_path):
    words = EXAMPLES[name].spec.to_dict()
    for protocol, status, task in asyncio.run(lived(tmp_path, words, 3)):
        assert status.model == digest_of(simulated(task, words, protocol, 3).vector.tobytes()), protocol


def test_half_the_clients_and_adam_on_the_server_end_byte_equal(tmp_path):
    words = {"name": "fed_adam", "select": {"name": "uniform", "cohort_size": 2}}
    for protocol, status, task in asyncio.run(lived(tmp_path, words, 4, quorum_fraction=0.5)):
        assert status.model == digest_of(simulated(task, words, protocol, 4).vector.tobytes()), protocol
        assert [r.num_updates for r in status.rounds] == [2, 2, 2, 2]


def test_a_model_too_large_for_a_frame_travels_by_blobs_and_ends_byte_equal(tmp_path):
    settings = {"hidden": INLINE_BYTES // 32}  # 8 · hidden + 3 parameters of 4 bytes: just above the limit of a frame
    words = {"name": "fed_prox", "mu": 0.1}
    for protocol, status, task in asyncio.run(lived(tmp_path, words, 2, settings=settings)):
        run = simulated(task, words, protocol, 2)
        assert run.vector.nbytes > INLINE_BYTES
        assert status.model == digest_of(run.vector.tobytes()), protocol


def test_another_seed_ends_elsewhere(tmp_path):
    words = {"name": "fed_avg"}
    for protocol, status, task in asyncio.run(lived(tmp_path, words, 1)):
        assert status.model != digest_of(simulated(task, words, protocol, 1, seed=8).vector.tobytes())


@pytest.mark.parametrize("engine", ["stacked", "dense"])
def test_another_engine_agrees_within_1e_5_in_each_round(engine):
    task, words = TinyTask(), {"name": "fed_avg"}
    start = simulated(task, words, "synchronous", 3).vector
    one, other = (
        simulated(task, words, "synchronous", 1, start=start, engine=e).vector for e in ("sequential", engine)
    )
    assert np.abs(one - other).max() <= 1e-5


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_after_a_dropout_the_survivors_model_is_that_of_a_simulation_with_the_same_survivors(protocol, tmp_path):
    words, rounds = {"name": "fed_avg"}, 6

    async def run():
        async with LoopbackFleet(tmp_path, homes=HOMES) as fleet:

            def cut_after_the_first_round(status):
                if status.rounds:
                    fleet.fabric.cut("device-b")

            how = {"protocol": protocol, "quorum_fraction": 0.5, "on_status": cut_after_the_first_round}
            return await fleet.train(words, num_rounds=rounds, seed=7, **how)

    status = asyncio.run(run())
    survived = [record.num_updates for record in status.rounds]
    assert survived == sorted(survived, reverse=True)
    assert (survived[0], survived[-1]) == (3, 2)
    homes = {ClientId(c): NodeId(e) for c, e in HOMES.items()} if protocol == "hierarchical" else None
    twin = simulate_rounds(
        TinyTask(), make_algorithm(words), rounds=rounds, seed=7, homes=homes, quorum=2,
        fails=lambda number, client: client == "b" and survived[number - 1] == 2, options=SimulationOptions("sequential"),
    )  # fmt: skip
    assert status.model == digest_of(twin.vector.tobytes())
