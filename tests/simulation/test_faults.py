"""What goes wrong with a client, or with the process: the run goes on, ends with its cause, or is taken up again."""

from __future__ import annotations

import copy
import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from edgewise.core.errors import InputError, TaskError
from edgewise.models.flat import vector_of
from edgewise.models.task import Examples
from edgewise.simulation.costs import VirtualCosts
from edgewise.simulation.journal import Journal
from edgewise.simulation.simulate import SimulationOptions, simulate_rounds
from edgewise.simulation.virtual_clients import VirtualClients
from edgewise.training.algorithms import make_algorithm
from edgewise.training.protocols.messages import OutcomeKind
from tests.simulation.conftest import BlobsTask

ENGINE = SimulationOptions(engine="sequential")
UPLINKS = ("none", "int8", {"name": "error_feedback", "codec": {"name": "top_k", "fraction": 0.5}})
LOCKSTEP = ("synchronous", "hierarchical")


class Diverging(BlobsTask):
    """Client b's model leaves every number behind in its first step."""

    def data(self, client):
        held = super().data(client)
        return Examples.of(held.inputs * np.float32(1e37 if client in self.settings["who"] else 1), held.targets)

    def loss(self, outputs, targets):
        return super().loss(outputs, targets) * (outputs.detach().abs().max() > 1e9).float().mul(1e38).add(1)


def run(task, edge_of, *, uplink="none", **words):
    algorithm = make_algorithm({"name": "fed_avg", "uplink": uplink})
    words = {"rounds": 3, "options": ENGINE, "edge_of": edge_of, **words}
    return simulate_rounds(task, algorithm, **words)


@pytest.mark.parametrize("protocol", LOCKSTEP)
@pytest.mark.parametrize("uplink", UPLINKS, ids=str)
def test_a_client_that_diverges_is_left_out_and_the_others_train_on(edge_of, uplink, protocol):
    found = run(Diverging(who="b"), edge_of, uplink=uplink, quorum=3, protocol=protocol)
    assert found.record.outcome.kind is OutcomeKind.COMPLETED
    assert set(found.record.rounds[0].missing) == {"b"}
    assert np.isfinite(found.vector).all()


@pytest.mark.parametrize("protocol", [*LOCKSTEP, {"name": "buffered", "concurrency": 3, "buffer_size": 2}], ids=str)
@pytest.mark.parametrize("uplink", UPLINKS, ids=str)
def test_a_quorum_that_can_no_longer_be_met_ends_the_run_with_its_cause(edge_of, uplink, protocol):
    found = run(Diverging(who="abce"), edge_of, uplink=uplink, quorum=3, protocol=protocol).record
    assert found.outcome.kind is OutcomeKind.TOO_FEW_CLIENTS
    assert "can never have them" in found.outcome.sentence
    assert "The client has diverged: lower its learning rate" in found.outcome.sentence


@pytest.mark.parametrize("uplink", UPLINKS, ids=str)
@pytest.mark.parametrize("who", ["b", "abce"])
def test_gossip_with_a_client_that_diverges_ends_with_its_cause_or_goes_on_without_it(edge_of, uplink, who):
    whole = run(Diverging(who=who), None, uplink=uplink, protocol="gossip").record
    part = run(Diverging(who=who), None, uplink=uplink, quorum=3, protocol="gossip")
    assert whole.outcome.kind is OutcomeKind.TOO_FEW_CLIENTS
    assert whole.rounds == ()
    assert part.record.outcome.kind is (OutcomeKind.COMPLETED if who == "b" else OutcomeKind.TOO_FEW_CLIENTS)
    for found in (whole, part.record):
        assert "The client has diverged: lower its learning rate" in found.outcome.sentence
    assert [set(row.missing) for row in part.record.rounds] == ([{"b"}] if who == "b" else [])
    assert np.isfinite(part.vector).all()


@pytest.mark.parametrize("protocol", ["synchronous", "gossip"])
def test_a_model_of_ones_own_that_diverges_is_as_bad_as_the_shared_one(protocol):
    rate = {"name": "drawn", "learning_rate": 1e30, "pull": 1e8}
    rules = {"name": "local_work", "rules": ["descent", rate], "epochs": 4}
    found = simulate_rounds(
        BlobsTask(), make_algorithm({"name": "fed_avg", "local": rules}), rounds=2, protocol=protocol, options=ENGINE
    ).record
    assert found.outcome.kind is OutcomeKind.TOO_FEW_CLIENTS
    assert "what it keeps has a" in found.outcome.sentence


class Raising(BlobsTask):
    """Its loss fails on batches of nine, which only client e has."""

    def loss(self, outputs, targets):
        if len(targets) == 9:
            raise ValueError("nine")
        return super().loss(outputs, targets)


def test_a_client_whose_code_raises_while_it_trains_is_left_out_with_file_and_line(edge_of):
    found = run(Raising(), edge_of, quorum=3)
    assert set(found.record.rounds[0].missing) == {"e"}
    assert "ValueError: nine (test_faults.py:" in found.record.rounds[0].missing["e"]


def test_code_that_raises_for_everybody_ends_with_one_sentence(edge_of):
    with pytest.raises(TaskError, match=r"ValueError: nine \(test_faults.py:\d+\)") as error:
        run(Raising(), edge_of, clients=("e",))
    assert "\n" not in error.value.message


def test_work_that_takes_longer_than_a_buffered_round_is_not_lost():
    costs = VirtualCosts(slowdown={"b": 7.3, "c": 2.1})
    protocol = {"name": "buffered", "concurrency": 3, "buffer_size": 2}
    options = SimulationOptions(engine="sequential", costs=costs)
    found = run(BlobsTask(), None, rounds=8, protocol=protocol, options=options)
    assert found.record.outcome.kind is OutcomeKind.COMPLETED


class Odd(BlobsTask):
    """Has one of the faults that its settings name."""

    def clients(self):
        return self.settings.get("clients") or super().clients()

    def loss(self, outputs, targets):
        return super().loss(outputs.detach() if "detached" in self.settings else outputs, targets)

    def metrics(self, outputs, targets):
        return {"each": np.ones(3)} if "array" in self.settings else {}


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"clients": ["a", "b", "a"]}, r"names 'a' twice\. Name each once"),
        ({"clients": range(3)}, r"gives 0, a int; a client's name is text"),
        ({"detached": True}, "the loss does not depend on what is trained: outputs are detached"),
        ({"array": True}, r"metric 'each' is an array of shape \(3,\), a number is needed"),
    ],
)
def test_an_odd_task_is_told_in_a_sentence(settings, text):
    with pytest.raises(TaskError, match=text):
        run(Odd(**settings), None)


def test_a_task_that_gives_the_same_module_each_time_trains_as_one_that_makes_it_anew():
    class Same(BlobsTask):
        def model(self):
            made = vars(self).setdefault("made", torch.nn.Sequential(torch.nn.Dropout(0.5), super().model()))
            return made if self.settings["same"] else copy.deepcopy(made)

    initial = np.full_like(vector_of(Same(same=True).model()), 0.1)
    anew, same = (run(Same(same=same), None, initial=initial).vector for same in (False, True))
    assert anew.tobytes() == same.tobytes()


class Killed(Exception):
    pass


@pytest.fixture
def work(monkeypatch):
    """Counts how often clients worked together, and kills before the n-th time."""
    worked, calls, dies_at = VirtualClients.work, [], []

    def counted(*given):
        if dies_at == [len(calls)]:
            raise Killed
        calls.append(1)
        return worked(*given)

    monkeypatch.setattr(VirtualClients, "work", counted)
    return calls, dies_at


@pytest.mark.parametrize("protocol", [*LOCKSTEP, {"name": "buffered", "concurrency": 3, "buffer_size": 2}], ids=str)
@pytest.mark.parametrize("num_torn", [0, 3])
def test_a_killed_simulation_goes_on_to_the_model_it_would_have_had(
    tmp_path, work, edge_of, protocol, num_torn, monkeypatch
):
    words = {"protocol": protocol, "rounds": 6, "uplink": UPLINKS[2]}
    path, (calls, dies_at) = tmp_path / "run.journal", work
    if num_torn:  # a snapshot is never torn
        monkeypatch.setattr(Journal, "is_long", lambda *_: False)
    whole = run(BlobsTask(), edge_of, **words)
    num_calls = len(calls)
    calls.clear()
    dies_at.append(3)
    options = SimulationOptions(engine="sequential", journal=path)
    with pytest.raises(Killed):
        run(BlobsTask(), edge_of, **words, options=options)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - num_torn])
    calls.clear()
    dies_at.clear()
    again = run(BlobsTask(), edge_of, **words, options=options)
    assert again.vector.tobytes() == whole.vector.tobytes()
    assert again.record == whole.record
    assert num_calls - 3 <= len(calls) <= num_calls - 3 + bool(num_torn)  # what is torn may be a round's metrics
    assert not path.exists()


PROTOCOLS = [*LOCKSTEP, {"name": "buffered", "concurrency": 3, "buffer_size": 2}, "gossip"]
SCAFFOLD = {"name": "scaffold", "uplink": {"model": "int8", "control": "int8"}}


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=str)
def test_a_simulation_that_is_killed_in_every_round_and_while_it_compacts_ends_as_if_it_were_not(
    tmp_path, work, edge_of, protocol, monkeypatch
):
    words = {"rounds": 6, "protocol": protocol, "edge_of": edge_of, "round_deadline_s": 100.0}
    algorithm = make_algorithm(SCAFFOLD if protocol in LOCKSTEP else {"name": "fed_avg", "uplink": UPLINKS[2]})
    costs = VirtualCosts(slowdown={"b": 2.3, "c": 1.7})
    whole = simulate_rounds(BlobsTask(), algorithm, **words, options=replace(ENGINE, costs=costs))
    path, (calls, dies_at), kills, replaced = tmp_path / "run.journal", work, [], os.replace
    rounds = []
    options = replace(ENGINE, costs=costs, journal=path, on_round=lambda record: rounds.append(record.round))

    def dying(source, target):
        kills.append(1)
        if len(kills) % 3 == 1:
            raise Killed  # before the file is the new one
        replaced(source, target)
        if len(kills) % 3 == 2:
            raise Killed  # right after

    monkeypatch.setattr(os, "replace", dying)
    again = None
    for _ in range(200):
        calls.clear()
        rounds.clear()
        dies_at[:] = [2]
        try:
            again = simulate_rounds(BlobsTask(), algorithm, **words, options=options)
            break
        except Killed:
            pass
    assert again is not None
    assert again.vector.tobytes() == whole.vector.tobytes()
    assert again.record == whole.record
    assert rounds == [record.round for record in whole.record.rounds]
    assert len(kills) > 6


def test_a_journal_holds_what_the_run_is_and_not_what_it_was(tmp_path, edge_of):
    path, sizes = tmp_path / "run.journal", []
    options = replace(ENGINE, journal=path, on_round=lambda _: sizes.append(path.stat().st_size))
    run(BlobsTask(), None, rounds=40, uplink=UPLINKS[2], options=options)
    assert max(sizes) < 4 * max(sizes[:3])
    assert not path.exists()


def test_a_journal_of_another_run_or_no_journal_is_refused(tmp_path, work, edge_of):
    path = tmp_path / "run.journal"
    options = SimulationOptions(engine="sequential", journal=path)
    work[1].append(0)
    with pytest.raises(Killed):
        run(BlobsTask(), edge_of, options=options)
    with pytest.raises(InputError, match="is of another job, task or seed"):
        run(BlobsTask(), edge_of, options=options, seed=1)
    path.write_bytes(b"something else")
    with pytest.raises(InputError, match="is no journal of a simulation"):
        run(BlobsTask(), edge_of, options=options)
