from __future__ import annotations

import copy
import pickle
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided, sliding_window_view

from edgewise.core.errors import FrameRefused, InputError, PolicyViolation
from edgewise.core.ids import Tier
from edgewise.core.png_file import encode_png
from edgewise.core.provenance import RAW, Traced, TracedBytes, derived, origins_of, traced

IMAGES = np.linspace(0, 1, 4 * 8 * 8, dtype=np.float32).reshape(4, 8, 8)

KEEPS: dict[str, Callable[[Any], Any]] = {
    "slice": lambda x: x[1:, ::2],
    "mask": lambda x: x[x > 0.5],
    "fancy": lambda x: x[[0, 2]],
    "reshape": lambda x: x.reshape(4, -1),
    "transpose": lambda x: x.T,
    "copy": lambda x: x.copy(),
    "copy.copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
    "cast": lambda x: (x * 255).astype(np.uint8),
    "arithmetic": lambda x: 2 * x - 1,
    "in place": lambda x: np.zeros_like(IMAGES).__iadd__(x),
    "comparison": lambda x: x > 0.5,
    "matmul": lambda x: np.eye(8, dtype=np.float32) @ x,
    "reduction": lambda x: x.mean(axis=0),
    "stack": lambda x: np.stack([np.zeros((8, 8)), x[0]]),
    "concatenate": lambda x: np.concatenate([IMAGES, x]),
    "where": lambda x: np.where(x > 0.5, 1, 0),
    "einsum": lambda x: np.einsum("abc->a", x),
    "windows": lambda x: sliding_window_view(x, 2, axis=0),
    "strides": lambda x: as_strided(x, (2, 2)),
    "plain view": lambda x: x.view(np.ndarray),
    "asarray": np.asarray,
    "view of asarray": lambda x: np.asarray(x)[1:].reshape(-1).view(np.uint8),
    "contiguous": np.ascontiguousarray,
    "memoryview": lambda x: memoryview(x)[1:],
    "from memoryview": lambda x: np.asarray(memoryview(x)),
    "bytes": lambda x: x.tobytes(),
    "from bytes": lambda x: np.frombuffer(x.tobytes(), np.uint8),
    "uint8 bytes": lambda x: bytes((x * 255).astype(np.uint8).tobytes()),
    "part of bytes": lambda x: x.tobytes()[10:20],
    "bytes behind others": lambda x: b"header" + x.tobytes(),
    "pickled bytes": lambda x: pickle.loads(pickle.dumps(x.tobytes())),
    "joined by traced": lambda x: TracedBytes(b"").join([b"a", x.tobytes()]),
    "png": lambda x: encode_png(x[0]),
    "written into a traced array": lambda x: _written(x),
    "out of a ufunc": lambda x: np.add(x, 1, out=traced(np.zeros_like(IMAGES))),
    "copyto": lambda x: _copied(x),
    "quantised": lambda x: np.rint(x * 127).astype(np.int8),
    "packed bits": lambda x: np.packbits(x > 0.5),
}

LOSES: dict[str, Callable[[Any], Any]] = {
    "np.array": np.array,
    "copy of asarray": lambda x: np.asarray(x).copy(),
    "contiguous copy": lambda x: np.ascontiguousarray(x[:, :, ::2]),
    "list of arrays": lambda x: np.array([x[0], x[1]]),
    "into a plain array": lambda x: np.add(x, 1, out=np.zeros_like(IMAGES)).view(np.ndarray).copy(),
    "tolist": lambda x: x.tolist(),
    "other encoders": lambda x: zlib.compress(x),
}


def _written(x: Any) -> Any:
    target = traced(np.zeros_like(IMAGES))
    target[:] = x
    return target


def _copied(x: Any) -> Any:
    target = traced(np.zeros_like(IMAGES))
    np.copyto(target, x)
    return target


@pytest.mark.parametrize("name", KEEPS)
def test_the_origin_stays_with_the_value(name: str) -> None:
    assert origins_of(KEEPS[name](traced(IMAGES, RAW))) == {RAW}


@pytest.mark.parametrize("name", LOSES)
def test_the_boundary_is_where_the_documentation_says(name: str) -> None:
    made = LOSES[name](traced(IMAGES, RAW))
    assert origins_of(made) == frozenset()
    if isinstance(made, np.ndarray):
        assert origins_of(traced(made, *origins_of(traced(IMAGES, RAW)))) == {RAW}  # the documented cure


@pytest.mark.parametrize("name", [name for name in KEEPS if "bytes" not in name and name not in ("png", "memoryview")])
def test_a_frame_with_raw_data_is_refused(name: str) -> None:
    from edgewise.security.data_policy import DataPolicy
    from edgewise.transport.frame import encode_frame, make_frame

    frame = make_frame("update", tensors={"values": KEEPS[name](traced(IMAGES, RAW))})
    with pytest.raises(PolicyViolation, match="data of class 'raw' may not leave its device"):
        encode_frame(frame, allow=lambda origins: DataPolicy().allow(origins, Tier.EDGE))
    with pytest.raises(FrameRefused, match="over a link without a data policy"):
        encode_frame(frame)


def test_encoded_bytes_in_a_frame_are_refused_too() -> None:
    from edgewise.security.data_policy import DataPolicy
    from edgewise.transport.frame import encode_frame, make_frame

    image = traced(IMAGES, RAW)
    for data in (encode_png(image[0]), (image * 255).astype(np.uint8).tobytes()):
        frame = make_frame("blob_chunk", tensors={"chunk": np.frombuffer(data, np.uint8)})
        with pytest.raises(PolicyViolation, match="raw"):
            encode_frame(frame, allow=lambda origins: DataPolicy().allow(origins, Tier.CLOUD))


def test_what_a_model_computed_is_a_new_thing() -> None:
    features = derived(traced(IMAGES, RAW) @ np.ones((8, 3), np.float32))
    assert (type(features), origins_of(features)) == (np.ndarray, frozenset())


def test_origins_of_several_sources_unite() -> None:
    assert origins_of(traced(IMAGES, RAW) + traced(IMAGES, "public")) == {RAW, "public"}
    assert origins_of(traced(traced(IMAGES, RAW), "public")) == {RAW, "public"}


def test_reading_an_array_does_not_taint_it() -> None:
    public = traced(IMAGES, "public")
    assert origins_of(np.dot(public, traced(np.eye(8), RAW))) == {RAW, "public"}
    assert origins_of(public) == {"public"}


def test_tracing_copies_nothing() -> None:
    assert np.shares_memory(traced(IMAGES, RAW), IMAGES)


def test_an_untraced_array_has_no_origin_and_stays_plain() -> None:
    assert origins_of(IMAGES, b"bytes", None, 3) == frozenset()
    assert not isinstance(np.stack([IMAGES, IMAGES]), Traced)


def test_a_png_holds_the_pixels_that_zlib_gives_back() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    data = encode_png(pixels)
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert data[16:24] == (4).to_bytes(4, "big") + (3).to_bytes(4, "big")
    rows = zlib.decompress(data[data.index(b"IDAT") + 4 : -16])
    assert rows == b"".join(b"\0" + bytes(row) for row in pixels)


def test_a_colour_png_and_a_scaled_grey_one_are_written() -> None:
    assert encode_png(np.zeros((2, 2, 3), np.uint8))[25] == 2  # colour type RGB
    grey = encode_png(np.array([[0.0, 1.0]]))
    assert zlib.decompress(grey[grey.index(b"IDAT") + 4 : -16]) == b"\0\x00\xff"


def test_what_is_no_image_is_refused() -> None:
    with pytest.raises(InputError, match=r"an image has shape \[height, width\]"):
        encode_png(np.zeros(4))
    with pytest.raises(InputError, match=r"has values in 0…1\. Scale it"):
        encode_png(np.array([[2.0]]))


def test_granted_data_is_traced_again_where_it_arrives() -> None:
    from edgewise.security.data_policy import DataPolicy
    from edgewise.transport.frame import decode_frame, encode_frame, make_frame

    to_edge = make_frame("stage_request", tensors={"x": traced(IMAGES, RAW)})
    arrived = decode_frame(encode_frame(to_edge, allow=lambda o: DataPolicy(raw=Tier.EDGE).allow(o, Tier.EDGE)))
    assert np.array_equal(arrived.array("x"), IMAGES)
    onward = make_frame("stage_request", tensors={"x": arrived.array("x")[1:]})
    with pytest.raises(PolicyViolation, match="may not go further than tier edge"):
        encode_frame(onward, allow=lambda o: DataPolicy(raw=Tier.EDGE).allow(o, Tier.CLOUD))


def test_raw_data_does_not_become_a_blob(tmp_path: Path) -> None:
    from edgewise.transport.bulk.blobs import FolderBlobs

    for data in (traced(IMAGES, RAW).tobytes(), encode_png(traced(IMAGES[0], RAW))):
        with pytest.raises(PolicyViolation, match=r"data of class \['raw'\] may not become a blob"):
            FolderBlobs(tmp_path).put(data)
    assert FolderBlobs(tmp_path).put(derived(traced(IMAGES, RAW)).tobytes())
