from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace

from edgewise.codecs import make_codec
from edgewise.codecs.bundle import CodedBundle, CodedSection, Section
from edgewise.core.errors import FrameRefused
from edgewise.core.provenance import RAW, origins_of, traced
from edgewise.inference.cuts import decode_cut, encode_cut, sections_of
from edgewise.transport.frame import Frame, make_frame
from tests.inference.tiny import two_exit_graph

RNG = np.random.default_rng(0)


def frame_of(payload: CodedBundle) -> Frame:
    return make_frame("q", None, payload.arrays)


def test_a_lossless_cut_is_exact_and_other_types_travel_as_they_are() -> None:
    values = {"a": RNG.normal(size=(1, 3, 2)).astype(np.float32), "mask": np.array([[True, False]])}
    payload = encode_cut(make_codec("none"), ("a", "mask"), values, RNG)
    back = decode_cut(make_codec("none"), None, payload.sections, frame_of(payload))
    assert all(back[name].tobytes() == values[name].tobytes() for name in values)
    assert back["mask"].dtype == bool
    assert payload.size_bytes == 24 + 2


def test_an_int8_cut_is_within_half_a_step_of_each_value() -> None:
    value = RNG.uniform(-1, 1, size=(1, 64)).astype(np.float32)
    codec = make_codec("int8")
    payload = encode_cut(codec, ("a",), {"a": value}, RNG)
    back = decode_cut(codec, None, payload.sections, frame_of(payload))["a"]
    # 255 steps over the range, rounded to the nearest, with a little for float32.
    assert np.abs(back - value).max() <= (value.max() - value.min()) / 254 / 2 * 1.05 + 1e-6


@pytest.mark.parametrize("codec", ["none", "int8"])
def test_raw_data_is_raw_on_both_sides_of_a_cut_whatever_the_codec(codec: str) -> None:
    value = traced(np.ones((1, 4), np.float32), RAW)
    payload = encode_cut(make_codec(codec), ("x",), {"x": value}, RNG)
    assert all(origins_of(array) == {RAW} for array in payload.arrays.values())
    assert origins_of(decode_cut(make_codec(codec), None, payload.sections, frame_of(payload))["x"]) == {RAW}


def test_a_tensor_of_another_shape_than_said_or_agreed_is_refused() -> None:
    payload = encode_cut(make_codec("none"), ("i",), {"i": np.arange(3)}, RNG)
    frame = frame_of(payload)
    with pytest.raises(FrameRefused, match=r"section 'i' has shape \(3,\), its header says \(4,\)"):
        decode_cut(make_codec("none"), None, (CodedSection("i", (4,)),), frame)
    with pytest.raises(FrameRefused, match="comes without an array"):
        decode_cut(make_codec("none"), None, payload.sections, replace(frame, tensors=()))
    for agreed, why in (
        (Section("i", "int64", (4,)), "must have shape"),
        (Section("i", "int32", (3,)), "must be int32"),
    ):
        with pytest.raises(FrameRefused, match=why):
            decode_cut(make_codec("none"), (agreed,), payload.sections, frame)


def test_what_a_graph_hands_over_has_its_names_types_and_as_many_axes() -> None:
    assert sections_of(two_exit_graph(), ("a",)) == (Section("a", "float32", (None, None, None, None)),)
