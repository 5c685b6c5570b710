import itertools
from dataclasses import replace

import pytest

from edgewise.core.errors import InputError, MisfitError
from edgewise.models.zoo.dense_stack import mlp
from edgewise.training.local import HVP, choose_engine, descent, local_work, make_engine


def _timer(spans):
    """Start and end of each timing; every engine is timed twice."""
    times = list(itertools.accumulate(value for span in spans for value in (0.0, span) for _ in range(1)))
    return iter(times).__next__


def test_a_pinned_name_ends_the_matter(dense_task, work):
    choice = choose_engine(dense_task, work, [], pinned="stacked")
    assert choice.engine.name == "stacked"
    assert choice.seconds == {}


def test_the_fastest_candidate_is_chosen(dense_task, work):
    sample = [dense_task.data("c0")]
    choice = choose_engine(dense_task, work, sample, timer=_timer([5, 5, 1, 1, 3, 3]))
    assert choice.seconds == {"sequential": 5, "stacked": 1, "dense": 3}
    assert choice.engine.name == "stacked"


def test_one_clients_examples_are_a_sample_too(dense_task, work):
    size = choose_engine(dense_task, work, dense_task.data("c0")).engine.layout.size
    assert size == (6 * 7 + 7) + (7 * 5 + 5) + (5 * 4 + 4)


def test_an_engine_that_does_not_serve_the_task_is_no_candidate(exits_task, work):
    choice = choose_engine(exits_task, work, [exits_task.data("c0")])
    assert "needs objective 'cross_entropy'" in choice.refused["dense"]
    assert set(choice.seconds) == {"sequential", "stacked"}


def test_an_engine_that_disagrees_is_no_candidate(exits_task, work):
    # A loss that is no mean over examples: the padded, weighted form is then another function.
    exits_task.loss = lambda outputs, targets: outputs[1].mean(0).square().sum()
    choice = choose_engine(exits_task, work, [exits_task.data("c3")])
    assert choice.engine.name == "sequential"
    assert "its updates differ from those of sequential" in choice.refused["stacked"]


def test_large_models_are_never_stacked(dense_task, work):
    dense_task.model = lambda: mlp((6, 20_000, 4))
    choice = choose_engine(dense_task, work, [dense_task.data("c0")])
    assert choice.engine.name == "sequential"
    assert choice.refused["dense"] == "220,004 parameters, more than 200,000"


def test_no_sample_is_refused(dense_task, work):
    with pytest.raises(InputError, match="an engine cannot be chosen without examples"):
        choose_engine(dense_task, work, [])


def test_an_unknown_engine_is_refused(dense_task):
    with pytest.raises(InputError, match=r"there is no local engine 'denze'. Did you mean 'dense'"):
        make_engine("denze", dense_task)


def test_dense_refuses_another_graph(dense_task):
    dense_task.model = lambda: mlp((6, 4)).append(mlp((4, 4)))
    with pytest.raises(MisfitError, match=r"needs nn.Sequential of Flatten.*'tiny-dense' has \['Flatten', 'Linear'"):
        make_engine("dense", dense_task)


def test_dense_refuses_a_loss_that_is_not_what_the_objective_says(dense_task):
    honest = dense_task.loss
    dense_task.loss = lambda outputs, targets: 2 * honest(outputs, targets)
    with pytest.raises(MisfitError, match="says objective 'cross_entropy', but its loss of a random batch is"):
        make_engine("dense", dense_task)


def test_an_engine_that_does_not_answer_what_a_rule_asks_is_no_candidate(dense_task):
    asking = local_work(replace(descent(0.1), needs=frozenset(("gradient", HVP))))
    choice = choose_engine(dense_task, asking, [dense_task.data("c0")])
    assert choice.refused == {"dense": choice.refused["dense"]}
    assert (
        "asks an engine for ['hvp'], engine 'dense' answers ['gradient', 'loss', 'outputs']" in choice.refused["dense"]
    )
    with pytest.raises(MisfitError, match="Use engine 'sequential', which answers everything"):
        choose_engine(dense_task, asking, [], pinned="dense")


def test_a_model_with_running_statistics_is_not_stacked(normed_task, work):
    choice = choose_engine(normed_task, work, [normed_task.data("c3")])
    assert choice.engine.name == "sequential"
    assert (
        "keeps running statistics, which the padded batches of engine 'stacked' would disturb"
        in choice.refused["stacked"]
    )
