"""What a server's step is, in closed form; in slices, with buffers, and where it gives nonsense."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from edgewise.core.errors import InputError
from edgewise.core.ids import RoundNumber
from edgewise.core.spec import Spec, build
from edgewise.training.aggregate import weighted_mean
from edgewise.training.algorithm import Closed, ServerRule
from edgewise.training.server import SERVERS, Folded, adam, keep, momentum, next_state, step

MOVING = [step(0.5), momentum(0.5, 0.9), adam(0.1)]
EXAMPLES = [*MOVING, step(0.5, sends=("model", "gradient")), keep("model")]
each = pytest.mark.parametrize("rule", MOVING, ids=lambda r: str(r.spec))
CLOSED = Closed(RoundNumber(1), 2, 2, np.random.default_rng(0))
SIZE = 37


def folded(array):
    array = np.asarray(array, np.float32)
    return {"model": Folded(array.shape, array.ravel().__getitem__)}


def random(seed, size=SIZE):
    return np.random.default_rng(seed).normal(size=size).astype(np.float32)


def start(rule, model):
    return {**rule.init(model), "model": model}


def test_every_registered_rule_has_an_example():
    assert {r.spec.name for r in EXAMPLES} == set(SERVERS)


@pytest.mark.parametrize("rule", EXAMPLES, ids=lambda r: str(r.spec))
def test_words_build_the_same_rule(rule):
    rebuilt = build("server", SERVERS, rule.spec.to_dict())
    assert (rebuilt.spec, rebuilt.sends) == (rule.spec, rule.sends)
    state = start(rule, random(0))
    for name, array in next_state(rebuilt, state, folded(random(1)), CLOSED).changed.items():
        np.testing.assert_array_equal(array, next_state(rule, state, folded(random(1)), CLOSED).changed[name])


@each
@pytest.mark.parametrize("slice_entries", [1, 5, 36, 37, 100])
def test_slices_change_no_bit(rule, slice_entries):
    whole = sliced = start(rule, random(0))
    for seed in range(3):
        update = folded(random(seed + 1))
        at_once = next_state(rule, whole, update, CLOSED)
        parts = next_state(rule, sliced, update, CLOSED, slice_entries=slice_entries)
        whole, sliced = {**whole, **at_once.changed}, {**sliced, **parts.changed}
        assert {n: a.tobytes() for n, a in whole.items()} == {n: a.tobytes() for n, a in sliced.items()}
        assert parts.update_norm == pytest.approx(at_once.update_norm, rel=1e-12)


@each
def test_a_step_does_not_change_what_it_is_given(rule):
    state = start(rule, random(0))
    before = {name: array.copy() for name, array in state.items()}
    for array in state.values():
        array.flags.writeable = False
    next_state(rule, state, folded(random(1)), CLOSED, [(3, 4)])
    for name, array in state.items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize("slice_entries", [3, 100])
@each
def test_buffers_are_averaged_plainly_whatever_the_rule_does(rule, slice_entries):
    model, update = random(0), random(1)
    state = start(rule, model)
    plain = next_state(rule, state, folded(update), CLOSED).changed["model"]
    found = next_state(rule, state, folded(update), CLOSED, [(0, 2), (10, 5)], slice_entries).changed["model"]
    buffers = np.isin(np.arange(SIZE), [0, 1, 10, 11, 12, 13, 14])
    np.testing.assert_array_equal(found[buffers], (model + update)[buffers])
    np.testing.assert_array_equal(found[~buffers], plain[~buffers])


def test_the_norm_of_an_update_is_euclidean():
    assert next_state(step(), start(step(), np.zeros(2, np.float32)), folded([3, 4]), CLOSED).update_norm == 5.0


def test_a_step_is_sgd_momentum_is_a_running_sum_and_adam_is_scaled():
    model = np.zeros(1, np.float32)
    state = start(momentum(1.0, 0.5), model)
    for expected in (1.0, 2.5, 4.25):  # v = 1, 1.5, 1.75
        state |= next_state(momentum(1.0, 0.5), state, folded([1.0]), CLOSED).changed
        assert state["model"].tolist() == [expected]
    assert next_state(step(0.5), {"model": model}, folded([1.0]), CLOSED).changed["model"].tolist() == [0.5]
    rule = adam(0.1, 0.0, 0.0, tau=0.5)  # w = η · Δ / (|Δ| + τ)
    np.testing.assert_allclose(next_state(rule, start(rule, model), folded([1.5]), CLOSED).changed["model"], [0.075])


def test_a_rule_that_needs_all_entries_gets_them_at_once():
    rule = ServerRule(Spec("centred"), lambda model: {}, lambda s, f, c: {"model": s["model"] - f["model"].mean()})
    whole = replace(rule, is_elementwise=False)
    found = next_state(whole, {"model": np.zeros(4, np.float32)}, folded([1, 2, 3, 6]), CLOSED, slice_entries=2)
    assert found.changed["model"].tolist() == [-3.0] * 4


def test_sections_of_another_size_are_given_whole_with_every_slice():
    def apply(state, folded, closed):
        return {"model": state["model"] + folded["steps"] * folded["model"], "count": state["count"] + folded["steps"]}

    state = {"model": np.ones(5, np.float32), "count": np.zeros((), np.float32)}
    steps = np.float32(3)
    sections = {**folded([1, 2, 3, 4, 5]), "steps": Folded((), lambda entries: np.array([steps])[entries])}
    found = next_state(ServerRule(Spec("nova"), lambda m: {}, apply), state, sections, CLOSED, slice_entries=2)
    assert found.changed["model"].tolist() == [4, 7, 10, 13, 16]
    assert found.changed["count"].tolist() == 3.0


def test_a_model_that_is_not_finite_is_refused():
    update = np.full(SIZE, 3e38, np.float32)
    with pytest.raises(InputError, match=r"step\(learning_rate=9\) gives a model with 37 of 37 entries not finite"):
        next_state(step(9), {"model": update}, folded(update), CLOSED, slice_entries=10)


def test_a_large_model_is_stepped_with_little_memory_beside_the_next_one():
    size, aggregator = 2_000_000, weighted_mean()
    total = aggregator.add(aggregator.init(size), np.ones((1, size), np.float32), [3])
    sections = {"model": Folded((size,), lambda entries: aggregator.finish(total, CLOSED, entries))}
    state = {"model": np.zeros(size, np.float32)}
    tracemalloc.start()
    next_state(step(), state, sections, CLOSED, slice_entries=2**16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.4 * state["model"].nbytes
