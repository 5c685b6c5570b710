"""Which outputs are exits: the user says so, or the file, or our exporter's names; else none but the end."""

from __future__ import annotations

import onnx
import pytest

from edgewise.core.errors import GraphError
from edgewise.models.graph.graph import Graph
from tests.inference.tiny import two_exit_graph
from tests.models.toys import digits_cnn


def test_outputs_are_exits_only_where_somebody_named_them() -> None:
    assert two_exit_graph(named=False).exits == ("end",)
    assert two_exit_graph(named=True).exits == ("early", "end")
    assert Graph.load(digits_cnn()).exits == ("exit_0", "exit_1", "exit_2")


def test_named_exits_travel_with_the_bytes() -> None:
    graph = two_exit_graph(named=True)
    again = Graph.load(graph.model_bytes)
    assert (again.exits, again.digest) == (graph.exits, graph.digest)
    other = Graph.load(graph.model_bytes, exits=("end",))
    assert (other.exits, other.digest == graph.digest) == (("end",), False)
    assert len(onnx.load_model_from_string(other.model_bytes).metadata_props) == 1


@pytest.mark.parametrize(
    ("exits", "message"),
    [
        (("erly", "end"), "has no output 'erly' that could be an exit.* Did you mean 'early'"),
        (("end", "end"), "exit 'end' of .* is named twice"),
    ],
)
def test_wrong_exits_are_refused(exits: tuple[str, ...], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        Graph.load(two_exit_graph(named=False).model_bytes, exits=exits)
