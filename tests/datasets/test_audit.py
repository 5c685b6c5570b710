import numpy as np
import pytest

from edgewise.core.errors import DataError
from edgewise.datasets.audit import audit


def test_identical_shares_have_no_skew():
    assert audit({"a": np.array([0, 1]), "b": np.array([0, 0, 1, 1])}).label_skew == 0


def test_one_label_per_client_has_the_skew_of_its_total_variation():
    # Two clients, one label each, equally many: distance of (1, 0) from (1/2, 1/2) is 1/2.
    assert audit({"a": np.zeros(5, int), "b": np.ones(5, int)}).label_skew == pytest.approx(0.5)


def test_empty_clients_are_named():
    found = audit({"a": np.array([0, 1]), "b": np.array([], int)})
    assert found.empty_clients == ("b",)
    assert "1 clients hold no examples and will be left out: b." in str(found)


def test_an_example_held_twice_is_counted():
    inputs = {"a": np.array([[1.0], [2.0]]), "b": np.array([[2.0], [3.0]])}
    found = audit({"a": np.array([0, 1]), "b": np.array([1, 2])}, inputs)
    assert found.duplicates == 1
    assert "1 examples are held by more than one client" in str(found)


def test_the_text_gives_clients_examples_and_labels():
    text = str(audit({"device-1": np.array([0, 0, 1]), "device-2": np.array([1])}))
    assert text.splitlines()[0].startswith("clients 2   examples 4   per client 1 to 3")
    assert "device-1       3  0:2 1:1" in text


def test_strong_skew_is_a_warning():
    found = audit({str(label): np.full(3, label) for label in range(10)})
    assert found.label_skew == pytest.approx(0.9)
    assert "label skew 0.90 is strong" in found.warnings[0]


def test_targets_that_are_no_labels_have_no_label_counts():
    found = audit({"a": np.array([0.5, 1.5])})
    assert found.label_counts == {}
    assert found.label_skew == 0


def test_long_tables_are_cut():
    assert "… and 5 more" in str(audit({f"c{i:02}": np.array([0]) for i in range(25)}))


def test_no_clients_are_refused():
    with pytest.raises(DataError, match="a split without clients cannot be audited"):
        audit({})
