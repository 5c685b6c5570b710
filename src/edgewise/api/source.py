"""A user's own examples, shaped as a model takes them: arrays, an npz, an npy, or a folder of images or npy files.

In an npz, inputs go by the model's names; a model of one input also takes the only array, or the one called `x`.
Labels are optional and called `y`, `labels` or `targets`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.core.array_file import NAMELESS, read_arrays
from edgewise.core.errors import DataError, nearest
from edgewise.models.graph.graph import PlainTensor

TARGETS = ("y", "labels", "targets")
INPUTS = ("x", "inputs", "input", "data")
IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".gif"}


@dataclass(frozen=True, slots=True)
class Source:
    """Examples of a model's inputs.

    Attributes:
        inputs: By input name, [n, ...] in the model's dtype.
        targets: int64[n], or strings[n] where they are asked for; None without labels.
        names: What each example is called: its file, or its index.
        whole: Inputs that have no batch axis, e.g. a scalar: an example of them is given as it is.
    """

    inputs: Mapping[str, NDArray[Any]]
    targets: NDArray[Any] | None
    names: Sequence[str]
    whole: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self.names)

    def example(self, index: int) -> dict[str, NDArray[Any]]:
        """One example as a batch of one, where there is a batch axis."""
        return {
            name: np.asarray(array[index]) if name in self.whole else array[index : index + 1]
            for name, array in self.inputs.items()
        }

    def first(self, count: int) -> Source:
        """The first examples."""
        targets = None if self.targets is None else self.targets[:count]
        inputs = {name: array[:count] for name, array in self.inputs.items()}
        return Source(inputs, targets, self.names[:count], self.whole)


def read_source(
    path: Path, wanted: Sequence[PlainTensor], scale: float = 1 / 255, *, takes_texts: bool = False
) -> Source:
    """Reads examples for a model.

    Args:
        path: An npz, an npy, or a folder of images or npy files.
        wanted: The model's inputs.
        scale: What pixels of images are multiplied by.
        takes_texts: Whether labels may be strings.

    Returns:
        At least one example.

    Raises:
        DataError: If there is nothing to read, or it does not fit the model.
    """
    if path.is_dir():
        return _read_folder(path, wanted, scale)
    arrays = {name or INPUTS[0]: array for name, array in read_arrays(path).items()}
    return _from_arrays(repr(str(path)), arrays, wanted, takes_texts)


def source_of(inputs: Any, targets: Any | None, wanted: Sequence[PlainTensor]) -> Source:
    """Takes examples that are in memory already.

    Args:
        inputs: An array [n, ...], or arrays by the names of the model's inputs; numpy or torch.
        targets: Labels, int[n]; None without.
        wanted: The model's inputs.

    Returns:
        At least one example.

    Raises:
        DataError: If they do not fit the model.
    """
    given = dict(inputs) if isinstance(inputs, Mapping) else {INPUTS[0]: inputs}
    arrays = {str(name): plain_array(array) for name, array in given.items()}
    known = {tensor.name for tensor in wanted} | ({INPUTS[0]} if len(wanted) == 1 else set())
    for name in arrays:
        if name not in known:
            raise DataError(f"the model has no input {name!r}.{nearest(name, (tensor.name for tensor in wanted))}")
    if targets is not None:
        arrays[TARGETS[0]] = plain_array(targets)
    return _from_arrays("the examples given", arrays, wanted)


def plain_array(value: Any) -> NDArray[Any]:
    """A numpy array of what numpy, torch or a list holds; a tensor is taken off its graph and its device.

    Args:
        value: Numbers.
    """
    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)


def _from_arrays(
    where: str, arrays: dict[str, NDArray[Any]], wanted: Sequence[PlainTensor], takes_texts: bool = False
) -> Source:
    own = {tensor.name for tensor in wanted}
    target = next((name for name in TARGETS if name in arrays and name not in own), None)
    candidates = {name: array for name, array in arrays.items() if name != target}
    whole = frozenset(tensor.name for tensor in wanted if not has_batch(tensor))
    inputs = {tensor.name: _shaped(where, _pick(where, candidates, tensor, wanted), tensor) for tensor in wanted}
    most = max((len(array) for array in inputs.values()), default=0)
    for name in whole:
        if len(inputs[name]) == 1:  # one value for all examples
            inputs[name] = np.repeat(inputs[name], most, axis=0)
    counts = {name: len(array) for name, array in inputs.items()}
    if len(set(counts.values())) != 1 or min(counts.values()) == 0:
        raise DataError(f"{where} must hold one or more examples, as many of each input, found {counts}.")
    num = next(iter(counts.values()))
    targets = None if target is None else np.asarray(arrays[target]).ravel()
    is_text = takes_texts and targets is not None and targets.dtype.kind == "U"
    if targets is not None and (len(targets) != num or (targets.dtype.kind not in "iub" and not is_text)):
        raise DataError(
            f"{target!r} in {where} must be {num} whole numbers, one for each example, found "
            f"{targets.dtype}[{len(targets)}]. Store class indices."
        )
    names = [str(index) for index in range(num)]
    targets = targets if targets is None or is_text else targets.astype(np.int64)
    return Source(inputs, targets, names, whole)


def has_batch(tensor: PlainTensor) -> bool:
    """Whether an input's first axis counts examples: it is free, or 1."""
    return tensor.symbolic_batch or tensor.shape[:1] == (1,)


def _pick(
    where: str, arrays: Mapping[str, NDArray[Any]], tensor: PlainTensor, wanted: Sequence[PlainTensor]
) -> NDArray[Any]:
    if tensor.name in arrays:
        return arrays[tensor.name]
    usual = next((name for name in INPUTS if name in arrays), None)
    if len(wanted) == 1 and usual is not None:
        return arrays[usual]
    if len(wanted) == 1 and len(arrays) == 1:
        return next(iter(arrays.values()))
    raise DataError(
        f"{where} has no array for the input {tensor.name!r}, only {sorted(arrays)[:10]}. "
        f"Store it under that name{' or as ' + repr(INPUTS[0]) if len(wanted) == 1 else ''}."
    )


def _shaped(where: str, array: NDArray[Any], tensor: PlainTensor) -> NDArray[Any]:
    is_text, batched = tensor.dtype == "object", has_batch(tensor)
    one = tensor.shape[1:] if batched else tensor.shape
    if array.dtype.kind not in ("US" if is_text else "iufb"):
        kind = "strings" if is_text else "numbers"
        raise DataError(f"{where} holds {array.dtype} for input {tensor.name!r}, {kind} are needed.")
    if is_text:
        array = (np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array).astype(object)
    if array.shape == one or (array.ndim == len(one) and tensor.free):
        array = array[None]
    if tensor.free:
        return _of_free_size(where, array, tensor, tensor.open_shape[1:] if batched else tensor.open_shape)
    if not batched and array.shape[1:] == one:
        return np.ascontiguousarray(array.astype(tensor.dtype))
    if array.ndim < 1 or array.size != len(array) * tensor.num_entries // max(
        1, tensor.shape[0] if tensor.shape else 1
    ):
        raise DataError(
            f"{where} holds shape {list(array.shape)} for input {tensor.name!r}, needed is "
            f"[n, {', '.join(map(str, one))}]. Reshape it."
        )
    return np.ascontiguousarray(array.reshape(len(array), *one).astype(tensor.dtype))


def _of_free_size(where: str, array: NDArray[Any], tensor: PlainTensor, one: Sequence[int | None]) -> NDArray[Any]:
    fits = array.ndim == len(one) + 1 and all(w in (None, n) for w, n in zip(one, array.shape[1:], strict=True))
    if not fits:
        raise DataError(
            f"{where} holds shape {list(array.shape)} for input {tensor.name!r}, needed is "
            f"[n, {', '.join('any' if n is None else str(n) for n in one)}]. Reshape it."
        )
    return np.ascontiguousarray(array.astype(tensor.dtype))


def _read_folder(folder: Path, wanted: Sequence[PlainTensor], scale: float) -> Source:
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGES | {".npy"})
    if not files:
        raise DataError(f"folder {str(folder)!r} has no images and no npy files. Give a folder of examples, or an npz.")
    if len(wanted) != 1:
        raise DataError(
            f"a folder feeds a model of one input, this one has {len(wanted)}. Use an npz with their names."
        )
    tensor = wanted[0]
    rows = [
        _shaped(repr(str(file)), _array(file) if file.suffix == ".npy" else _image(file, tensor, scale), tensor)[:1]
        for file in files
    ]
    return Source({tensor.name: np.concatenate(rows)}, None, [file.name for file in files])


def _array(file: Path) -> NDArray[Any]:
    arrays = read_arrays(file)
    if NAMELESS not in arrays:
        raise DataError(
            f"{str(file)!r} is an npz under the name of an npy. Write it with numpy.save, or give it alone."
        )
    return arrays[NAMELESS]


def _image(file: Path, tensor: PlainTensor, scale: float) -> NDArray[np.float32]:
    from PIL import Image, UnidentifiedImageError

    if len(tensor.shape) != 4 or tensor.shape[1] not in (1, 3):
        raise DataError(
            f"image {str(file)!r} does not fit input {tensor.name!r} of shape {list(tensor.shape)}; images feed "
            "[n, 1 or 3, height, width]. Use npy files."
        )
    _, channels, height, width = tensor.shape
    try:
        with Image.open(file) as image:
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB").resize((width, height)), np.float32)
    except UnidentifiedImageError as error:
        raise DataError(f"{str(file)!r} is not an image that can be read. Remove it or convert it to PNG.") from error
    return (pixels if channels == 1 else pixels.transpose(2, 0, 1)).reshape(1, channels, height, width) * np.float32(
        scale
    )
