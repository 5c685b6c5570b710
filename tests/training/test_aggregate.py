"""What weights, divisors and medians are worth, against closed forms; and what they must not be joined with."""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.codecs import int8
from edgewise.codecs.bundle import Section
from edgewise.core.errors import InputError, MisfitError
from edgewise.core.ids import RoundNumber
from edgewise.core.spec import Spec
from edgewise.training.aggregate import (
    WEIGHTS,
    collected,
    coordinate_median,
    loss,
    make_weigh,
    staleness,
    trimmed_mean,
    uniform,
    weighted_mean,
)
from edgewise.training.aggregate.weigh import units_of
from edgewise.training.aggregate.weighted_mean import WeightedMean
from edgewise.training.algorithm import MISFITS, Aggregator, Closed, Counted, Exchange, FederatedAlgorithm, Kind, Weigh
from edgewise.training.local.rule import VECTOR, LocalWork, Loop, Rule
from edgewise.training.protocols.protocol import Protocol, check_carries
from edgewise.training.select import all_clients
from edgewise.training.server import step


def closed(num_clients=10, population=()):
    return Closed(RoundNumber(1), 2, num_clients, np.random.default_rng(0), population)


def mean_of(aggregator, updates, weights, population=()):
    rows = np.asarray(updates, np.float32).reshape(len(updates), -1)
    total = aggregator.add(aggregator.init(rows.shape[1]), rows, weights)
    return aggregator.finish(total, closed(population=population)).tolist()


@pytest.mark.parametrize(
    ("words", "counted", "weight"),
    [
        ("examples", Counted(10_000_000), 10_000_000),
        ("uniform", Counted(7), 1),
        ("loss", Counted(7, metrics={"loss": 0.25}), 0.25),
        ("staleness", Counted(8, staleness=3), 4),
        ("staleness(weigh=uniform(), power=1.0)", Counted(8, staleness=3), 0.25),
        ("staleness(power=0.0)", Counted(8, staleness=99), 8),
    ],
)
def test_what_an_update_counts(words, counted, weight):
    assert make_weigh(words).weight(counted) == weight


def test_a_loss_that_was_not_measured_cannot_be_a_weight():
    with pytest.raises(InputError, match=r"without a metric 'loss' cannot be weighted by it, it has \['seconds'\]"):
        loss().weight(Counted(1, metrics={"seconds": 1.0}))


def test_staleness_must_not_be_rewarded():
    with pytest.raises(InputError, match=r"power must be at least 0, found -1"):
        staleness(power=-1)


@pytest.mark.parametrize("weight", [0.5, 2.0**-11, 1 / 3, 12345.678, 1e7])
def test_a_real_weight_is_rounded_by_less_than_a_millionth(weight):
    units = int(units_of(staleness(), [weight])[0])
    assert abs(units * staleness().unit / weight - 1) <= 2.0**-20


def test_every_weight_is_registered_by_its_name():
    assert {made().spec.name for made in WEIGHTS.values()} == set(WEIGHTS)


def test_real_weights_give_the_weighted_mean():
    rng = np.random.default_rng(0)
    updates, weights = rng.normal(size=(30, 50)), rng.uniform(0.01, 2, 30)
    found = mean_of(weighted_mean("loss"), updates, weights)
    np.testing.assert_allclose(found, np.average(updates, axis=0, weights=weights), atol=1e-6)


REAL = st.floats(0, 1e7, allow_subnormal=False)


@given(st.lists(st.tuples(st.floats(-100, 100, width=32), REAL), min_size=1, max_size=7), st.randoms())
def test_real_weights_give_one_sum_in_any_order(pairs, random):
    aggregator, shuffled = weighted_mean("loss"), random.sample(pairs, len(pairs))
    arrays = []
    for listed in (pairs, shuffled):
        total = aggregator.init(1)
        for entry, weight in listed:
            total = aggregator.add(total, np.array([[entry]], np.float32), [weight])
        arrays.append({name: array.tobytes() for name, array in aggregator.to_arrays(total).items()})
    assert arrays[0] == arrays[1]


@given(st.lists(st.tuples(st.floats(-100, 100, width=32), st.floats(2.0**-11, 1e7)), min_size=1, max_size=7))
def test_a_mean_by_real_weights_is_off_by_what_their_units_allow(pairs):
    entries, weights = (np.array(column, np.float64) for column in zip(*pairs, strict=True))
    found = mean_of(weighted_mean("loss"), entries.astype(np.float32), list(weights))[0]
    # Each weight is off by 2⁻²⁰ of itself at most, on either side of the fraction; then one rounding to float32.
    bound = 2.0**-19 * np.abs(entries).max() + 2.0**-24 * abs(found) + 2.0**-40
    assert abs(found - np.average(entries, weights=weights)) <= bound


def test_a_billion_examples_of_clients_with_ten_million_are_one_mean():
    assert mean_of(weighted_mean(), [[1.0], [-1.0]] * 50, [10_000_000] * 100) == [0.0]
    assert mean_of(weighted_mean("staleness"), [[3.0], [-1.0]] * 50, [10_000_000] * 100) == [1.0]


def test_a_sum_over_all_clients_is_divided_by_what_all_weigh():
    assert mean_of(weighted_mean("uniform", divisor="all"), [[4.0], [6.0]], [1, 1]) == [1.0]
    population = tuple(Counted(n) for n in (1, 3, 6, 10))
    assert mean_of(weighted_mean(divisor="all"), [[4.0], [6.0]], [1, 6], population) == [2.0]


def test_a_divisor_that_is_not_known_is_refused():
    with pytest.raises(InputError, match="divides by what all 10 clients weigh"):
        mean_of(weighted_mean(divisor="all"), [[4.0]], [1])
    with pytest.raises(InputError, match="found divisor='some'"):
        weighted_mean(divisor="some")


def test_the_median_is_not_moved_by_few_liars():
    honest = np.random.default_rng(0).normal(1, 0.1, (7, 20))
    rows = np.concatenate([honest, np.full((3, 20), 1e6)]).astype(np.float32)
    found = coordinate_median().finish_slice(rows.copy(), [1] * 10, closed())
    assert ((found >= honest.min(axis=0)) & (found <= honest.max(axis=0))).all()


def test_a_trimmed_mean_is_the_mean_of_the_middle():
    rows = np.array([[9, 1], [1, 2], [2, -50], [3, 3], [-7, 4]], np.float32)
    assert trimmed_mean(0.2).finish_slice(rows, [1] * 5, closed()).tolist() == [2.0, 2.0]
    with pytest.raises(InputError, match=r"in \[0, 0.5\) at either end, found fraction=0.5"):
        trimmed_mean(0.5)


@pytest.mark.parametrize("aggregator", [coordinate_median(), trimmed_mean(0.2)], ids=lambda a: str(a.spec))
def test_collecting_takes_three_times_a_slice_of_all_updates_at_most(aggregator):
    size, clients, slice_bytes = 400_000, 8, 2**20
    updates = np.random.default_rng(0).normal(size=(clients, size)).astype(np.float32)
    decode = lambda index, entries: updates[index, entries]  # noqa: E731
    tracemalloc.start()
    result = collected(aggregator, decode, clients, size, [1] * clients, closed(), slice_bytes)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak - result.nbytes <= 3 * slice_bytes


@dataclass(frozen=True)
class MaskedSum(WeightedMean):
    """A test double for a sum whose single updates are masked."""

    hides_updates: bool = True


@dataclass(frozen=True)
class MaskedMedian(Aggregator):
    """A contradiction."""

    spec: Spec = Spec("masked_median")
    weigh: Weigh = uniform()
    kind: Kind = Kind.COLLECT
    hides_updates: bool = True


masked_sum = MaskedSum(Spec("masked_sum"), uniform())
local = LocalWork(
    Spec("sgd"),
    Loop(),
    (
        Rule(
            Spec("descent"),
            init=lambda received, kept, oracle: (received["model"], {}),
            step=lambda gradient, weights, carry: (weights, carry),
            finish=lambda weights, carry, steps: ({"model": weights}, {}),
            sends=(Section("model", shape=VECTOR),),
        ),
    ),
)
PLAIN = Exchange(local, step(), {"model": weighted_mean()})


MISFIT_CASES = {
    "sent and not folded": (replace(PLAIN, aggregate={}), r"sections \['model'\] are sent and not folded"),
    "folded and not sent": (
        replace(PLAIN, aggregate={**PLAIN.aggregate, "more": weighted_mean()}),
        r"sections \['more'\] are sent and not folded",
    ),
    "never given": (
        replace(PLAIN, server=replace(step(), sends=())),
        r"receives \['model'\], step.* sends \[\]: \['model'\] never comes",
    ),
    "coded for nobody": (
        replace(PLAIN, uplink={"more": int8()}),
        r"a codec is given for \['more'\], which does not travel that way",
    ),
    "reads what masks hide": (
        replace(PLAIN, aggregate={"model": MaskedMedian()}),
        r"masked_median\(\) reads single updates, masks hide them.*weighted_mean\(\)",
    ),
    "rounds what is masked": (
        replace(PLAIN, aggregate={"model": masked_sum}, uplink={"model": int8()}),
        r"\['model'\] would round what is masked.*Quantise inside the masked sum",
    ),
}


def test_every_misfit_has_a_case():
    assert all(any(misfit.is_met(exchange) for exchange, _ in MISFIT_CASES.values()) for misfit in MISFITS)


@pytest.mark.parametrize(("exchange", "reason"), MISFIT_CASES.values(), ids=MISFIT_CASES)
def test_misfits_are_refused_when_joined(exchange, reason):
    with pytest.raises(MisfitError, match=reason):
        FederatedAlgorithm(all_clients(), (exchange,))


@pytest.mark.parametrize("aggregator", [weighted_mean(), masked_sum], ids=lambda a: str(a.spec))
def test_a_sum_is_carried_under_edges(aggregator):
    algorithm = FederatedAlgorithm(all_clients(), (replace(PLAIN, aggregate={"model": aggregator}),))
    check_carries(UNDER_EDGES, algorithm)


@pytest.mark.parametrize("aggregator", [coordinate_median(), trimmed_mean()], ids=lambda a: str(a.spec))
def test_what_reads_every_update_is_refused_under_an_edge_sum(aggregator):
    algorithm = FederatedAlgorithm(all_clients(), (replace(PLAIN, aggregate={"model": aggregator}),))
    with pytest.raises(
        MisfitError, match=rf"{aggregator.spec.name}\(.*must see every update of 'model', under edges\(\)"
    ):
        check_carries(UNDER_EDGES, algorithm)
    check_carries(replace(UNDER_EDGES, folds_in_parts=False), algorithm)


UNDER_EDGES = Protocol(Spec("edges"), {}, lambda state: None, folds_in_parts=True)
