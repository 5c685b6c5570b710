"""Held-out data at the coordinator, and how a model's answers to them are judged: by labels, one array or several by name.

The coordinator has the exported graph and these arrays, neither torch nor the task's code: what it can say of an example is
whether the outputs that score classes are right. Where it is given the task's file, too, the task's own metrics are asked beside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.core.array_file import read_arrays
from edgewise.core.errors import DataError
from edgewise.core.provenance import traced
from edgewise.inference.evidence import plan_evidence, run_graph
from edgewise.models.examples import map_arrays, named
from edgewise.models.graph.graph import Graph
from edgewise.models.task import Task
from edgewise.models.version import ExitEvidence
from edgewise.planning.moves.exits import measure_exits

PUBLIC = "public"
"""Data class of held-out data that its owner gave to the coordinator; it may be anywhere."""
_PARTED = "/"


@dataclass(frozen=True, slots=True)
class Holdout:
    """What the coordinator evaluates versions of a model on; inputs and targets are arrays, or dicts of them by name.

    Attributes:
        calibration_x, calibration_y: Choose thresholds and give plan evidence.
        gate_x, gate_y: Decide whether a version may serve.
    """

    calibration_x: Any
    calibration_y: Any
    gate_x: Any
    gate_y: Any

    @staticmethod
    def load(path: str | Path) -> Holdout:
        """Reads an npz with these four arrays, or with `gate_x/NAME` where there are several.

        Raises:
            DataError: If the file or an array is missing.
        """
        try:
            arrays = read_arrays(path)
        except OSError as error:
            raise DataError(f"held-out data {str(path)!r} cannot be read: {error.strerror or error}.") from error
        parts = {name: _tree(arrays, name) for name in Holdout.__slots__}
        missing = [name for name, tree in parts.items() if tree is None]
        if missing:
            raise DataError(
                f"held-out data {str(path)!r} has no {missing[0]}. Needed is an npz with {', '.join(Holdout.__slots__)}."
            )
        return Holdout(**parts)


def arrays_of(name: str, tree: Any) -> dict[str, NDArray[Any]]:
    """An array, or several by name, as an npz holds them.

    Args:
        name: Of the part, e.g. `gate_x`.
        tree: The array, or a dict of them.

    Returns:
        By name in the file.
    """
    return {f"{name}{_PARTED}{key}" if key else name: np.asarray(array) for key, array in named(tree).items()}


def load_holdouts(text: str) -> dict[str, Holdout]:
    """Reads the files of held-out data that an operator names.

    Args:
        text: `FILE` for every model that has none of its own, `MODEL=FILE` for one; several with commas between.

    Returns:
        By model; under "" what is for the others.

    Raises:
        DataError: As `Holdout.load`.
    """
    found = {}
    for item in filter(None, text.split(",")):
        name, _, path = item.rpartition("=")
        found[name] = Holdout.load(path)
    return found


def load_judge(source: str) -> Task | None:
    """The task whose own metrics are told of held-out data.

    Args:
        source: Its file, or a built-in name; "" for none.

    Returns:
        The task.

    Raises:
        TaskError: If the file cannot be used.
    """
    if not source:
        return None
    from edgewise.training.job import make_task

    return make_task(source, {})


def feeds_of(graph: Graph, inputs: Any) -> dict[str, NDArray[Any]]:
    """Inputs by the graph's names; those that it does not take are left out.

    Args:
        graph: With one input where `inputs` is an array.
        inputs: [n, …], or a dict of them.

    Returns:
        By input.
    """
    takes = [tensor.name for tensor in graph.inputs]
    if not isinstance(inputs, Mapping):
        return {takes[0]: inputs}
    return {name: inputs[name] for name in takes}


def misfit(graph: Graph, inputs: Any, targets: Any, model: str) -> str:
    """Why a model cannot be judged on labelled examples.

    Args:
        graph: The model.
        inputs: Of the examples.
        targets: Of the examples.
        model: Its name.

    Returns:
        A sentence; "" if it takes the inputs, and some of its outputs score the classes of targets.
    """
    takes, given = graph.inputs, named(inputs)
    if "" in given and len(takes) == 1:
        given = {takes[0].name: given[""]}
    if not all(t.name in given and _takes(t, given[t.name]) for t in takes):
        wanted = ", ".join(f"{t.name} {t.dtype}{list(t.shape[1:])}" for t in takes)
        found = " and ".join(f"{name} {a.dtype}{list(a.shape[1:])}".strip() for name, a in named(inputs).items())
        return f"held-out examples {found} are not what model {model!r} takes: {wanted}."
    if judged_of(graph, targets):
        return ""
    outputs = ", ".join(f"{t.name!r} {t.dtype}{list(t.shape)}" for t in graph.outputs)
    labels = ", ".join(f"{name} {array.dtype}{list(array.shape[1:])}".strip() for name, array in named(targets).items())
    return (
        f"no output of model {model!r} gives scores of classes that held-out targets {labels} are labels of: {outputs}."
    )


def judged_of(graph: Graph, targets: Any) -> dict[str, NDArray[Any]]:
    """Which outputs are judged, and by which labels: those of a target's name; a lone target's is the end, or the only one.

    Args:
        graph: The model.
        targets: An array, or a dict of them.

    Returns:
        Labels, int[n], by output; empty where nothing can be judged.
    """
    scores = [tensor.name for tensor in graph.outputs if _scores(graph, tensor.name)]
    labels = {name: np.asarray(array) for name, array in named(targets).items()}
    labels = {name: a for name, a in labels.items() if a.dtype.kind in "iu" and a.size == len(a)}
    if "" not in labels:
        return {name: labels[name] for name in scores if name in labels}
    if all(_scores(graph, name) for name in graph.exits):
        return {graph.exits[-1]: labels[""]}
    return {scores[0]: labels[""]} if len(scores) == 1 and len(graph.exits) == 1 else {}


def is_right(graph: Graph, inputs: Any, targets: Any) -> NDArray[np.bool_]:
    """Whether each example is answered rightly, by every output that is judged.

    Args:
        graph: A model that fits.
        inputs: Of the examples.
        targets: Of the examples.

    Returns:
        bool[n].
    """
    judged = judged_of(graph, targets)
    outputs = run_graph(graph.model_bytes, feeds_of(graph, inputs), list(judged))
    right = [
        found.reshape(len(y), -1).argmax(-1) == y.reshape(-1) for found, y in zip(outputs, judged.values(), strict=True)
    ]
    return np.asarray(np.logical_and.reduce(right))


def evidence_of(graph: Graph, inputs: Any, targets: Any) -> tuple[ExitEvidence, ...]:
    """What is known of a model on labelled examples, for plans.

    Args:
        graph: A model that fits.
        inputs: Of the examples.
        targets: Of the examples.

    Returns:
        Rows for `ModelVersion.evidence`; of its end alone, uncoded, where other outputs than exits are judged.
    """
    judged = judged_of(graph, targets)
    if list(judged) == [graph.exits[-1]] and "" in named(targets):
        return plan_evidence(graph, feeds_of(graph, inputs), np.asarray(targets).reshape(-1))
    right = is_right(graph, inputs, targets)
    return measure_exits(
        {"none": [np.stack((right, ~right), axis=1).astype(np.float32)]}, np.zeros(len(right), np.int64)
    )


def own_metrics(task: Task | None, graph: Graph, inputs: Any, targets: Any) -> dict[str, float]:
    """The task's own metrics of a model's answers.

    Args:
        task: Installed here.
        graph: Exported from its model.
        inputs: Of the examples.
        targets: Of the examples.

    Returns:
        By name.
    """
    names = [tensor.name for tensor in graph.outputs]
    found = dict(zip(names, run_graph(graph.model_bytes, feeds_of(graph, inputs), names), strict=True))
    outputs: Any = tuple(found[name] for name in graph.exits) if set(graph.exits) == set(names) else found
    scores = {} if task is None else task.metrics(outputs, map_arrays(lambda array: np.array(array), targets))
    return {str(name): float(value) for name, value in scores.items()}


def _tree(arrays: Mapping[str, NDArray[Any]], name: str) -> Any:
    if name in arrays:
        return traced(arrays[name], PUBLIC)
    parts = {key.partition(_PARTED)[2]: key for key in arrays if key.startswith(f"{name}{_PARTED}")}
    return {part: traced(arrays[key], PUBLIC) for part, key in parts.items()} or None


def _takes(tensor: Any, array: NDArray[Any]) -> bool:
    shape = array.shape
    return (
        len(tensor.shape) == array.ndim
        and tensor.dtype == str(array.dtype)
        and all(wanted in (None, size) for wanted, size in zip(tensor.open_shape[1:], shape[1:], strict=True))
    )


def _scores(graph: Graph, name: str) -> bool:
    """Whether an output gives a score for each of two classes or more."""
    tensor = graph.tensor(name)
    sizes = tensor.shape[1:]
    return bool(sizes) and tensor.dtype.startswith("float") and max(sizes) == prod(sizes)
