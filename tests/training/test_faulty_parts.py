"""Parts that others wrote, with the faults that are likely: each says what to do, none leaves a run waiting or a traceback."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace

import numpy as np
import pytest

from edgewise.core.errors import EdgewiseError, MisfitError
from edgewise.core.ids import Generation
from edgewise.core.spec import Spec
from edgewise.simulation.simulate import SimulationOptions, simulate_rounds
from edgewise.testing import LoopbackFleet, TinyTask
from edgewise.training.aggregate import weighted_mean
from edgewise.training.algorithm import FederatedAlgorithm, Select, ServerRule, Weigh
from edgewise.training.algorithms import ALGORITHMS, fed_avg, zeroth_order
from edgewise.training.algorithms.fed_avg import one_exchange
from edgewise.training.local import descend, descent, local_work
from edgewise.training.protocols import check_carries, make_protocol
from edgewise.training.protocols.collection import MOST_FAILURES
from edgewise.training.protocols.messages import ClientReturned
from edgewise.training.select import all_clients
from tests.training.runs import virtual_run

SIZE = 8 * 8 + 3
EDGE_OF = {"a": "e", "b": "e", "c": "e"}


def raises(*_):
    raise ValueError("a bug")


def rule(finish=None, **fields):
    """Descent that keeps a vector, with a fault."""

    def init(received, kept, oracle):
        model = received["model"]
        return model, {"received": model, "k": kept.get("k", 0 * model)}

    def step(gradient, weights, carry):
        return descend(weights, gradient, 0.1), carry

    def right(weights, carry, num_steps):
        return {"model": weights - carry["received"]}, {"k": carry["k"]}

    words = {"spec": Spec("faulty"), "init": init, "step": step, "keeps": ("k",), "plain_rate": None}
    return replace(descent(), **{**words, "finish": finish or right, **fields})


def server(step=None, **fields):
    """FedAvg's server with a second section, with a fault."""

    def right(state, folded, closed):
        return {"model": state["model"] + folded["model"], "h": state["h"] + folded["model"]}

    return ServerRule(
        Spec("faulty_server"), **{"init": lambda m: {"h": np.zeros_like(m)}, "step": step or right, **fields}
    )


def joined(of=None, at=None, aggregate=None, select=None, **codecs):
    exchange = one_exchange(local_work(of or rule(), epochs=1), at or server(), aggregate, **codecs)
    return FederatedAlgorithm(select or all_clients(), (exchange,))


def change(weights, carry):
    return weights - carry["received"]


CLIENT_FAULTS = {
    "another section is sent": (
        lambda: joined(rule(lambda w, c, n: ({"model": change(w, c), "x": w}, {}))),
        r"says that it sends \['model'\].*its finish sends \['model', 'x'\]",
    ),
    "a section is missing": (lambda: joined(rule(lambda w, c, n: ({}, {}))), r"its finish sends \[\]"),
    "another is kept": (lambda: joined(rule(lambda w, c, n: ({"model": change(w, c)}, {"o": w}))), r"keeps \['o'\]"),
    "a number is kept": (
        lambda: joined(rule(lambda w, c, n: ({"model": change(w, c)}, {"k": 1.5}))),
        r"gives 'k' as a float.*oracle.like",
    ),
    "nothing is given": (lambda: joined(rule(lambda w, c, n: None)), "is to give two dicts.*NoneType"),
    "float64 is sent": (
        lambda: joined(rule(lambda w, c, n: ({"model": change(w, c).double()}, {}))),
        "'model' has dtype float64, which cannot travel. Make it float32",
    ),
    "init raises": (lambda: joined(rule(init=raises)), r"ValueError: a bug \(test_faulty_parts.py:\d+\)"),
    "step gives nothing": (lambda: joined(rule(step=lambda *_: None)), "TypeError"),
    "a stranger is chosen": (
        lambda: joined(select=Select(Spec("s"), lambda c, n, r: ("a", "zz"))),
        r"s\(\) chooses in round 1: \['a', 'zz'\] were chosen",
    ),
}
MISFITS = {
    "never given": (lambda: joined(rule(receives=("model", "z"))), r"\['z'\] never comes"),
    "uplink of nothing": (
        lambda: fed_avg(uplink={"modell": fed_avg().exchanges[0].uplink["model"]}),
        "does not travel",
    ),
    "a word for a codec": (lambda: joined(uplink={"model": "int8"}), "'int8', a Codec is needed"),
    "a word for an aggregator": (lambda: joined(aggregate={"model": "mean"}), "'mean', a Aggregator is needed"),
    "a slash in a name": (lambda: joined(rule(keeps=("uplink/k",))), r"\['uplink/k'\].*Use another sign"),
}
SERVER_FAULTS = {
    "init raises": (lambda: joined(at=server(init=raises)), "faulty_server.. begins: ValueError: a bug"),
    "init gives float64": (lambda: joined(at=server(init=lambda m: {"h": np.zeros(SIZE)})), "Make it float32"),
    "step raises": (lambda: joined(at=server(raises)), r"steps: ValueError: a bug \(test_faulty_parts.py:\d+\)"),
    "step gives nothing": (lambda: joined(at=server(lambda *_: None)), "as a dict; found a NoneType"),
    "step gives another shape": (
        lambda: joined(at=server(lambda s, f, c: {"model": s["model"][:5]})),
        r"a model of shape \(5,\), \(67,\) is needed",
    ),
    "step gives words": (lambda: joined(at=server(lambda s, f, c: {"h": "x"})), "no array of numbers, but a str"),
    "an unknown section is sent": (
        lambda: joined(at=server(sends=("model", "z"))),
        "sends a section 'z', its state has",
    ),
    "letters raise": (lambda: joined(at=server(letters=raises)), "sends in round 1: ValueError"),
}
NOBODY_COUNTS = {
    "an update is not finite": (
        lambda: joined(rule(lambda w, c, n: ({"model": w * np.nan}, {}))),
        "needs 3 updates and can never have them.*is nan",
    ),
    "a weight raises": (
        lambda: joined(aggregate={"model": weighted_mean(Weigh(Spec("w"), raises))}),
        "needs 3 updates and can never have them.*ValueError: a bug",
    ),
}


def run(algorithm, **fields):
    return simulate_rounds(TinyTask(), algorithm, rounds=2, options=SimulationOptions(engine="sequential"), **fields)


@pytest.mark.parametrize("fault", sorted(CLIENT_FAULTS))
def test_what_is_wrong_on_a_client_is_an_error_with_the_cure(fault):
    make, text = CLIENT_FAULTS[fault]
    with pytest.raises(EdgewiseError, match=text):
        run(make())


@pytest.mark.parametrize("fault", sorted(MISFITS))
def test_what_cannot_go_together_is_refused_when_joined(fault):
    make, text = MISFITS[fault]
    with pytest.raises(MisfitError, match=text):
        make()


@pytest.mark.parametrize("edge_of", [None, EDGE_OF])
@pytest.mark.parametrize("fault", sorted(SERVER_FAULTS))
def test_a_server_part_that_fails_ends_the_run_with_its_name(fault, edge_of):
    make, text = SERVER_FAULTS[fault]
    outcome = run(make(), edge_of=edge_of).record.outcome
    assert outcome.kind == "failed"
    assert re.search(text, outcome.sentence), outcome.sentence


@pytest.mark.parametrize("edge_of", [None, EDGE_OF])
@pytest.mark.parametrize("fault", sorted(NOBODY_COUNTS))
def test_where_quarantine_leaves_too_few_the_run_ends(fault, edge_of):
    make, text = NOBODY_COUNTS[fault]
    outcome = run(make(), edge_of=edge_of).record.outcome
    assert outcome.kind == "too_few_clients"
    assert re.search(text, outcome.sentence), outcome.sentence


@pytest.mark.parametrize("protocol", ["buffered", "gossip"])
def test_other_protocols_end_with_a_failed_part_too(protocol):
    words = {"name": "buffered", "concurrency": 2, "buffer_size": 2} if protocol == "buffered" else protocol
    bad = fed_avg(select=Select(Spec("late"), lambda c, n, r: raises() if len(c) < 3 or n > 1 or protocol == "gossip" else tuple(x.client for x in c)))  # fmt: skip
    made = virtual_run(
        bad, lambda *_: (np.zeros(4, np.float32), 1, {}), "abc", np.zeros(4, np.float32), protocol=words, num_rounds=2
    )
    made.run()
    assert made.outcome.kind == "failed"
    assert "late() chooses" in made.outcome.sentence


def test_a_simulation_in_which_nobody_comes_back_ends_with_what_to_set():
    outcome = run(fed_avg(), fails=lambda number, client: client == "a").record.outcome
    assert outcome.kind == "too_few_clients"
    assert "missing: a (dropped out" in outcome.sentence
    assert "round deadline" in outcome.cure


def test_a_buffer_that_can_never_fill_ends_the_run():
    outcome = run(fed_avg(), protocol={"name": "buffered", "concurrency": 4, "buffer_size": 4}).record.outcome
    assert outcome.sentence.startswith("round 1 needs 4 updates and can never have them; 3 of 3 clients are left")


PROTOCOLS = ["synchronous", "hierarchical", {"name": "buffered", "concurrency": 3, "buffer_size": 2}]


def failing(protocol, fails=lambda number, client: True, **how):
    """A run whose clients fail as a driver sees it: who is missing and there is asked again, again and again."""
    made = virtual_run(
        fed_avg(),
        lambda *_: (np.ones(4, np.float32), 1, {}),
        "abc",
        np.zeros(4, np.float32),
        protocol=protocol,
        edge_of=EDGE_OF,
        how={"fails": fails, **how},
    )
    made.start()
    made.go()
    return made


def ask_again(made):
    for client in made.view.missing:
        made.feed(made.coordinator, ClientReturned(client, made.seen(client)))
    made.go()


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=str)
def test_clients_that_fail_every_time_end_a_run_without_a_deadline_with_their_cause(protocol):
    made = failing(protocol)
    for _ in range(MOST_FAILURES - 1):
        assert made.outcome is None
        assert "dropped out of the simulation" in made.announced[-1].sentence
        ask_again(made)
    assert made.outcome.kind == "too_few_clients"
    assert "clients are left, out are: a (asked 6 times in vain: dropped out of the simul" in made.outcome.sentence
    assert "why they failed" in made.outcome.cure
    assert all(node.part.is_over(node.state) for node in made.nodes["client"].values())


def test_gossip_of_clients_whose_work_all_failed_is_no_result():
    made = failing("gossip")
    assert made.outcome.kind == "too_few_clients"
    assert "the work of these failed: a (dropped out of the simulation), b (dropped" in made.outcome.sentence
    assert all(node.part.is_over(node.state) for node in made.nodes["client"].values())
    assert failing("gossip", lambda number, client: client != "a").outcome.kind == "too_few_clients"


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=str)
def test_a_client_that_was_started_again_may_fail_as_often_anew(protocol):
    faulty = {"a", "b"}
    made = failing(protocol, lambda number, client: client in faulty)
    for _ in range(2):
        for _ in range(MOST_FAILURES - 2):
            ask_again(made)
        for client in faulty:
            node = made.nodes["client"][client]
            node.generation = Generation(node.generation + 1)
            made.feed(made.coordinator, ClientReturned(client, made.seen(client)))
        made.go()
    assert made.outcome is None
    faulty.clear()
    ask_again(made)
    assert made.outcome.kind == "completed"


@pytest.mark.parametrize("protocol", ["synchronous", "hierarchical"])
def test_a_fleet_whose_rule_fails_everywhere_ends_with_the_cause(protocol, tmp_path, monkeypatch):
    monkeypatch.setattr("edgewise.fleet.training.runs.RETRY_BASE_S", 0.005)
    monkeypatch.setattr(FederatedAlgorithm, "spec", property(lambda _: Spec("faulty_run")))
    monkeypatch.setitem(ALGORITHMS, "faulty_run", lambda: joined(rule(init=raises)))

    async def train():
        edge_of = dict.fromkeys("abc", "e1" if protocol == "hierarchical" else "")
        async with LoopbackFleet(tmp_path, edge_of=edge_of) as fleet:
            name = await fleet.submit("faulty_run", num_rounds=2, protocol=protocol)
            async with asyncio.timeout(60):
                return [status async for status in fleet.operator.watch(name)][-1]

    status = asyncio.run(train())
    assert status.state == "too_few_clients"
    assert "asked 6 times in vain: its task raised ValueError: a bug" in status.cause


def test_sections_without_an_axis_travel():
    def step(state, folded, closed):
        return {"model": state["model"] + folded["model"], "count": np.float32(closed.round)}

    def init(model):
        return {"count": np.float32(0)}

    assert run(joined(at=server(step, init=init, sends=("model", "count")))).record.outcome.kind == "completed"


def test_an_update_of_another_round_means_nothing_to_zeroth_order():
    with pytest.raises(MisfitError, match=r"along_slopes.*reads an update by the round.*Take synchronous"):
        check_carries(make_protocol({"name": "buffered", "concurrency": 2, "buffer_size": 2}), zeroth_order())


@pytest.mark.parametrize("protocol", ["synchronous", "hierarchical"])
@pytest.mark.parametrize("fault", ["step raises", "init raises", "letters raise"])
def test_a_fleet_tells_it_too_and_its_coordinator_starts_again(fault, protocol, tmp_path, monkeypatch):
    make, text = SERVER_FAULTS[fault]
    monkeypatch.setattr(FederatedAlgorithm, "spec", property(lambda _: Spec("faulty_run")))
    monkeypatch.setitem(ALGORITHMS, "faulty_run", lambda: make())

    async def train():
        async with LoopbackFleet(
            tmp_path, edge_of=dict.fromkeys("abc", "e1" if protocol == "hierarchical" else "")
        ) as fleet:
            name = await fleet.submit("faulty_run", num_rounds=2, protocol=protocol)
            async with asyncio.timeout(20):
                status = [status async for status in fleet.operator.watch(name)][-1]
            await fleet.kill("cloud")
            await fleet.restart("cloud")
            return status, fleet.coordinator.runs.status(name)

    status, again = asyncio.run(train())
    assert status.state == again.state == "failed"
    assert re.search(text, status.cause), status.cause
