"""Examples of one client: an array each for inputs and targets, or several by name where a model takes or learns several.

A tree below is an array with a first axis of n examples, or a dict of such arrays. numpy arrays and torch tensors alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgewise.core.errors import DataError
from edgewise.core.provenance import RAW, traced


@dataclass(frozen=True, slots=True)
class Examples:
    """Examples of one client, kept where they are.

    Attributes:
        inputs: float32[n, *input_shape], int64 where the model takes numbers of things; or a dict of such arrays, by the names
            of forward's arguments. Traced as raw data.
        targets: int64[n] or float32[n, ...]; or a dict of such arrays.
    """

    inputs: Any
    targets: Any

    @staticmethod
    def of(inputs: Any, targets: Any) -> Examples:
        """Marks inputs and targets as raw data of this node.

        Args:
            inputs: An array, or a dict of arrays by name.
            targets: Alike.

        Returns:
            The examples.

        Raises:
            DataError: If the arrays have different lengths.
        """
        held = Examples(map_arrays(_raw, inputs), map_arrays(_raw, targets))
        sizes = {f"{part} {name}".strip(): len(a) for part, t in held.parts for name, a in named(t).items()}
        if len(set(sizes.values())) > 1:
            found = ", ".join(f"{size} {name}" for name, size in sizes.items())
            raise DataError(f"{found} do not belong together. Give as many of each.")
        return held

    @property
    def parts(self) -> tuple[tuple[str, Any], ...]:
        """Inputs and targets, with their names."""
        return ("inputs", self.inputs), ("targets", self.targets)

    def take(self, rows: Any) -> Examples:
        """The examples of a slice or of indices; still traced."""
        return Examples(take(self.inputs, rows), take(self.targets, rows))

    def __len__(self) -> int:
        return count(self.inputs)


def named(tree: Any) -> Mapping[str, Any]:
    """The arrays of a tree by name; "" names that of a lone array."""
    return tree if isinstance(tree, Mapping) else {"": tree}


def map_arrays(function: Callable[..., Any], *trees: Any) -> Any:
    """Calls a function with the arrays that stand at one place of trees of one form, and gives what came as such a tree."""
    if not isinstance(trees[0], Mapping):
        return function(*trees)
    return {name: function(*(tree[name] for tree in trees)) for name in trees[0]}


def count(tree: Any) -> int:
    """The number of examples."""
    return len(tree if isinstance(tree, np.ndarray) else next(iter(named(tree).values())))


def take(tree: Any, rows: Any) -> Any:
    """Some examples.

    Args:
        tree: n examples.
        rows: A slice, or indices as the arrays take them.

    Returns:
        A tree of the same form.
    """
    return map_arrays(lambda array: array[rows], tree)


def concatenated(trees: Sequence[Any], join: Callable[[list[Any]], Any] = np.concatenate) -> Any:
    """Examples of several trees of one form, one after the other.

    Args:
        trees: At least one.
        join: Joins arrays along their first axis.

    Returns:
        One tree.
    """
    return map_arrays(lambda *arrays: join(list(arrays)), *trees)


def _raw(array: Any) -> Any:
    return traced(np.ascontiguousarray(array), RAW)
