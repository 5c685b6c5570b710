"""A user's own examples, shaped as a model takes them: arrays, an npz, an npy, or a folder of images or npy files.

In an npz, inputs go by the model's names; a model of one input also takes the only array, or the one called `x`.
Labels are optional and called `y`, `labels` or `targets`.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
        targets: int64[n], or None without labels.
        names: What each example is called: its file, or its index.
    """

    inputs: Mapping[str, NDArray[Any]]
    targets: NDArray[np.int64] | None
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)

    def example(self, index: int) -> dict[str, NDArray[Any]]:
        """One example as a batch of one."""
        return {name: array[index : index + 1] for name, array in self.inputs.items()}

    def first(self, count: int) -> Source:
        """The first examples."""
        targets = None if self.targets is None else self.targets[:count]
        return Source({name: array[:count] for name, array in self.inputs.items()}, targets, self.names[:count])


def read_source(path: Path, wanted: Sequence[PlainTensor], scale: float = 1 / 255) -> Source:
    """Reads examples for a model.

    Args:
        path: An npz, an npy, or a folder of images or npy files.
        wanted: The model's inputs.
        scale: What pixels of images are multiplied by.

    Returns:
        At least one example.

    Raises:
        DataError: If there is nothing to read, or it does not fit the model.
    """
    if path.is_dir():
        return _read_folder(path, wanted, scale)
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            arrays = dict(loaded.items()) if isinstance(loaded, np.lib.npyio.NpzFile) else {INPUTS[0]: loaded}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:  # numpy takes whatever is no array for a pickle
        raise DataError(
            f"{str(path)!r} is not an npz or npy of plain arrays of numbers. "
            "Write it with numpy.savez(path, x=inputs, y=labels), without object arrays."
        ) from error
    return _from_arrays(repr(str(path)), arrays, wanted)


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


def _from_arrays(where: str, arrays: dict[str, NDArray[Any]], wanted: Sequence[PlainTensor]) -> Source:
    own = {tensor.name for tensor in wanted}
    target = next((name for name in TARGETS if name in arrays and name not in own), None)
    candidates = {name: array for name, array in arrays.items() if name != target}
    inputs = {tensor.name: _shaped(where, _pick(where, candidates, tensor, wanted), tensor) for tensor in wanted}
    counts = {name: len(array) for name, array in inputs.items()}
    if len(set(counts.values())) != 1 or min(counts.values()) == 0:
        raise DataError(f"{where} must hold one or more examples, as many of each input, found {counts}.")
    num = next(iter(counts.values()))
    targets = None if target is None else np.asarray(arrays[target]).ravel()
    if targets is not None and (len(targets) != num or targets.dtype.kind not in "iub"):
        raise DataError(
            f"{target!r} in {where} must be {num} whole numbers, one for each example, found "
            f"{targets.dtype}[{len(targets)}]. Store class indices."
        )
    names = [str(index) for index in range(num)]
    return Source(inputs, None if targets is None else targets.astype(np.int64), names)


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
    one = tensor.shape[1:]
    if array.dtype.kind not in "iufb":
        raise DataError(f"{where} holds {array.dtype} for input {tensor.name!r}, numbers are needed.")
    if array.shape == one:
        array = array[None]
    if array.ndim < 1 or array.size != len(array) * tensor.num_entries // max(
        1, tensor.shape[0] if tensor.shape else 1
    ):
        raise DataError(
            f"{where} holds shape {list(array.shape)} for input {tensor.name!r}, needed is "
            f"[n, {', '.join(map(str, one))}]. Reshape it."
        )
    return np.ascontiguousarray(array.reshape(len(array), *one).astype(tensor.dtype))


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
        _shaped(repr(str(file)), np.load(file) if file.suffix == ".npy" else _image(file, tensor, scale), tensor)[:1]
        for file in files
    ]
    return Source({tensor.name: np.concatenate(rows)}, None, [file.name for file in files])


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
