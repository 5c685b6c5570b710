"""What every selection keeps. A new one is tested by one line of EXAMPLES."""

from __future__ import annotations

import numpy as np
import pytest

from edgewise.core.errors import InputError
from edgewise.core.ids import ClientId, RoundNumber
from edgewise.core.spec import build
from edgewise.training.algorithm import Candidate, ClientRecord
from edgewise.training.select import SELECT, all_clients, power_of_choice, uniform

EXAMPLES = [all_clients(), uniform(3), power_of_choice(3, 6)]
each = pytest.mark.parametrize("select", EXAMPLES, ids=lambda s: str(s.spec))


def candidate(index, num_examples=10, **metrics):
    last = ClientRecord(RoundNumber(1), 1, metrics) if metrics else None
    return Candidate(ClientId(f"client-{index}"), num_examples, last)


def chosen(select, candidates, seed=0):
    return select.choose(candidates, RoundNumber(2), np.random.default_rng(seed))


TEN = [candidate(i, 10 * (i + 1), loss=float(i)) for i in range(10)]


def test_every_registered_selection_has_an_example():
    assert {s.spec.name for s in EXAMPLES} == set(SELECT)


@each
@pytest.mark.parametrize("seed", range(20))
def test_a_cohort_is_some_of_the_candidates_in_their_order_and_each_once(select, seed):
    names = [c.client for c in TEN]
    found = chosen(select, TEN, seed)
    assert list(found) == [name for name in names if name in set(found)]
    assert found


@each
def test_a_seed_gives_one_cohort(select):
    assert len({chosen(select, TEN, seed=7) for _ in range(5)}) == 1


@each
def test_nobody_there_is_nobody_chosen(select):
    assert chosen(select, []) == ()


@each
def test_few_candidates_all_take_part(select):
    assert chosen(select, TEN[:2]) == (TEN[0].client, TEN[1].client)


@each
def test_nothing_needs_to_be_known_of_a_client(select):
    assert chosen(select, [Candidate(c.client) for c in TEN])


@each
def test_words_build_the_same_selection(select):
    rebuilt = build("select", SELECT, select.spec.to_dict())
    assert [chosen(rebuilt, TEN, s) for s in range(9)] == [chosen(select, TEN, s) for s in range(9)]


def test_a_uniform_draw_is_numpys_choice_without_replacement():
    drawn = np.random.default_rng(3).choice(10, 3, replace=False)
    assert chosen(uniform(3), TEN, 3) == tuple(TEN[i].client for i in sorted(drawn))


def test_power_of_choice_takes_the_worst_of_those_drawn():
    assert chosen(power_of_choice(3, 10), TEN) == tuple(c.client for c in TEN[7:])


def test_power_of_choice_hears_everyone_once_first():
    mixed = [candidate(i, loss=100.0) for i in range(8)] + [candidate(8), candidate(9)]
    assert chosen(power_of_choice(2, 10), mixed) == ("client-8", "client-9")


def test_power_of_choice_with_no_more_candidates_than_clients_draws_by_examples():
    pair = [candidate(0, 300, loss=0.0), candidate(1, 100, loss=9.0)]
    first = sum(chosen(power_of_choice(1, 1), pair, seed) == ("client-0",) for seed in range(2000))
    # A share of 3/4 with a standard deviation of √(¾·¼/2000) ≈ 0.0097; five of them.
    assert abs(first / 2000 - 0.75) < 0.049


@pytest.mark.parametrize(("make", "text"), [
    (lambda: uniform(0), r"at least 1 client, found cohort_size=0"),
    (lambda: power_of_choice(0, 3), "takes 0 of 3 candidates"),
    (lambda: power_of_choice(4, 3), "takes 4 of 3 candidates"),
])  # fmt: skip
def test_an_impossible_cohort_is_refused(make, text):
    with pytest.raises(InputError, match=text):
        make()
