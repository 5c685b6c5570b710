from dataclasses import replace

import numpy as np
import pytest

from edgewise.core.errors import DataError, InputError
from edgewise.core.ids import ClientId
from edgewise.core.seeds import Seeds
from edgewise.models.flat import initial_vector
from edgewise.models.task import Examples
from edgewise.simulation.costs import VirtualCosts
from edgewise.simulation.simulate import SimulationOptions, drawn_dropouts, edge_of_clients, simulate, simulate_rounds
from edgewise.training.algorithms import make_algorithm
from edgewise.training.client_update import client_seeds
from edgewise.training.job import JobFile, TaskTable, TrainingTable
from edgewise.training.local import make_engine
from edgewise.training.protocols.messages import OutcomeKind

PINNED = SimulationOptions("sequential")
FED_AVG = make_algorithm({"name": "fed_avg", "local": {"name": "sgd", "epochs": 2, "batch_size": 8}})


def test_one_client_is_plain_sgd(task):
    run = simulate_rounds(task, FED_AVG, rounds=3, clients=[ClientId("b")], options=PINNED)
    engine, vector, work = make_engine("sequential", task), initial_vector(task, Seeds(0)), FED_AVG.exchanges[0].local
    for number in (1, 2, 3):
        place = client_seeds(0, number, "b").at("local")
        vector = vector + engine.work_one(work, {"model": vector}, {}, task.data("b"), place).sent["model"]
    assert np.abs(run.vector - vector).max() <= 1e-6  # the exact sum rounds an update to 2^-40, the step to float32


def test_training_learns(task):
    run = simulate_rounds(task, FED_AVG, rounds=20)
    assert run.record.rounds[-1].client_metrics["loss"] < run.record.rounds[0].client_metrics["loss"] / 2
    assert run.record.metrics["accuracy"] > 0.85
    assert run.record.outcome.kind is OutcomeKind.COMPLETED


def test_a_job_repeated_is_byte_equal(task):
    first, second = (simulate_rounds(task, FED_AVG, rounds=3, options=PINNED) for _ in range(2))
    assert first.vector.tobytes() == second.vector.tobytes()
    assert first.record == second.record


def test_another_engine_agrees_within_1e_5_per_round(task):
    runs = [simulate_rounds(task, FED_AVG, rounds=1, options=SimulationOptions(e)) for e in ("sequential", "dense")]
    assert np.abs(runs[0].vector - runs[1].vector).max() <= 1e-5


def test_through_edges_the_model_is_byte_equal_to_the_flat_one(task, edge_of):
    flat = simulate_rounds(task, FED_AVG, rounds=4, options=PINNED)
    through = simulate_rounds(task, FED_AVG, rounds=4, edge_of=edge_of, options=PINNED)
    assert through.vector.tobytes() == flat.vector.tobytes()
    assert through.record.protocol == "hierarchical"


def test_a_model_crosses_the_wan_once_per_edge_and_round(task, edge_of):
    run = simulate_rounds(task, FED_AVG, rounds=2, edge_of=edge_of, options=PINNED)
    model_bytes = 4 * run.vector.size
    for record in run.record.rounds:
        assert record.downlink_bytes == 4 * model_bytes  # to four clients that hold examples
        assert 2 * model_bytes < record.wan_bytes < 2 * model_bytes + 2 * 12 * run.vector.size + 1000


def test_after_dropouts_the_survivors_model_is_that_of_the_survivors_alone(task, edge_of):
    alone = simulate_rounds(task, FED_AVG, rounds=2, clients=["a", "c", "e"], options=PINNED)

    def fails(number, client):
        return client == "b"

    for where in (None, edge_of):
        run = simulate_rounds(task, FED_AVG, rounds=2, quorum=2, fails=fails, edge_of=where, options=PINNED)
        assert run.vector.tobytes() == alone.vector.tobytes()
        assert run.record.rounds[0].missing == {"b": "dropped out of the simulation"}


def test_a_slow_client_misses_the_deadline_and_the_round_goes_on(task):
    # One step lasts 10 ms: b has 8 of them (0.08 s), slowed down a hundredfold 8 s.
    slow = replace(PINNED, costs=VirtualCosts(slowdown={ClientId("b"): 100.0}))
    run = simulate_rounds(task, FED_AVG, rounds=2, quorum=2, round_deadline_s=1.0, options=slow)
    assert [record.participants for record in run.record.rounds] == [3, 3]
    assert "no update within 1 s" in run.record.rounds[0].missing["b"]
    assert run.record.virtual_s == pytest.approx(2.0)


def test_a_round_takes_its_slowest_clients_transfers_and_steps(task):
    costs = VirtualCosts(uplink_bytes_per_s=1000, downlink_bytes_per_s=500, round_trip_s=0.1, step_s=0.5)
    record = simulate_rounds(task, FED_AVG, rounds=1, options=replace(PINNED, costs=costs)).record.rounds[0]
    model, update = record.downlink_bytes / 4, record.uplink_bytes / 4
    assert record.virtual_s == pytest.approx(model / 500 + 8 * 0.5 + update / 1000 + 0.1)  # b: 2 epochs of 4 batches


def test_an_int8_uplink_costs_about_a_quarter(task):
    coded = make_algorithm({"name": "fed_avg", "uplink": "int8"})
    runs = [simulate_rounds(task, algorithm, rounds=1, options=PINNED) for algorithm in (FED_AVG, coded)]
    # 67 parameters: 4 bytes each against 1, and a header that is the larger part of so small a model.
    assert runs[1].record.uplink_bytes < runs[0].record.uplink_bytes


def test_evaluation_may_be_sparse_but_the_last_round_is_judged(task):
    run = simulate_rounds(task, FED_AVG, rounds=5, options=replace(PINNED, evaluate_every=2))
    assert [bool(record.metrics) for record in run.record.rounds] == [False, True, False, True, True]


def test_every_round_is_announced(task):
    seen = []
    run = simulate_rounds(task, FED_AVG, rounds=3, options=replace(PINNED, on_round=seen.append))
    assert tuple(seen) == run.record.rounds


def test_drawn_dropouts_have_their_fraction_and_always_the_same_answer():
    fails = drawn_dropouts(0.3, seed=1)
    drawn = [fails(number, ClientId("a")) for number in range(2000)]
    assert np.mean(drawn) == pytest.approx(0.3, abs=0.03)
    assert drawn == [fails(number, ClientId("a")) for number in range(2000)]


def test_a_job_file_runs(task, edge_of):
    training = TrainingTable(
        {"name": "fed_avg", "local": {"name": "sgd", "epochs": 1}}, 2, 2, protocol="hierarchical", engine="sequential"
    )
    settings = {"clients": 3, "model": {"tail_channels": 8, "tail_depth": 1}, "sizes": {"train": 150}}
    run = simulate(JobFile(TaskTable("digits", settings), training))
    assert [record.participants for record in run.record.rounds] == [2, 2]
    assert (run.record.engine, run.record.protocol) == ("sequential", "hierarchical")


def test_clients_without_an_edge_are_refused():
    job = JobFile(TaskTable("digits"), TrainingTable(edges={"edge-1": ("a",)}))
    with pytest.raises(InputError, match=r"clients b, c stand under no edge. List every client in \[training.edges\]"):
        edge_of_clients(job, ["a", "b", "c"])


def test_two_edges_take_turns_where_none_are_named():
    assert edge_of_clients(JobFile(TaskTable("digits")), ["a", "b", "c"]) == {
        "a": "edge-1",
        "b": "edge-2",
        "c": "edge-1",
    }


def test_a_task_without_examples_is_refused(task):
    task.data = lambda client: Examples.of(np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    with pytest.raises(DataError, match="none of the 5 clients of task 'blobs' holds examples"):
        simulate_rounds(task, FED_AVG, rounds=1)
