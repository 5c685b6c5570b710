"""What a client's data must be before anything is trained on it: shapes, dtypes, labels, finite values, a loss that computes.

What can be converted without loss of meaning is, with a note; what cannot is refused with a sentence. Imports torch when called.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgewise.core.errors import DataError, EdgewiseError, TaskError
from edgewise.core.ids import ClientId
from edgewise.core.provenance import RAW, traced
from edgewise.models.examples import Examples, map_arrays, named, take
from edgewise.models.flat import layout_of
from edgewise.models.forward import call
from edgewise.models.task import Task, user_code

if TYPE_CHECKING:
    from torch import nn

IGNORED = -100
"""The label that torch's losses leave out."""
MOST_COMPARED = 200_000
"""Examples of one client that are looked through for duplicates."""


@dataclass(frozen=True, slots=True)
class CheckedData:
    """A client's examples as they are trained on.

    Attributes:
        examples: Of float32 and int64.
        notes: What was converted, and what looks odd; one sentence each.
    """

    examples: Examples
    notes: tuple[str, ...] = ()


class DataCheck:
    """Checks the data of a task's clients; keeps the task's model between them, and whose data are as they should be.

    Model and loss are asked once for each form of data, and again for larger or smaller whole numbers: classes, tokens.

    Args:
        task: Says shapes, labels, model and loss.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._module: nn.Module | None = None
        self._clean: set[ClientId] = set()
        self._tried_ranges: dict[Any, list[tuple[int, int]]] = {}

    def data(self, client: ClientId) -> CheckedData:
        """Asks the task for a client's data, and checks them.

        Args:
            client: Whose.

        Returns:
            The data; empty ones as they are.

        Raises:
            TaskError: If the task's own code raises, with file and line.
            DataError: If they cannot be trained on.
        """
        try:
            with user_code("they are not given"):
                held = self._task.data(client)
            if not isinstance(held, Examples):
                raise DataError(f"they are a {type(held).__name__}. Return Examples.of(inputs, targets).")
            if client in self._clean:
                return CheckedData(held)
            found = self.check(held)
        except (DataError, TaskError) as error:
            raise type(error)(f"data of client {client!r} of task {self._task.name!r}: {error.message}") from error
        if not found.notes:
            self._clean.add(client)
        return found

    def check(self, held: Examples) -> CheckedData:
        """Checks examples.

        Args:
            held: As the task gives them.

        Returns:
            As they are trained on.

        Raises:
            DataError: If they cannot be trained on.
            TaskError: If the model or the loss raises on them, with file and line.
        """
        if not len(held):
            return CheckedData(held)
        notes: list[str] = []
        inputs = self._converted(held.inputs, "inputs", notes)
        targets = self._converted(held.targets, "targets", notes)
        self._check_shapes(inputs)
        self._check_labels(targets)
        inputs, targets = self._tried(inputs, targets, notes)
        if num := _num_double(inputs):
            notes.append(f"{num} of its {len(held):,} examples have inputs that another of them has, too")
        if not notes:
            return CheckedData(held)
        raw = Examples(*(map_arrays(lambda a: traced(np.ascontiguousarray(a), RAW), t) for t in (inputs, targets)))
        return CheckedData(raw, tuple(notes))

    def _converted(self, tree: Any, what: str, notes: list[str]) -> Any:
        return (
            {n: _plain(a, f"{what} {n!r}", notes) for n, a in tree.items()}
            if isinstance(tree, Mapping)
            else _plain(tree, what, notes)
        )

    def _check_shapes(self, inputs: Any) -> None:
        shapes: Any = self._task.input_shape
        if shapes == () and not isinstance(inputs, Mapping):  # not said: the model will tell
            return
        if isinstance(shapes, Mapping) != isinstance(inputs, Mapping) or (
            isinstance(inputs, Mapping) and set(shapes) != set(inputs)
        ):
            raise DataError(
                f"inputs are {sorted(named(inputs)) if isinstance(inputs, Mapping) else 'one array'}, input_shape names "
                f"{sorted(shapes) if isinstance(shapes, Mapping) else 'one'}. Give Examples and input_shape the same names."
            )
        for name, array in named(inputs).items():
            wanted = tuple(shapes[name] if isinstance(shapes, Mapping) else shapes)
            if array.shape[1:] != wanted:
                raise DataError(
                    f"inputs {name!r}".replace(" ''", "")
                    + f" have shape {array.shape}, one example {array.shape[1:]}; input_shape is {wanted}. "
                    "Reshape the data, or correct input_shape."
                )

    def _check_labels(self, targets: Any) -> None:
        most = self._task.num_classes
        if not most or isinstance(targets, Mapping) or targets.dtype.kind != "i":
            return
        wrong = (targets < 0) | (targets >= most)
        wrong &= targets != IGNORED
        if wrong.any():
            values = sorted({int(v) for v in np.asarray(targets)[np.asarray(wrong)].ravel()})[:5]
            raise DataError(
                f"{int(wrong.sum()):,} labels are outside 0 to {most - 1}, e.g. {values}; num_classes is {most}. "
                "Count labels from 0, or correct num_classes."
            )

    def _tried(self, inputs: Any, targets: Any, notes: list[str]) -> tuple[Any, Any]:
        """Asks model and loss with the first two and the extremes; converts where that makes them compute."""
        form = tuple((n, a.dtype, a.shape[1:]) for tree in (inputs, targets) for n, a in named(tree).items())
        ranges, pairs = _extremes((*named(inputs).values(), *named(targets).values()))
        tried = self._tried_ranges.get(form)
        if tried is not None and all(a <= low and high <= b for (low, high), (a, b) in zip(ranges, tried, strict=True)):
            return inputs, targets
        failed: EdgewiseError | None = None
        for alike, as_labels, as_floats in (
            (True, False, False),
            (True, True, False),
            (True, False, True),
            (False, False, False),
            (False, True, False),
            (False, False, True),
        ):
            x = inputs if alike else map_arrays(_to_float, inputs)
            y = (
                map_arrays(_to_labels, targets)
                if as_labels
                else map_arrays(_to_float, targets)
                if as_floats
                else targets
            )
            if (not alike and _same(x, inputs)) or ((as_labels or as_floats) and _same(y, targets)):
                continue
            try:
                for rows in pairs:
                    self._try(take(x, rows), take(y, rows))
            except EdgewiseError as error:
                failed = failed or error
                continue
            if _same(x, inputs) and _same(y, targets):
                self._tried_ranges[form] = [
                    (min(low, a), max(high, b)) for (low, high), (a, b) in zip(ranges, tried or ranges, strict=True)
                ]
            for what, before, after in (("inputs", inputs, x), ("targets", targets, y)):
                if not _same(before, after):
                    notes.append(f"{what} are converted, as the model or the loss takes them: {_kinds(before, after)}")
            return x, y
        assert failed is not None
        raise failed

    def _try(self, inputs: Any, targets: Any) -> None:
        import torch

        task = self._task
        if self._module is None:
            with user_code(f"task {task.name!r} makes no model"):
                self._module = task.model().eval()
            layout_of(self._module)  # what can never train is said before what it does not take
        x, y = (map_arrays(lambda a: torch.from_numpy(np.array(a)), tree) for tree in (inputs, targets))
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            with user_code(f"the model does not take {_words(inputs)}"):
                outputs = call(self._module, x)
            with user_code(f"the loss does not take targets {_words(targets)}"):
                loss = task.loss(outputs, y)
        if not isinstance(loss, torch.Tensor) or loss.ndim:
            given = f"shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
            raise TaskError(
                f"the loss gives a {given}, needed is one number: the mean over the batch. Call .mean() on it."
            )


def _plain(array: Any, what: str, notes: list[str]) -> Any:
    """As float32, int64 or bool."""
    array = np.asarray(array) if not isinstance(array, np.ndarray) else array
    if array.ndim < 1 or array.dtype.kind not in "fiub":
        raise DataError(
            f"{what} are {array.dtype} of shape {array.shape}; needed are numbers with one row an example. "
            "Encode texts and categories as numbers."
        )
    kind = {"f": np.float32, "b": np.bool_}.get(array.dtype.kind, np.int64)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = ~np.isfinite(np.asarray(array)).reshape(len(array), -1).all(axis=1)
        raise DataError(
            f"{what} of {int(bad.sum()):,} of {len(array):,} examples are not finite, the first is example "
            f"{int(bad.argmax())}. Drop or fill them."
        )
    if array.dtype == kind:
        return array
    plain = array.astype(kind)
    if array.dtype.kind == "f" and not np.isfinite(plain).all():
        raise DataError(f"{what} are {array.dtype} with values beyond float32. Scale them.")
    if array.dtype.kind == "u" and bool((plain < 0).any()):
        raise DataError(f"{what} are {array.dtype} with values beyond int64. Number them from 0.")
    notes.append(f"{what} are converted from {array.dtype} to {plain.dtype}")
    return plain


def _to_float(array: Any) -> Any:
    return array if array.dtype.kind == "f" else array.astype(np.float32)


def _to_labels(array: Any) -> Any:
    """Whole numbers that came as floats, and truth values, as int64."""
    whole = array.dtype.kind == "b" or (array.dtype.kind == "f" and bool((array == np.floor(array)).all()))
    return array.astype(np.int64) if whole else array


def _same(one: Any, other: Any) -> bool:
    return all(a is b for a, b in zip(named(one).values(), named(other).values(), strict=True))


def _kinds(before: Any, after: Any) -> str:
    pairs = {f"{a.dtype} to {b.dtype}" for a, b in zip(named(before).values(), named(after).values(), strict=True)}
    return ", ".join(sorted(pairs))


def _words(tree: Any) -> str:
    return ", ".join(f"{n} {a.dtype}{list(a.shape[1:])}{_from_to(a)}".strip() for n, a in named(tree).items())


def _from_to(array: Any) -> str:
    return f" from {array.min()} to {array.max()}" if array.dtype.kind == "i" and array.size else ""


def _extremes(arrays: Iterable[Any]) -> tuple[list[tuple[int, int]], list[list[int]]]:
    """The range of each array of whole numbers, and examples by two: the first ones, and those with an end of a range."""
    ranges, first, ends = list[tuple[int, int]](), [0, 1], dict[int, None]()
    for array in arrays:
        first = first[: len(array)]
        if array.dtype.kind == "i" and array.size:
            flat = np.asarray(array).reshape(len(array), -1)
            low, high = int(flat.min(axis=1).argmin()), int(flat.max(axis=1).argmax())
            ranges.append((int(flat[low].min()), int(flat[high].max())))
            ends |= dict.fromkeys((low, high))
    rest = [row for row in ends if row not in first]
    rest += [0] * (len(rest) % 2)
    return ranges, [first, *(rest[at : at + 2] for at in range(0, len(rest), 2))]


def _num_double(inputs: Any) -> int:
    """Examples whose inputs another example has, too."""
    arrays = [np.ascontiguousarray(array) for array in named(inputs).values()]
    if len(arrays[0]) > MOST_COMPARED:
        return 0
    rows = np.concatenate([a.reshape(len(a), -1).view(np.ndarray).view(np.uint8) for a in arrays], axis=1)
    if not rows.shape[1]:
        return 0
    keys = np.ascontiguousarray(rows).view(np.dtype((np.void, rows.shape[1]))).ravel()
    _, counts = np.unique(keys, return_counts=True)
    return int(counts[counts > 1].sum())
