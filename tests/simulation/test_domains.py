import multiprocessing
from concurrent.futures import CancelledError

import numpy as np
import pytest

from edgewise.core.errors import InputError
from edgewise.core.provenance import origins_of
from edgewise.simulation.emulated.domain_pool import simulate_domains
from edgewise.simulation.emulated.domains import DOMAINS, DomainTraining, clients_by_edge, public_share, simulate_domain
from edgewise.simulation.simulate import SimulationOptions, simulate_rounds
from edgewise.training.algorithms import fed_avg
from edgewise.training.job import JobFile, TaskTable, TrainingTable


@pytest.fixture
def training(task, edge_of):
    held = {client: edge for client, edge in edge_of.items() if len(task.data(client))}
    return DomainTraining(
        task=task, algorithm=fed_avg(), rounds=5, edge_of=held, options=SimulationOptions("sequential")
    )


def test_owners_of_each_domain(training):
    owners = {domain: set(simulate_domain(domain, training).vectors) for domain in DOMAINS}
    assert owners == {
        "cloud": {"cloud"},
        "federated": {"all"},
        "edge": {"edge-1", "edge-2"},
        "device": {"a", "b", "c", "e"},
    }


def test_every_domain_is_judged_on_the_same_test_data(training):
    for domain in DOMAINS:
        result = simulate_domain(domain, training)
        assert set(result.accuracies) == set(result.vectors)
        assert result.accuracy == pytest.approx(np.mean([m["accuracy"] for m in result.accuracies.values()]))
        assert result.vector is result.vectors[result.representative]


def test_the_hierarchical_domain_is_the_whole_run(training, task):
    run = simulate_rounds(task, training.algorithm, rounds=5, options=training.options)
    assert simulate_domain("federated", training).vector.tobytes() == run.vector.tobytes()


def test_the_public_share_is_a_fraction_of_every_client(training):
    share = public_share(training)
    assert len(share) == round(0.2 * 12) + round(0.2 * 30) + round(0.2 * 17) + round(0.2 * 9)
    assert origins_of(share.inputs) == {"raw"}


def test_clients_by_edge_keep_their_order(edge_of):
    assert clients_by_edge(edge_of) == {"edge-1": ("a", "d", "e"), "edge-2": ("b", "c")}


def test_an_unknown_domain_is_refused(training):
    with pytest.raises(InputError, match=r"there is no training domain 'clod'. Did you mean 'cloud'"):
        simulate_domain("clod", training)


def test_a_public_share_of_nothing_is_refused(task, edge_of):
    nothing = DomainTraining(task=task, algorithm=fed_avg(), rounds=1, edge_of=edge_of, public_fraction=0.0)
    with pytest.raises(InputError, match=r"public_fraction must be above 0 and at most 1, got 0\.0"):
        simulate_domain("cloud", nothing)


@pytest.mark.slow
def test_processes_do_not_change_the_result():
    small = {"clients": 2, "model": {"tail_channels": 4, "tail_depth": 1}, "sizes": {"train": 100}}
    job = JobFile(TaskTable("digits", small), TrainingTable(rounds=1, engine="sequential"))
    seen = []
    pooled = simulate_domains(job, ("cloud", "device"), on_result=seen.append)
    alone = simulate_domains(job, ("cloud", "device"), processes=1)
    assert list(pooled) == list(alone) == ["cloud", "device"]
    assert {result.domain for result in seen} == {"cloud", "device"}
    for domain in alone:
        for owner, vector in alone[domain].vectors.items():
            assert pooled[domain].vectors[owner].tobytes() == vector.tobytes()


@pytest.mark.slow
def test_a_cancelled_simulation_leaves_no_process():
    job = JobFile(TaskTable("digits", {"clients": 2}), TrainingTable(rounds=10_000, engine="sequential"))
    before, looks = set(multiprocessing.active_children()), []
    with pytest.raises(CancelledError, match="was cancelled"):
        simulate_domains(job, ("cloud", "device"), is_cancelled=lambda: looks.append(1) or len(looks) > 10)
    assert set(multiprocessing.active_children()) == before
