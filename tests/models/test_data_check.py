"""What is said of a client's data before anything is trained on it: converted with a note, or refused with a sentence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from edgewise.core.errors import DataError, EdgewiseError
from edgewise.core.provenance import RAW, origins_of
from edgewise.models.data_check import DataCheck
from edgewise.models.task import Examples, Task


class Points(Task):
    """Made of settings: `held`, `build`, `loss`."""

    name, input_shape, num_classes = "points", (4,), 3

    def model(self):
        return self.settings.get("build", lambda: nn.Linear(4, 3))()

    def loss(self, outputs, targets):
        return self.settings.get("loss", functional.cross_entropy)(outputs, targets)

    def clients(self):
        return ["a"]

    def data(self, client):
        return self.settings["held"]()


def drawn(dtype="f4", targets="i8", n=6):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 4)).astype(dtype), rng.integers(0, 3, n).astype(targets)


def checked(held, **settings):
    return DataCheck(Points(held=held, **settings)).data("a")


def test_data_as_they_should_be_stay_the_very_same():
    held = Examples.of(*drawn())
    found = checked(lambda: held)
    assert found.examples is held
    assert found.notes == ()


@pytest.mark.parametrize(("inputs", "targets"), [("f8", "i8"), ("f2", "i4"), ("f4", "u1"), (">f4", "i2"), ("i4", "i8")])
def test_other_number_types_are_converted_with_a_note_and_are_still_raw(inputs, targets):
    given = drawn(inputs, targets)
    found = checked(lambda: Examples.of(*given))
    assert (found.examples.inputs.dtype, found.examples.targets.dtype) == (np.float32, np.int64)
    assert np.allclose(found.examples.inputs, given[0].astype("f8"))
    assert (found.examples.targets == given[1]).all()
    assert RAW in origins_of(found.examples.inputs)
    assert any("are converted" in note for note in found.notes)


def test_tensors_and_labels_as_floats_are_taken():
    x, y = drawn()
    found = checked(lambda: Examples.of(torch.tensor(x), y.astype("f4")))
    assert found.examples.targets.dtype == np.int64
    assert found.notes == ("targets are converted, as the model or the loss takes them: float32 to int64",)


def test_truth_values_become_what_the_loss_takes():
    binary = functional.binary_cross_entropy_with_logits
    found = checked(lambda: Examples.of(drawn()[0], np.eye(3, dtype=bool)[drawn()[1]]), loss=binary)
    assert found.examples.targets.dtype == np.float32


def test_examples_held_twice_are_counted():
    x, y = drawn()
    found = checked(lambda: Examples.of(np.concatenate([x, x[:2]]), np.concatenate([y, y[:2]])))
    assert found.notes == ("4 of its 8 examples have inputs that another of them has, too",)


def spoilt(place, value, part=0):
    arrays = list(drawn())
    arrays[part][place] = value
    return lambda: Examples.of(*arrays)


def reshaped(*shape):
    return lambda: Examples.of(np.zeros(shape, np.float32), np.zeros(shape[0], int))


@pytest.mark.parametrize(
    ("held", "settings", "message"),
    [
        (spoilt((3, 1), np.nan), {}, r"inputs of 1 of 6 examples are not finite, the first is example 3\. Drop or fill"),
        (spoilt((0, 0), -np.inf), {}, "not finite"),
        (spoilt(2, 3, 1), {}, r"1 labels are outside 0 to 2, e.g. \[3\]; num_classes is 3\. Count labels from 0"),
        (spoilt(2, -1, 1), {}, r"1 labels are outside 0 to 2, e.g. \[-1\]"),
        (reshaped(6, 5), {}, r"one example \(5,\); input_shape is \(4,\)\. Reshape the data, or correct input_shape"),
        (lambda: Examples.of(np.array([["a"] * 4] * 6), drawn()[1]), {}, "needed are numbers"),
        (lambda: Examples.of(drawn()[0] * 1e300, drawn()[1]), {}, None),
        (lambda: Examples.of(drawn("f8")[0] * 1e300, drawn()[1]), {}, "beyond float32"),
        (lambda: Examples.of(drawn()[0], drawn()[1][:3]), {}, "6 inputs, 3 targets do not belong together"),
        (lambda: drawn(), {}, r"they are a tuple\. Return Examples.of\(inputs, targets\)"),
        (lambda: {}["here"], {}, r"KeyError: 'here' \(test_data_check.py:\d+\)"),
        (lambda: Examples.of({"x": drawn()[0]}, drawn()[1]), {}, "the same names"),
        (lambda: Examples.of(*drawn()), {"build": lambda: nn.Embedding(9, 3)}, r"the model does not take float32\[4\]"),
        (lambda: Examples.of(*drawn()), {"build": lambda: 1 / 0}, r"makes no model: ZeroDivisionError.*_check.py:\d+\)"),
        (lambda: Examples.of(*drawn()), {"loss": lambda o, t: o.sum(1)}, r"shape \(2,\), needed is one number"),
        (lambda: Examples.of(*drawn()), {"loss": lambda o, t: o[9]}, r"the loss .*IndexError.*data_check.py:\d+\)"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_on_is_refused_with_a_sentence(held, settings, message):
    if message is None:  # float32 overflows where it is multiplied, which is the user's arithmetic
        message = "not finite"
    with np.errstate(over="ignore"), pytest.raises(EdgewiseError, match=message) as error:
        checked(held, **settings)
    assert "\n" not in error.value.message
    assert "client 'a'" in error.value.message


def test_a_label_that_torch_leaves_out_is_no_fault():
    assert checked(spoilt(2, -100, 1)).notes == ()


def test_empty_data_are_left_as_they_are():
    assert len(checked(lambda: Examples.of(*drawn(n=0))).examples) == 0
    assert issubclass(DataError, EdgewiseError)


class Unnumbered(Points):
    """Says neither its shape nor how many classes there are; each client has what its settings hold."""

    name, input_shape, num_classes = "unnumbered", (), 0

    def data(self, client):
        return Examples.of(*self.settings[client])


def test_a_label_or_a_token_beyond_the_model_is_found_wherever_it_stands():
    x, y = drawn()
    y[:] = [0, 1, 2, 1, 0, 1]
    beyond = np.array([0, 1, 1, 1, 0, 3])
    check = DataCheck(Unnumbered(a=(x, y), b=(x, beyond), c=(x, y)))
    check.data("a")
    with pytest.raises(
        EdgewiseError, match=r"data of client 'b'.* does not take targets int64\[\] from 0 to 3.*Target 3"
    ):
        check.data("b")
    check.data("c")
    tokens = np.array([[0, 4], [1, 4], [2, 4], [7, 4]])

    def build():
        return nn.Sequential(nn.Embedding(5, 2), nn.Flatten(), nn.Linear(4, 3))

    with pytest.raises(EdgewiseError, match=r"does not take int64\[2\] from 2 to 7"):
        DataCheck(Unnumbered(a=(tokens, y[:4]), build=build)).data("a")
