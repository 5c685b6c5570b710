"""Algorithms of several exchanges, letters, real weights and coded models run by either protocol, to the same bytes."""

from __future__ import annotations

import numpy as np
import pytest

from edgewise.codecs import int8
from edgewise.core.errors import MisfitError
from edgewise.simulation.simulate import SimulationOptions, simulate_rounds
from edgewise.testing import TinyTask
from edgewise.training.aggregate import coordinate_median, trimmed_mean, weighted_mean
from edgewise.training.algorithms import dane, fed_avg, zeroth_order
from edgewise.training.local import sgd
from edgewise.training.select import power_of_choice, uniform

CLIENTS = tuple("abcdef")
EDGES = {client: f"edge-{index % 2}" for index, client in enumerate(CLIENTS)}
ALGORITHMS = {
    "dane": dane(mu=0.1, local=sgd(0.1, batch_size=0, epochs=5)),
    "zeroth order": zeroth_order(learning_rate=0.02),
    "zeroth order, two of six": zeroth_order(learning_rate=0.02, select=uniform(2)),
    "power of choice": fed_avg(select=power_of_choice(2, 4)),
    "weights that are real": fed_avg(aggregate=weighted_mean("loss")),
    "a sum over all clients": fed_avg(select=uniform(3), aggregate=weighted_mean("uniform", divisor="all")),
    "a coded model on its way down": fed_avg(downlink=int8()),
    "a sum on disk": fed_avg(aggregate=weighted_mean(disk_entries=1)),
}


def run(algorithm, edge_of=None, rounds=6):
    task = TinyTask(clients=CLIENTS)
    return simulate_rounds(
        task, algorithm, rounds=rounds, seed=3, edge_of=edge_of, options=SimulationOptions(engine="sequential")
    ).vector


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_edge_changes_no_bit(name):
    found = run(ALGORITHMS[name])
    assert found.tobytes() == run(ALGORITHMS[name], EDGES).tobytes()
    assert np.isfinite(found).all()


def test_a_sum_on_disk_is_the_sum_in_memory():
    assert run(ALGORITHMS["a sum on disk"]).tobytes() == run(fed_avg()).tobytes()


@pytest.mark.parametrize("aggregator", [coordinate_median(), trimmed_mean(0.2)], ids=lambda a: str(a.spec))
def test_what_reads_every_update_runs_without_edges_only(aggregator):
    algorithm = fed_avg(aggregate=aggregator)
    assert np.isfinite(run(algorithm)).all()
    with pytest.raises(MisfitError, match="under hierarchical\\(\\) edges fold them first"):
        run(algorithm, EDGES)


def test_zeroth_order_sends_a_number_each_way_once_a_device_holds_the_model():
    run = simulate_rounds(TinyTask(clients=CLIENTS), zeroth_order(learning_rate=0.02), rounds=5, seed=3)
    first, *later = run.record.rounds
    assert first.downlink_bytes > 4 * run.vector.size
    for record in later:
        assert record.uplink_bytes <= 64 * len(CLIENTS)
        assert record.downlink_bytes == 8 * len(CLIENTS)  # the round's number and the slope of the last one
