"""Reading a user's own examples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgewise.api.source import read_source
from edgewise.core.errors import DataError
from edgewise.models.graph.graph import PlainTensor

IMAGE = PlainTensor("image", (1, 1, 2, 3), "float32", True)
PAIR = (PlainTensor("a", (1, 2), "float32", True), PlainTensor("b", (1, 3), "float32", True))


def saved(folder: Path, **arrays: object) -> Path:
    np.savez(folder / "data.npz", **arrays)  # type: ignore[arg-type]
    return folder / "data.npz"


@pytest.mark.parametrize("name", ["image", "x", "whatever"])
def test_one_input_is_found_by_its_name_or_alone(tmp_path: Path, name: str) -> None:
    source = read_source(saved(tmp_path, **{name: np.zeros((4, 1, 2, 3))}), [IMAGE])
    assert source.inputs["image"].shape == (4, 1, 2, 3)
    assert source.inputs["image"].dtype == np.float32


def test_labels_are_taken_along(tmp_path: Path) -> None:
    source = read_source(saved(tmp_path, x=np.zeros((2, 6)), y=np.array([3, 1])), [IMAGE])
    assert source.targets is not None
    assert source.targets.tolist() == [3, 1]


def test_flat_examples_take_the_models_shape(tmp_path: Path) -> None:
    values = np.arange(12).reshape(2, 6)
    source = read_source(saved(tmp_path, x=values), [IMAGE])
    assert source.example(1)["image"].ravel().tolist() == [6, 7, 8, 9, 10, 11]


def test_a_single_example_needs_no_batch_axis(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.ones((1, 2, 3), np.uint8))
    assert len(read_source(tmp_path / "one.npy", [IMAGE])) == 1


def test_two_inputs_go_by_their_names(tmp_path: Path) -> None:
    source = read_source(saved(tmp_path, a=np.zeros((5, 2)), b=np.ones((5, 3))), PAIR).first(2)
    assert [source.inputs["a"].shape, source.inputs["b"].shape, len(source)] == [(2, 2), (2, 3), 2]


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"x": np.zeros((2, 5))}, r"holds shape \[2, 5\] for input 'image', needed is \[n, 1, 2, 3\]"),
        ({"x": np.zeros((0, 6))}, "must hold one or more examples"),
        ({"x": np.zeros((2, 6)), "y": np.zeros(3, int)}, r"'y' in .* must be 2 whole numbers"),
        ({"x": np.zeros((2, 6)), "y": np.zeros(2)}, "Store class indices"),
        ({"x": np.array(["a"])}, "numbers are needed"),
        ({"p": np.zeros((2, 6)), "q": np.zeros((2, 6))}, "no array for the input 'image', only"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(tmp_path: Path, arrays: dict[str, object], text: str) -> None:
    with pytest.raises(DataError, match=text):
        read_source(saved(tmp_path, **arrays), [IMAGE])


@pytest.mark.parametrize("content", [b"[training]\n", b"PK\x03\x04 cut off", b"", None])
def test_what_is_no_file_of_numbers_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is None:
        np.savez(tmp_path / "data.npz", x=np.array([None]))
    else:
        (tmp_path / "data.npz").write_bytes(content)
    with pytest.raises(DataError, match="is not an npz or npy of plain arrays of numbers"):
        read_source(tmp_path / "data.npz", [IMAGE])


def test_images_of_a_folder_are_scaled_to_the_models_size(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(np.full((4, 6), 255, np.uint8)).save(tmp_path / "b.png")
    Image.fromarray(np.zeros((2, 3), np.uint8)).save(tmp_path / "a.png")
    source = read_source(tmp_path, [IMAGE])
    assert source.names == ["a.png", "b.png"]
    assert source.inputs["image"].mean(axis=(1, 2, 3)).tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("name", "content", "wanted", "text"),
    [
        ("notes.txt", b"", [IMAGE], "has no images and no npy files"),
        ("a.png", b"no image", [IMAGE], "is not an image that can be read"),
        ("a.png", b"", PAIR, "a folder feeds a model of one input, this one has 2"),
        ("a.png", b"", [PAIR[0]], "images feed"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(
    tmp_path: Path, name: str, content: bytes, wanted: list[PlainTensor], text: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=text):
        read_source(tmp_path, wanted)
