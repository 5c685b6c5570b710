"""Plan evidence of a version: how its exits behave on calibration data, uncut and behind each codec at its narrowest cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.codecs import make_codec
from edgewise.inference.gates.frame_difference import frame_difference
from edgewise.inference.stages import make_session
from edgewise.models.graph.condense import Frontier
from edgewise.models.graph.graph import Graph
from edgewise.models.version import ExitEvidence
from edgewise.planning.moves.exits import measure_exits
from edgewise.planning.moves.filters import FilterEvidence

CODECS = ("none", "int8")
FILTER_THRESHOLDS = (0.01, 0.02, 0.05, 0.1, 0.2)


def run_graph(model: bytes, feeds: dict[str, NDArray[Any]], outputs: Sequence[str] = ()) -> list[NDArray[Any]]:
    """Runs ONNX bytes on a batch; a model fixed at batch 1 is run example by example.

    Args:
        model: ONNX bytes.
        feeds: Arrays by input name, first axis n.
        outputs: Names wanted; () for all.

    Returns:
        One array per output, first axis n.
    """
    session = make_session(model)
    plain = {name: np.ascontiguousarray(np.asarray(array)) for name, array in feeds.items()}
    names = list(outputs) or [o.name for o in session.get_outputs()]
    num = len(next(iter(plain.values())))
    if not isinstance(session.get_inputs()[0].shape[0], int):
        return list(session.run(names, plain))
    rows = [session.run(names, {k: v[i : i + 1] for k, v in plain.items()}) for i in range(num)]
    return [np.concatenate(column) for column in zip(*rows, strict=True)]


def narrowest_cut(graph: Graph) -> Frontier | None:
    """The cut with the fewest bytes among those behind trained weights; None in a graph without an inner cut."""
    raw = graph.condensed.raw_tensors
    inner = [f for f in graph.condensed.cuts(1) if f.tensors and not set(f.tensors) & raw]
    return min(inner, key=lambda f: (f.size_bytes, f.position), default=None)


def plan_evidence(
    source: bytes | Graph, inputs: Any, targets: NDArray[Any], codecs: Sequence[str] = CODECS
) -> tuple[ExitEvidence, ...]:
    """Measures every exit policy of a graph on calibration data.

    Args:
        source: ONNX bytes or the graph.
        inputs: float32[n, …] of its only input, or a dict of arrays by input.
        targets: int[n]; without labels give the whole model's own answers, then accuracy means agreement.
        codecs: Spec texts of the codecs to try at the cut; `none` is always measured.

    Returns:
        Rows for `ModelVersion.evidence`.
    """
    graph = source if isinstance(source, Graph) else Graph.load(source)
    feeds = dict(inputs) if isinstance(inputs, Mapping) else {graph.inputs[0].name: inputs}
    exits = list(graph.exits)
    logits = {"none": _flat(run_graph(graph.whole, feeds, exits))}
    cut = narrowest_cut(graph)
    for codec in codecs:
        if codec != "none" and cut is not None:
            logits[codec] = _coded(graph, cut, codec, feeds, logits["none"], exits)
    return measure_exits(logits, np.asarray(targets))


def filter_evidence(
    frames: NDArray[Any],
    answers: NDArray[Any],
    thresholds: Sequence[float] = FILTER_THRESHOLDS,
    *,
    every: int = 30,
    cells: int = 1,
) -> tuple[FilterEvidence, ...]:
    """Measures what a frame-difference filter does on a recording.

    Args:
        frames: [n, …], in the order they came.
        answers: [n, classes], the whole model's logits on them.
        thresholds: To try.
        every: As in `frame_difference`.
        cells: As in `frame_difference`.

    Returns:
        A row per threshold.
    """
    rows, classes = [], np.asarray(answers).reshape(len(frames), -1).argmax(axis=1)
    for threshold in thresholds:
        rule, state, filtered, right = frame_difference(threshold, every, cells), None, 0, 0
        assert rule.learn is not None
        for frame, own in zip(frames, classes, strict=True):
            answer, state = rule.ask({"frame": frame}, state)
            if answer is None:
                state = rule.learn({"frame": frame}, {"class": own}, state)
            else:
                filtered, right = filtered + 1, right + int(answer["class"] == own)
        spec = f"frame_difference(every={every}, cells={cells})"
        agreement = right / filtered if filtered else 1.0
        rows.append(FilterEvidence(spec, float(threshold), filtered / len(frames), agreement, len(frames)))
    return tuple(rows)


def _coded(
    graph: Graph,
    cut: Frontier,
    codec_spec: str,
    feeds: dict[str, NDArray[Any]],
    uncoded: list[NDArray[Any]],
    exits: list[str],
) -> list[NDArray[Any]]:
    codec = make_codec(codec_spec)
    head = graph.extract([t.name for t in graph.inputs], cut.tensors)
    coded = {}
    for tensor, array in zip(cut.tensors, run_graph(head, feeds, cut.tensors), strict=True):
        array = np.asarray(array, np.float32)
        payload, _ = codec.encode(array, codec.init(array.shape), np.random.default_rng(0))
        coded[tensor] = codec.decode(payload)
    behind = [e for e in exits if graph.condensed.producer[e] >= cut.position]
    if not behind:
        return uncoded
    run = dict(zip(behind, _flat(run_graph(graph.extract(cut.tensors, behind), coded, behind)), strict=True))
    return [run.get(e, logits) for e, logits in zip(exits, uncoded, strict=True)]


def _flat(arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    return [np.asarray(a, np.float32).reshape(len(a), -1) for a in arrays]
