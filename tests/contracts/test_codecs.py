"""What every codec keeps, whatever it does. A new codec is tested by one line of EXAMPLES."""

from __future__ import annotations

import numpy as np
import pytest

from edgewise.codecs import (
    CODECS,
    Payload,
    cast,
    chain,
    error_feedback,
    int4,
    int8,
    make_codec,
    none,
    payload_from_bytes,
    payload_from_tensors,
    payload_to_bytes,
    payload_to_tensors,
    png,
    skip_zeros,
    top_k,
    zstd,
)
from edgewise.core.errors import EdgewiseError, FrameRefused, InputError
from edgewise.core.provenance import RAW, origins_of, traced
from edgewise.core.spec import Spec

EXAMPLES = [
    none(),
    cast(),
    int8(),
    int8("stochastic"),
    int4(),
    int4("stochastic", 16),
    top_k(0.1),
    top_k(1),
    zstd(),
    png(-4, 4),
    chain(top_k(0.1), cast()),
    chain(top_k(0.3), int8("stochastic"), zstd(1)),
    chain(int8(), zstd()),
    chain(zstd()),
    error_feedback(top_k(0.25)),
    skip_zeros(chain(int8(), zstd()), [(2, 3), (20, 15)]),
    skip_zeros(error_feedback(top_k(1)), [(0, 1)]),
    skip_zeros(none(), [(1, 4)]),
    error_feedback(chain(top_k(0.1), cast(), zstd())),
]
SHAPES = [(40,), (3, 40), (2, 3, 5, 4), (1, 1), (1,), (0,), (0, 4)]


def fits(codec, shape):
    return codec.spec.name != "png" or (len(shape) >= 2 and 0 not in shape)


CASES = [(c, s) for c in EXAMPLES for s in SHAPES if fits(c, s)]
each_codec = pytest.mark.parametrize("codec", EXAMPLES, ids=str)
each_case = pytest.mark.parametrize(("codec", "shape"), CASES, ids=lambda v: str(v).replace(" ", ""))


def sample(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def encoded(codec, array, seed=1):
    return codec.encode(array, codec.init(array.shape), np.random.default_rng(seed))


def test_every_registered_codec_has_an_example():
    def names(spec):
        inner = (v for value in spec.params.values() for v in (value if isinstance(value, tuple) else (value,)))
        return {spec.name}.union(*(names(v) for v in inner if isinstance(v, Spec)))

    assert set().union(*(names(codec.spec) for codec in EXAMPLES)) == set(CODECS)


@each_case
def test_shape_and_dtype_are_kept_through_bytes_and_through_tensors(codec, shape):
    payload, _ = encoded(codec, sample(shape))
    by_bytes = codec.decode(payload_from_bytes(payload_to_bytes(payload)))
    by_tensors = codec.decode(payload_from_tensors(list(shape), payload_to_tensors(payload, "u."), "u."))
    assert (by_bytes.shape, by_bytes.dtype) == (shape, np.float32)
    assert by_bytes.tobytes() == by_tensors.tobytes() == codec.decode(payload).tobytes()


@each_case
def test_size_bytes_is_what_the_arrays_have(codec, shape):
    payload, _ = encoded(codec, sample(shape))
    assert payload.size_bytes == sum(len(a.tobytes()) for a in payload.arrays.values())


@each_case
def test_a_seed_decides_everything(codec, shape):
    once, again = (payload_to_bytes(encoded(codec, sample(shape))[0]) for _ in range(2))
    assert once == again


@each_codec
def test_a_lossless_codec_gives_back_every_bit(codec):
    special = np.array([[0.0, -0.0, 1e-45, 3.4e38, 1 / 3, -7]], np.float32)
    if codec.lossless:
        assert codec.decode(encoded(codec, special)[0]).tobytes() == special.tobytes()


@each_codec
def test_zeros_stay_zeros(codec):
    zeros = np.zeros((2, 40), np.float32)
    error = np.abs(codec.decode(encoded(codec, zeros)[0])).max()
    assert error <= (8 / 255 / 2 + 1e-6 if codec.spec.name == "png" else 0)


@each_codec
def test_a_cohort_equals_its_clients_one_by_one(codec):
    cohort, rng = sample((4, 33, 2)), np.random.default_rng(1)
    whole = codec.decode(encoded(codec, cohort, seed=1)[0])
    alone = [codec.decode(codec.encode(row[None], codec.init((1, 33, 2)), rng)[0])[0] for row in cohort]
    np.testing.assert_array_equal(whole, np.stack(alone))


@each_codec
def test_words_build_the_same_codec(codec):
    rebuilt = make_codec(codec.spec.to_dict())
    assert (str(rebuilt), rebuilt.biased, rebuilt.lossless) == (repr(codec), codec.biased, codec.lossless)
    array = sample((3, 40))
    assert payload_to_bytes(encoded(rebuilt, array)[0]) == payload_to_bytes(encoded(codec, array)[0])


@pytest.mark.parametrize("codec", [c for c in EXAMPLES if c.spec.name not in ("error_feedback", "png")], ids=str)
def test_an_unbiased_codec_keeps_the_size_of_a_signal_and_a_biased_one_does_not(codec):
    # error_feedback is unbiased over rounds, not in one; pictures are not signals.
    array = sample((1, 20_000))
    slope = float((codec.decode(encoded(codec, array)[0]) * array).sum() / (array * array).sum())
    # Four sigma of int4's rounding noise is below 1 %; top_k loses at least a tenth.
    assert (slope < 0.95) == codec.biased


@each_codec
def test_origins_are_carried_through_both_ends(codec):
    image = traced(sample((1, 8, 8)), RAW)
    payload, _ = encoded(codec, image)
    assert all(origins_of(a) == {RAW} for a in payload.arrays.values())
    assert origins_of(codec.decode(payload)) == {RAW}
    assert origins_of(*encoded(codec, sample((1, 8, 8)))[0].arrays.values()) == frozenset()


@each_codec
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused_unless_the_codec_is_lossless(codec, bad):
    array = sample((2, 40))
    array[1, 3] = bad
    if codec.lossless:
        assert codec.decode(encoded(codec, array)[0]).tobytes() == array.tobytes()
    else:
        with pytest.raises(InputError, match=r"1 of 80 entries not finite \(first at 43\)"):
            encoded(codec, array)


@each_codec
def test_a_tampered_payload_is_refused_or_decodes_to_its_shape(codec):
    """Random damage never raises anything but FrameRefused, and never gives another shape."""
    rng = np.random.default_rng(3)
    data = payload_to_bytes(encoded(codec, sample((2, 40)))[0])
    for _ in range(60):
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), 3):
            damaged[place] = rng.integers(256)
        damaged = bytes(damaged[: rng.integers(1, len(data) + 1)]) if rng.random() < 0.3 else bytes(damaged)
        try:
            payload = payload_from_bytes(damaged)
            assert codec.decode(payload).shape == payload.shape
        except FrameRefused:
            pass


@each_codec
def test_a_payload_of_another_codec_is_refused(codec):
    stranger = Payload((2, 40), {"surprise": np.zeros(3, np.float32)})
    with pytest.raises(FrameRefused, match="carries no"):
        codec.decode(stranger)


@each_codec
def test_a_claimed_shape_that_does_not_fit_is_refused(codec):
    payload, _ = encoded(codec, sample((2, 40)))
    for shape in ((2, 4000), (-1, 40), (2**20, 2**20), (1,) * 9, (), (3,)):
        with pytest.raises(EdgewiseError):
            codec.decode(Payload(shape, payload.arrays))
