import collections

import numpy as np
import pytest
import torch

from edgewise.core.provenance import origins_of
from edgewise.core.seeds import Seeds
from edgewise.models.flat import initial_vector
from edgewise.training.local import choose_engine, make_engine, sgd
from edgewise.training.local.evaluate import Evaluator, evaluate
from tests.training.local.conftest import DenseTask


def test_outputs_are_one_array_per_exit_and_a_new_thing(exits_task):
    examples = exits_task.data("c3")
    outputs = Evaluator(exits_task, batch_size=8).outputs(initial_vector(exits_task, Seeds(0)), examples)
    assert [o.shape for o in outputs] == [(33, 4), (33, 4)]
    assert not origins_of(*outputs)


def test_batches_do_not_change_the_metrics(exits_task):
    vector, examples = initial_vector(exits_task, Seeds(0)), exits_task.data("c3")
    small, large = (Evaluator(exits_task, batch_size=size).metrics(vector, examples) for size in (5, 100))
    assert small == pytest.approx(large, abs=1e-5)
    assert set(small) == {"loss", "accuracy", "accuracy_exit_0", "accuracy_exit_1"}


def test_a_model_of_zeros_has_the_loss_of_guessing(dense_task):
    zeros = np.zeros_like(initial_vector(dense_task, Seeds(0)))
    assert evaluate(dense_task, zeros, dense_task.data("c3"))["loss"] == pytest.approx(np.log(4), abs=1e-6)


class Named(DenseTask):
    """Gives a named tuple, or a dict with what is no output and a part of the loss."""

    objective = ""

    def model(self):
        return Answers(super().model(), self.settings["form"])

    def loss(self, outputs, targets):
        scores = outputs.scores if hasattr(outputs, "scores") else outputs["scores"] + outputs["extra"]
        return torch.nn.functional.cross_entropy(scores, targets)

    def metrics(self, outputs, targets):
        scores = outputs.scores if hasattr(outputs, "scores") else outputs["scores"]
        return {"right": (scores.argmax(-1) == targets).mean(), **super().metrics(outputs, targets)}


class Answers(torch.nn.Module):
    def __init__(self, net, form):
        super().__init__()
        self.net, self.form = net, form

    def forward(self, x):
        scores = self.net(x)
        return self.form(scores) if self.form is not dict else {"scores": scores, "extra": scores.sum() * 0, "no": None}


Scores = collections.namedtuple("Scores", "scores")


@pytest.mark.parametrize("form", [Scores, dict])
def test_a_named_tuple_or_a_dict_is_evaluated_and_trained_on_as_the_plain_scores_are(dense_task, form):
    task, vector = Named(form=form), initial_vector(dense_task, Seeds(0))
    examples = dense_task.data("c3")
    plain, found = (Evaluator(t, batch_size=8).metrics(vector, examples) for t in (dense_task, task))
    assert found == pytest.approx({"loss": plain["loss"], "right": plain["accuracy"]})
    assert "stacked" in choose_engine(task, sgd(0.1), examples).refused or form is dict
    engine = make_engine("sequential", task)
    sent = engine.work_one(sgd(0.1, precision="bf16"), {"model": vector}, {}, examples, Seeds(0)).sent["model"]
    assert np.isfinite(sent).all()
