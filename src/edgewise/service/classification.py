"""Triton's classification extension: the best classes of an output as strings `score:index:label`. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.core.errors import InputError


def best_classes(scores: NDArray[Any], num: int, labels: Sequence[str] = ()) -> NDArray[Any]:
    """The classes with the highest scores, best first.

    Args:
        scores: Numbers [n, ...], the classes of each example in its other axes; or [classes].
        num: How many are wanted; at most there are.
        labels: Names of the classes; without, strings end at the index.

    Returns:
        Strings [n, min(num, classes)], or without an axis of examples [min(num, classes)].

    Raises:
        InputError: If the output is no array of numbers with an axis.

    Reference:
        Triton Inference Server, "Classification Extension".
    """
    if scores.dtype.kind not in "iuf" or not scores.ndim:
        raise InputError(
            "classification wants an output of scores, numbers with an axis of classes. Leave it out here."
        )
    rows = scores.reshape(len(scores) if scores.ndim > 1 else 1, -1 if scores.size else 0)
    best = np.argsort(-rows.astype(np.float64), axis=1, kind="stable")[:, :num]  # NaN goes last
    texts = [
        [_text(row[index], int(index), labels) for index in chosen] for row, chosen in zip(rows, best, strict=True)
    ]
    found = np.array(texts, object).reshape(best.shape)
    return found if scores.ndim > 1 else found[0]


def _text(score: Any, index: int, labels: Sequence[str]) -> str:
    number = f"{score:.6f}" if np.issubdtype(type(score), np.floating) else str(score)
    return f"{number}:{index}:{labels[index]}" if index < len(labels) else f"{number}:{index}"
