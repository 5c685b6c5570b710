"""What a model said, read for people: a label, several outputs by name, detections as rows. Never a class that is none.

A class is the highest score only where the outputs say so: one output of scores, or the end of a model whose other outputs are
named exits, or the output that was asked for. A model that answers its label itself, as scikit-learn's do, is believed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from edgewise.core.errors import InputError, nearest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Outputs = Mapping[str, NDArray[Any]]

_MOST_ENTRIES = 1000
_SHORT = 4


class ModelFacts(msgspec.Struct, frozen=True):
    """What the endpoint says of a model's outputs.

    Attributes:
        labels: Names of the classes by output.
        exits: Outputs that are exits, the end last.
        varying: Outputs with as many rows as were found: their first axis may have any size, or the one behind the batch.
    """

    labels: Mapping[str, Sequence[str]] = {}
    exits: tuple[str, ...] = ()
    varying: frozenset[str] = frozenset()


def facts_of(config: Mapping[str, Any]) -> ModelFacts:
    """Reads a model's configuration.

    Args:
        config: From `/v2/models/NAME/config`; {} where the endpoint has none.
    """
    outputs, inputs = config.get("output", ()), config.get("input", ())
    has_batch = any(given["dims"][:1] == [-1] for given in inputs)
    named = str(config.get("parameters", {}).get("exits", {}).get("string_value", ""))
    return ModelFacts(
        {output["name"]: output.get("labels", ()) for output in outputs},
        tuple(name for name in named.split(",") if name),
        frozenset(o["name"] for o in outputs if -1 in _rows(o["dims"], has_batch)),
    )


def _rows(dims: Sequence[int], has_batch: bool) -> Sequence[int]:
    """The axis of an output that counts what was found; others may vary, too, and are no rows."""
    return dims[1:2] if has_batch or dims[:1] == [1] else dims[:1]


def class_output(outputs: Outputs, facts: ModelFacts, asked: str = "") -> str:
    """Which output says the class.

    Args:
        outputs: One answer.
        facts: What is known of the model.
        asked: Named by the user; "" if none was.

    Returns:
        Its name; "" if there is none, or nobody can say which.

    Raises:
        InputError: If the one that was asked for is not there.
    """
    if asked:
        if asked not in outputs:
            raise InputError(f"the model has no output {asked!r}.{nearest(asked, outputs)}")
        return asked
    if len(facts.exits) > 1 and facts.exits[-1] in outputs:
        return facts.exits[-1]
    said = [name for name, array in outputs.items() if array.size == 1 and array.dtype.kind in "Oiu"]
    if len(said) == 1:
        return said[0]
    scores = [name for name in outputs if is_scores(outputs[name]) and name not in facts.varying]
    return scores[0] if len(outputs) == len(scores) == 1 else ""


def is_scores(array: NDArray[Any]) -> bool:
    """Whether an array may be the scores of one example's classes: one axis has them all, as in [1, 1000] or [1, 1000, 1, 1]."""
    return array.dtype.kind == "f" and array.size > 1 and array.size in array.shape


def said_class(array: NDArray[Any]) -> int | str | None:
    """The class that an output says.

    Args:
        array: Of the class output, for one example.

    Returns:
        The label or number it is, or the index of the highest score; None for anything else, and where a score is no number.
    """
    if array.size == 1 and array.dtype.kind in "Oiu":
        value = array.ravel()[0]
        return value if isinstance(value, str) else int(value)
    return int(array.argmax()) if is_scores(array) and not (array != array).any() else None


def label_of(said: int | str | None, labels: Sequence[str]) -> str:
    """A class in words: its label where there is one."""
    if isinstance(said, int) and 0 <= said < len(labels):
        return labels[said]
    return "" if said is None else str(said)


def found_rows(outputs: Outputs, facts: ModelFacts) -> list[dict[str, Any]] | None:
    """The rows of a detector's answer: a box, a score, a class in each.

    Args:
        outputs: One answer.
        facts: What is known of the model.

    Returns:
        A row per thing found, by output (and number, where an output has several entries a row); None if this is no
        table.
    """
    is_batch = {name: array.ndim > 1 and len(array) == 1 for name, array in outputs.items()}
    columns = {name: array[0] if is_batch[name] else array for name, array in outputs.items()}
    is_varying = any(name in facts.varying for name in columns)
    columns = {name: array for name, array in columns.items() if array.ndim in (1, 2)}
    counts = {len(array) for array in columns.values()}
    is_table = len(columns) == len(outputs) and len(counts) == 1 and any(array.ndim == 2 for array in columns.values())
    is_alike = len({is_batch[name] for name in columns}) == 1  # a table of anchors is no row of what was found
    if not is_table or not (is_varying or (len(columns) > 1 and counts != {1} and is_alike)):
        return None
    rows: list[dict[str, Any]] = [{} for _ in range(counts.pop())]
    for name, array in columns.items():
        for row, values in zip(rows, array.tolist(), strict=True):
            pairs = enumerate(values) if isinstance(values, list) else [("", values)]
            row.update({f"{name}[{key}]" if key != "" else name: value for key, value in pairs})
    return rows


def in_short(array: NDArray[Any], labels: Sequence[str] = ()) -> str:
    """An output in a table's cell: its values, its best class, or its shape where it is large.

    Args:
        array: For one example.
        labels: Names of its classes, if it has any.
    """
    if labels and said_class(array) is not None:
        best = int(array.argmax())
        return f"{label_of(best, labels)} ({array.ravel()[best]:.3g})"
    values = array.ravel().tolist()
    words = [value if isinstance(value, str) else f"{value:.4g}" for value in values[:_SHORT]]
    if array.size == 1:
        return words[0]
    if not array.size or array.size > 2 * _SHORT:
        return f"{'BYTES' if array.dtype.kind == 'O' else array.dtype}{list(array.shape)}"
    return f"[{', '.join(words)}{', …' if array.size > _SHORT else ''}]"


def as_plain(outputs: Outputs) -> dict[str, Any]:
    """An answer for JSON: nested lists, or of a large array its shape and dtype.

    Args:
        outputs: One answer.
    """
    return {
        name: array.tolist() if array.size <= _MOST_ENTRIES else {"shape": list(array.shape), "dtype": str(array.dtype)}
        for name, array in outputs.items()
    }
