"""Gains with their intervals, and predictions beside a whole stream."""

import numpy as np
import pytest

from edgewise.core.errors import InputError
from edgewise.core.ids import Tier
from edgewise.inference.accuracy import prediction_error, stream_error
from edgewise.inference.gain import measured_gain
from edgewise.planning.choose import plan
from edgewise.planning.policy import Policy
from tests.planning.scenario import FAST, WAN, evidence, graph, profiles


def test_the_interval_holds_the_true_gain_as_often_as_it_says():
    held, num = 0, 200
    for seed in range(num):
        rng = np.random.default_rng(seed)
        inputs = rng.gamma(20.0, 1e-3, 60)  # an input that is slow is so both ways
        gain = measured_gain(0.8 * inputs + rng.normal(0, 1e-3, 60), inputs + rng.normal(0, 1e-3, 60), rng).mean
        held += gain.low <= 0.2 <= gain.high
    assert 0.90 <= held / num <= 0.99


def test_no_gain_is_not_certain_and_a_loss_is_negative():
    rng = np.random.default_rng(0)
    same = rng.gamma(20.0, 1e-3, 60)
    assert not measured_gain(rng.permutation(same), same, rng).mean.is_certain
    loss = measured_gain(2 * same, same, rng)
    assert loss.mean.fraction == loss.p95.fraction == pytest.approx(-1.0)
    assert loss.num_pairs == 60


@pytest.mark.parametrize(("ours", "theirs"), [([1.0] * 9, [1.0] * 10), ([1.0] * 7, [1.0] * 7)])
def test_too_few_pairs_or_none_are_refused(ours, theirs):
    with pytest.raises(InputError, match="pairs of answers, at least 8"):
        measured_gain(ours, theirs, np.random.default_rng(0))


def test_a_mispredicted_share_shows_in_the_stream_though_every_path_is_right():
    private = Policy(raw_may_reach=Tier.DEVICE)
    made = plan(graph(), profiles(), [FAST, WAN], private, evidence(), codecs=("none", "int8"))
    first, last = made.predicted.paths
    assert (first.fraction, last.fraction) == pytest.approx((0.6, 0.4))
    rows = [(path.exit_index, path.p50_s) for path, num in ((first, 20), (last, 80)) for _ in range(num)]
    assert prediction_error(made, rows, num_warm_up=0).median_abs_error_fraction == pytest.approx(0.0)
    found = stream_error(made, [*rows, (None, last.p50_s)])
    assert found.largest_share_error == pytest.approx(0.4)
    assert found.measured_s[1] == last.p50_s
    assert found.error_fractions[1] > 0.15
    assert found.num_requests == 101
    with pytest.raises(InputError, match="no request was answered"):
        stream_error(made, [])
