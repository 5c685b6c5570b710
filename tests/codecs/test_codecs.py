"""Each codec against its closed form, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from edgewise.codecs import (
    cast,
    chain,
    error_feedback,
    int4,
    int8,
    make_codec,
    none,
    payload_to_bytes,
    png,
    top_k,
    zstd,
)
from edgewise.codecs.codec import Payload
from edgewise.codecs.index_set import pack_indices, packed_bytes, unpack_indices
from edgewise.codecs.wire import payload_from_bytes, payload_from_tensors
from edgewise.core.errors import FrameRefused, InputError, MisfitError


def through(codec, array, seed=0):
    array = np.asarray(array, np.float32)
    return codec.decode(codec.encode(array, codec.init(array.shape), np.random.default_rng(seed))[0])


def payload_of(codec, array, seed=0):
    array = np.asarray(array, np.float32)
    return codec.encode(array, codec.init(array.shape), np.random.default_rng(seed))[0]


def test_int8_errs_by_half_a_level_at_most():
    array = np.random.default_rng(0).normal(size=(5, 1000)).astype(np.float32)
    level = np.abs(array).max(axis=1, keepdims=True) / 127
    assert (np.abs(through(int8(), array) - array) <= level / 2 * (1 + 1e-5)).all()
    assert (np.abs(through(int8("stochastic"), array) - array) <= level * (1 + 1e-5)).all()


def test_int8_takes_one_byte_an_entry_and_four_a_row():
    assert payload_of(int8(), np.ones(4810)).size_bytes == 4814
    assert payload_of(int8(), np.ones((7, 100))).size_bytes == 7 * 104


def test_job_s_is_3_7_times_smaller_with_500_bytes_of_frame():
    raw, coded = (payload_of(c, np.ones(4810)).size_bytes + 500 for c in (none(), int8()))
    assert raw / coded >= 3.7


@pytest.mark.parametrize("codec", [int8("stochastic"), int4("stochastic")], ids=str)
def test_stochastic_rounding_has_the_right_mean(codec):
    array = np.random.default_rng(0).uniform(-1, 1, (1, 64)).astype(np.float32)
    many = np.repeat(array, 4000, axis=0)
    found = through(codec, many).mean(axis=0)
    level = np.abs(array).max() / (127 if codec.spec.name == "int8" else 7)
    # The variance of one rounding is at most level²/4: five sigma of a mean of 4,000.
    assert np.abs(found - array[0]).max() <= 5 * level / 2 / np.sqrt(4000)


def test_int4_takes_half_a_byte_an_entry_and_four_a_block():
    assert payload_of(int4(), np.ones(640)).size_bytes == 320 + 10 * 4
    assert through(int4(), [7.0, -7, 1, 0, 3]).tolist() == [7, -7, 1, 0, 3]


def test_cast_has_half_precision():
    array = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    assert (np.abs(through(cast(), array) - array) <= np.abs(array) * 2.0**-11 + 2.0**-25).all()
    assert through(cast(), [1e9, -1e9]).tolist() == [65504, -65504]


def test_top_k_keeps_the_largest_entries():
    assert through(top_k(0.4), [1, -5, 2, 4, 0]).tolist() == [0, -5, 0, 4, 0]


def test_top_k_keeps_the_first_of_equal_entries():
    assert through(top_k(0.5), [1, 1, -1, 1]).tolist() == [1, 1, 0, 0]


def test_top_k_loses_at_most_what_a_random_choice_of_k_would():
    array = np.random.default_rng(0).normal(size=5000).astype(np.float32)
    lost = np.sum((array - through(top_k(0.1), array)) ** 2)
    assert lost <= 0.9 * np.sum(array**2)


def test_a_tenth_of_the_entries_costs_five_bits_an_index():
    payload = payload_of(top_k(0.1), np.random.default_rng(0).normal(size=4810))
    # k = 481 and b = ⌊log₂ 10⌋ = 3: ⌈481·3/8⌉ low and ⌈(481 + 601 + 1)/8⌉ high bytes.
    assert payload.arrays["indices"].nbytes == 181 + 136
    assert payload.size_bytes == 481 * 4 + 317


@pytest.mark.parametrize(("n", "k"), [(1, 1), (10, 1), (10, 10), (4810, 481), (70_000, 7), (257, 200)])
def test_packed_indices_come_back(n, k):
    rng = np.random.default_rng(n)
    indices = np.stack([np.sort(rng.choice(n, k, replace=False)) for _ in range(3)])
    packed = pack_indices(indices, n)
    assert packed.shape == (3, packed_bytes(n, k))
    np.testing.assert_array_equal(unpack_indices(packed, n, k), indices)


def test_packed_indices_that_name_too_few_or_too_high_entries_are_refused():
    packed = pack_indices(np.array([[1, 4]]), 10)
    with pytest.raises(FrameRefused, match="must name 2 of 10 entries"):
        unpack_indices(packed * np.uint8(0), 10, 2)
    with pytest.raises(FrameRefused, match="stay below 9"):
        unpack_indices(pack_indices(np.array([[1, 9]]), 10), 9, 2)


def test_a_chain_undoes_itself_in_reverse():
    codec = chain(top_k(0.5), int8(), zstd())
    assert through(codec, [127, 0, -64, 0]).tolist() == [127, 0, -64, 0]
    assert set(payload_of(chain(top_k(0.5), cast()), np.ones(4)).arrays) == {"0.indices", "1.values"}


def test_a_chain_is_biased_if_one_member_is_and_lossless_if_all_are():
    assert chain(top_k(0.1), cast()).biased
    assert not chain(cast(), zstd()).biased
    assert chain(none(), zstd()).lossless
    assert not chain(cast(), zstd()).lossless


@pytest.mark.parametrize("codecs", [(cast(), top_k(0.5)), (zstd(), int8()), (int8(), int8())])
def test_a_chain_that_cannot_be_is_refused_when_joined(codecs):
    with pytest.raises(MisfitError, match="its values are no longer float32"):
        chain(*codecs)


def test_an_empty_chain_is_refused():
    with pytest.raises(MisfitError, match="at least one codec"):
        chain()


def test_error_feedback_sends_in_the_end_what_it_held_back():
    codec = error_feedback(top_k(0.25))
    update = np.array([4, 3, 2, 1], np.float32)
    state, rng, sent = codec.init((4,)), np.random.default_rng(0), np.zeros(4)
    for _ in range(400):
        payload, state = codec.encode(update, state, rng)
        sent += codec.decode(payload)
    np.testing.assert_allclose(sent / 400, update, atol=0.05)


def test_the_residual_of_error_feedback_stays_below_its_bound():
    codec, rng, worst, largest = error_feedback(top_k(0.25)), np.random.default_rng(0), 0.0, 0.0
    state = codec.init((40,))
    for _ in range(300):
        update = rng.normal(size=40).astype(np.float32)
        largest = max(largest, float(np.linalg.norm(update)))
        _, state = codec.encode(update, state, rng)
        worst = max(worst, float(np.linalg.norm(state[0])))
    shrink = np.sqrt(1 - 0.25)  # top_k keeps at least the fraction δ = k/d of the energy
    assert worst <= shrink / (1 - shrink) * largest


def minimised(codec, rounds=400):
    """Gradient descent on ½‖w − truth‖² with badly scaled coordinates, through a codec."""
    truth, scale = np.ones(20, np.float32), np.logspace(0, -1, 20, dtype=np.float32)
    weights, state, rng = np.zeros(20, np.float32), codec.init((20,)), np.random.default_rng(0)
    for _ in range(rounds):
        payload, state = codec.encode(-0.05 * scale * (weights - truth), state, rng)
        weights += codec.decode(payload)
    return float(np.linalg.norm(weights - truth))


def test_error_feedback_rescues_a_vote_that_int8_alone_never_hears():
    # A coordinate below half a level of the largest entry is rounded to 0 for ever: 1e-4 against 1/254.
    codec, update = int8(), np.array([1.0, 1e-4], np.float32)
    wrapped, rng = error_feedback(codec), np.random.default_rng(0)
    state, plain, helped = wrapped.init((2,)), 0.0, 0.0
    for _ in range(200):
        plain += float(through(codec, update)[1])
        payload, state = wrapped.encode(update, state, rng)
        helped += float(wrapped.decode(payload)[1])
    assert plain == 0
    assert helped == pytest.approx(200 * 1e-4, abs=1 / 127)


def test_error_feedback_does_not_cost_convergence_on_a_quadratic():
    assert minimised(error_feedback(top_k(0.1)), 4000) < 1e-3


def test_zstd_packs_what_repeats():
    assert payload_of(chain(top_k(0.01), int8(), zstd()), np.ones(10_000)).size_bytes < 200


def test_zstd_refuses_a_bomb_and_what_is_not_packed():
    import zstandard

    bomb = zstandard.ZstdCompressor().compress(bytes(10_000_000))
    with pytest.raises(FrameRefused, match="claim 10,000,000 bytes inside, at most 65,568"):
        zstd().decode(Payload((4,), {"packed": np.frombuffer(bomb, np.uint8)}))
    with pytest.raises(FrameRefused, match="cannot be unpacked"):
        zstd().decode(Payload((4,), {"packed": np.zeros(9, np.uint8)}))


def test_zstd_refuses_another_shape_inside():
    payload = payload_of(zstd(), np.ones(4))
    with pytest.raises(FrameRefused, match=r"hold shape \(4,\), their payload says \(2, 2\)"):
        zstd().decode(Payload((2, 2), payload.arrays))


def test_png_is_exact_for_eight_bit_pictures():
    picture = np.random.default_rng(0).integers(0, 256, (2, 1, 9, 7)).astype(np.float32)
    np.testing.assert_array_equal(through(png(), picture), picture)


def test_png_is_exact_for_digits_scaled_to_one():
    digits = np.random.default_rng(0).integers(0, 17, (3, 8, 8)).astype(np.float32) / 16
    np.testing.assert_array_equal(through(png(0, 1, 17), digits), digits)


def test_png_writes_files_others_can_read():
    import io

    from PIL import Image

    payload = payload_of(png(), np.arange(12).reshape(3, 4))
    assert Image.open(io.BytesIO(payload.arrays["values"].tobytes())).size == (4, 3)


def test_png_refuses_a_picture_of_another_size_and_what_is_no_picture():
    payload = payload_of(png(), np.ones((3, 4)))
    with pytest.raises(FrameRefused, match="a PNG of 3 x 4 L is not a grey one"):
        png().decode(Payload((4, 3), payload.arrays))
    noise = {"values": np.zeros(5, np.uint8), "lengths": np.array([5], np.uint32)}
    with pytest.raises(FrameRefused, match="5 bytes are not a PNG"):
        png().decode(Payload((3, 4), noise))


def test_png_encodes_pictures_only():
    with pytest.raises(InputError, match=r"found shape \(3,\)"):
        through(png(), [1, 2, 3])


@pytest.mark.parametrize("scale", [np.nan, np.inf, -1.0])
def test_a_scale_that_no_encoder_writes_is_refused(scale):
    payload = Payload((3,), {"values": np.ones(3, np.int8), "scale": np.array([scale], np.float32)})
    with pytest.raises(FrameRefused, match="must be finite and at least 0"):
        int8().decode(payload)


def test_a_payload_that_is_not_finite_is_refused():
    payload = Payload((2,), {"values": np.array([1, np.inf], np.float16)})
    with pytest.raises(FrameRefused, match="does not decode with cast"):
        cast().decode(payload)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ({"name": "top_k", "fraction": 0}, r"fraction in \(0, 1\], found 0"),
        ({"name": "top_k", "fracton": 0.1}, "Did you mean 'fraction'"),
        ("int9", "Did you mean 'int8'"),
        ({"name": "int8", "rounding": "up"}, "rounding 'up' is not known"),
        ({"name": "int4", "block_size": 3}, "even number of at least 2, found 3"),
        ({"name": "cast", "dtype": "bfloat16"}, "found 'bfloat16'"),
        ({"name": "zstd", "level": 99}, "from 1 to 19, found 99"),
        ({"name": "png", "low": 1, "high": 0}, "low < high"),
    ],
)
def test_words_that_build_nothing_are_refused(words, text):
    with pytest.raises(InputError, match=text):
        make_codec(words)


def test_bytes_that_are_no_payload_are_refused():
    data = payload_to_bytes(payload_of(none(), np.ones(4)))
    for wrong, text in [
        (b"", "are not a payload"),
        (data[:-1], "ends at byte"),
        (data + b"x", "followed by 1 more"),
    ]:
        with pytest.raises(FrameRefused, match=text):
            payload_from_bytes(wrong)
    with pytest.raises(FrameRefused, match="dtype 'float65', which cannot travel"):
        payload_from_bytes(data.replace(b"float32", b"float65"))
    with pytest.raises(InputError, match=r"'values' has dtype float64, which cannot travel. Make it float32"):
        payload_to_bytes(Payload((1,), {"values": np.zeros(1)}))


def test_a_frame_without_the_payload_is_refused():
    with pytest.raises(FrameRefused, match=r"no tensor of a payload under 'u\.'"):
        payload_from_tensors((1,), {"v.values": np.zeros(1, np.float32)}, "u.")
    with pytest.raises(FrameRefused, match="at most 8 axes"):
        payload_from_tensors((-1,), {"values": np.zeros(1, np.float32)})


def test_an_array_of_another_dtype_is_refused():
    with pytest.raises(FrameRefused, match=r"must be float32\(3,\), found float16\(3,\)"):
        none().decode(Payload((3,), {"values": np.ones(3, np.float16)}))
