"""Groups are what the runtime fuses: cut between them, head and tail equal the whole to the last bit."""

import os
from pathlib import Path

import numpy as np
import pytest

from edgewise.core.errors import GraphError
from edgewise.models.graph.graph import Graph
from tests.models.toys import digits_cnn, inception, rearranged, residual

TOYS = {f.__name__: f for f in (digits_cnn, residual, inception, rearranged)}
SHARED = ("SqueezeNet_fp16", "resnet_2b", "cifar_wide_kw", "yolox_nano")


def run(model: bytes, feeds):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def assert_cuts_are_exact(graph: Graph, every: int = 1) -> None:
    rng = np.random.default_rng(0)
    feeds = {t.name: rng.normal(size=t.shape).astype(t.dtype) for t in graph.inputs}
    whole, condensed = run(graph.whole, feeds), graph.condensed
    for cut in condensed.cuts()[1::every]:
        names = [g.name for g in condensed.groups]
        values = feeds | run(graph.extract(*condensed.boundary(names[: cut.position])), feeds)
        inputs, outputs = condensed.boundary(names[cut.position :])
        values |= run(graph.extract(inputs, outputs), {n: values[n] for n in inputs})
        for name, expected in whole.items():
            assert np.array_equal(values[name], expected), (cut.position, cut.tensors)


@pytest.mark.parametrize("name", TOYS)
def test_head_and_tail_equal_the_whole_to_the_last_bit(name):
    assert_cuts_are_exact(Graph.load(TOYS[name]()))


@pytest.mark.parametrize(
    ("name", "every"), [("SqueezeNet_fp16", 3), ("resnet_2b", 1), ("cifar_wide_kw", 1), ("yolox_nano", 9)]
)
def test_real_models_are_cut_to_the_last_bit_and_equal_their_file(name, every):
    folder = Path(os.environ.get("EDGEWISE_DATA", "")) / "onnx"
    if not (folder / f"{name}.onnx").is_file():
        pytest.skip("EDGEWISE_DATA does not point at the ONNX models")
    graph = Graph.load(folder / f"{name}.onnx")
    assert_cuts_are_exact(graph, every)
    feeds = {t.name: np.ones(t.shape, t.dtype) for t in graph.inputs}
    file, whole = run((folder / f"{name}.onnx").read_bytes(), feeds), run(graph.whole, feeds)
    assert all(np.array_equal(file[n], whole[n]) for n in file)


def test_a_convolution_takes_its_activation_and_the_sum_behind_it():
    graph = Graph.load(residual())
    ops = {n.name: n.op for n in graph.nodes}
    groups = [tuple(ops[n] for n in g.nodes) for g in graph.condensed.groups]
    assert groups[0] == ("Conv", "Relu")
    assert groups[2] == ("Conv", "Add", "Relu")


def test_a_gate_of_sigmoid_and_product_is_one_group():
    graph = Graph.load(inception())
    ops = {n.name: n.op for n in graph.nodes}
    assert [ops[n] for n in graph.condensed.groups[0].nodes] == ["Conv", "Sigmoid", "Mul"]


def test_a_shared_tensor_is_alive_once_until_its_last_reader():
    condensed = Graph.load(inception()).condensed
    shared = condensed.groups[0].outputs[0]
    assert len(condensed.consumers[shared]) == 3
    last = max(condensed.consumers[shared])
    assert all(condensed.live(p).count(shared) == 1 for p in range(1, last + 1))
    assert shared not in condensed.live(last + 1)


def test_groups_of_an_earlier_exit_come_first():
    condensed = Graph.load(digits_cnn()).condensed
    stages = [g.exit_index for g in condensed.groups]
    assert stages == sorted(stages)
    assert [condensed.groups[i].exit_index for i in condensed.exit_groups] == [0, 1, 2]
    position = {g.index: n for n, g in enumerate(condensed.groups)}
    assert all(position[u] < position[v] for u, v in condensed.edges)


def test_cuts_list_every_single_tensor_frontier_with_its_bytes():
    graph = Graph.load(residual())
    cuts = graph.condensed.cuts(max_tensors=1)
    assert cuts[0].tensors == ("input",)
    assert all(len(c.tensors) == 1 and c.size_bytes == graph.tensors[c.tensors[0]].size_bytes for c in cuts)


def test_a_piece_of_consecutive_groups_runs():
    graph = Graph.load(digits_cnn())
    assert set(run(graph.condensed.piece(0, 0), {"input": np.ones((1, 1, 8, 8), np.float32)})) == set(
        graph.condensed.groups[0].outputs
    )


def test_an_unknown_group_is_refused():
    with pytest.raises(GraphError, match=r"has no group 'g0.Convv'. Did you mean 'g0.Conv'"):
        Graph.load(residual()).condensed.boundary(["g0.Convv"])
