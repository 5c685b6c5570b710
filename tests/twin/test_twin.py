"""The twin test: the simulator under a virtual clock and the fleet's own roles over frames end byte-equal.

Every algorithm of the contract suite, by every protocol that runs in lockstep; what is kept on a client between rounds
lies on its disk here, and in memory there.
"""

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

EDGE_OF = {"a": "edge-1", "b": "edge-1", "c": "edge-2"}
PROTOCOLS = ("synchronous", "hierarchical")
FEEDBACK = {"name": "error_feedback", "codec": {"name": "top_k", "fraction": 0.25}}
CODED = {
    "uplink int8": {"uplink": "int8"},
    "uplink top_k with feedback": {"uplink": FEEDBACK},
    "downlink int8": {"downlink": "int8"},
}


def simulated(task, spec, protocol, rounds, *, seed=7, start=None, engine="sequential", **how):
    edge_of = {ClientId(c): NodeId(e) for c, e in EDGE_OF.items()}
    options = SimulationOptions(engine)
    return simulate_rounds(
        task, make_algorithm(spec), rounds=rounds, seed=seed, protocol=protocol, edge_of=edge_of, initial=start,
        options=options, **how,
    )  # fmt: skip


async def lived(folder: Path, spec, rounds, *, settings=None, **request):
    async with LoopbackFleet(folder, edge_of=EDGE_OF, settings=settings) as fleet:
        return [
            (protocol, await fleet.train(spec, num_rounds=rounds, seed=7, protocol=protocol, **request), fleet.task)
            for protocol in PROTOCOLS
        ]


@pytest.mark.parametrize("coding", sorted(CODED))
def test_coded_links_end_byte_equal(coding, tmp_path):
    spec = {"name": "fed_avg", "local": {"name": "sgd", "learning_rate": 0.1, "epochs": 2}, **CODED[coding]}
    for protocol, status, task in asyncio.run(lived(tmp_path, spec, 4)):
        assert status.model == digest_of(simulated(task, spec, protocol, 4).vector.tobytes()), protocol


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_algorithm_of_the_contract_suite_ends_byte_equal(name, tmp_path):
    spec, settings = EXAMPLES[name].spec.to_dict(), {"batch_norm": name == "fed_bn"}
    for protocol, status, task in asyncio.run(lived(tmp_path, spec, 3, settings=settings)):
        assert status.model == digest_of(simulated(task, spec, protocol, 3).vector.tobytes()), protocol


def test_half_the_clients_and_adam_on_the_server_end_byte_equal(tmp_path):
    spec = {"name": "fed_adam", "select": {"name": "uniform", "cohort_size": 2}}
    for protocol, status, task in asyncio.run(lived(tmp_path, spec, 4)):
        assert status.model == digest_of(simulated(task, spec, protocol, 4).vector.tobytes()), protocol
        assert [r.num_updates for r in status.rounds] == [2, 2, 2, 2]


def test_a_model_too_large_for_a_frame_travels_by_blobs_and_ends_byte_equal(tmp_path):
    settings = {"hidden": INLINE_BYTES // 32}  # 8 · hidden + 3 parameters of 4 bytes: just above the limit of a frame
    spec = {"name": "fed_prox", "mu": 0.1}
    for protocol, status, task in asyncio.run(lived(tmp_path, spec, 2, settings=settings)):
        run = simulated(task, spec, protocol, 2)
        assert run.vector.nbytes > INLINE_BYTES
        assert status.model == digest_of(run.vector.tobytes()), protocol


def test_another_seed_ends_elsewhere(tmp_path):
    for protocol, status, task in asyncio.run(lived(tmp_path, "fed_avg", 1)):
        assert status.model != digest_of(simulated(task, "fed_avg", protocol, 1, seed=8).vector.tobytes())


@pytest.mark.parametrize("engine", ["stacked", "dense"])
def test_another_engine_agrees_within_1e_5_in_each_round(engine):
    task, spec = TinyTask(), "fed_avg"
    start = simulated(task, spec, "synchronous", 3).vector
    one, other = (simulated(task, spec, "synchronous", 1, start=start, engine=e).vector for e in ("sequential", engine))
    assert np.abs(one - other).max() <= 1e-5


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_after_a_dropout_the_survivors_model_is_that_of_a_simulation_with_the_same_survivors(protocol, tmp_path):
    spec, rounds = "fed_avg", 6

    async def run():
        async with LoopbackFleet(tmp_path, edge_of=EDGE_OF) as fleet:

            def cut_after_the_first_round(status):
                if status.rounds:
                    fleet.fabric.cut("device-b")

            how = {"protocol": protocol, "quorum": 2, "on_status": cut_after_the_first_round}
            return await fleet.train(spec, num_rounds=rounds, seed=7, **how)

    status = asyncio.run(run())
    survived = [record.num_updates for record in status.rounds]
    assert survived == sorted(survived, reverse=True)
    assert (survived[0], survived[-1]) == (3, 2)
    twin = simulated(
        TinyTask(), spec, protocol, rounds, quorum=2,
        fails=lambda number, client: client == "b" and survived[number - 1] == 2,
    )  # fmt: skip
    assert status.model == digest_of(twin.vector.tobytes())


def test_gossip_ends_byte_equal(tmp_path):
    async def run():
        async with LoopbackFleet(tmp_path, edge_of=EDGE_OF) as fleet:
            return await fleet.train("fed_avg", num_rounds=3, seed=7, protocol="gossip")

    assert asyncio.run(run()).model == digest_of(simulated(TinyTask(), "fed_avg", "gossip", 3).vector.tobytes())
