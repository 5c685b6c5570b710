from __future__ import annotations

import hashlib

import msgspec
import numpy as np
import pytest

from edgewise.core.errors import FrameRefused, PolicyViolation
from edgewise.core.ids import Generation, NodeId
from edgewise.core.provenance import RAW, traced
from edgewise.ledger.entry import Purpose
from edgewise.transport.frame import MAX_FRAME_BYTES, Tensor, decode_frame, encode_frame, make_frame, stamped


class Note(msgspec.Struct, frozen=True):
    text: str


DTYPES = ["float32", "float16", "float64", "int8", "uint8", "int16", "int32", "int64", "uint64", "bool"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3, 4)])
def test_frame_round_trip_keeps_every_field(dtype: str, shape: tuple[int, ...]) -> None:
    x = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    frame = make_frame("note", Note("hello"), {"x": x}, purpose=Purpose.SERVING, deadline_s=0.5, run="r")
    back = decode_frame(encode_frame(stamped(frame, sender=NodeId("a"), generation=Generation(7), sequence=3)))
    assert back.read(Note) == Note("hello")
    assert (back.kind, back.purpose, back.sender, back.generation) == ("note", Purpose.SERVING, "a", 7)
    assert (back.sequence, back.deadline_s, back.run, back.signature) == (3, 0.5, "r", b"")
    assert back.array("x").dtype == x.dtype
    assert np.array_equal(back.array("x"), x)


def test_frame_of_a_strided_array_carries_its_values() -> None:
    x = np.arange(12, dtype=np.int32).reshape(3, 4)[:, ::2]
    assert np.array_equal(decode_frame(encode_frame(make_frame("k", tensors={"x": x}))).array("x"), x)


def test_signature_covers_everything_before_it() -> None:
    data = encode_frame(make_frame("k", Note("x")), sign=lambda signed: bytes(reversed(signed[-4:])))
    frame = decode_frame(data)
    assert frame.signed_bytes + frame.signature == data
    assert frame.signature == bytes(reversed(frame.signed_bytes[-4:]))


@pytest.mark.parametrize("flips", [1, 3])
def test_every_flipped_bit_is_refused_as_damage_so_that_it_is_sent_again(flips: int) -> None:
    frame, rng = make_frame("note", Note("hello"), {"x": np.zeros((2, 3), np.uint8)}), np.random.default_rng(0)
    for tail in (b"", bytes(71)):
        data = encode_frame(frame, sign=(lambda _, tail=tail: tail) if tail else None)
        covered = 8 * (len(data) - len(tail))
        for place in range(covered):
            changed = bytearray(data)
            for bit in (place, *map(int, rng.choice(covered, flips - 1))):
                changed[bit // 8] ^= 1 << bit % 8
            with pytest.raises(FrameRefused) as refusal:
                decode_frame(bytes(changed))
            assert refusal.value.fields["is_damaged"], f"bit {place}: {refusal.value}"


@pytest.mark.parametrize("length", [0, 1, 7, 30])
def test_truncated_frame_is_refused(length: int) -> None:
    data = encode_frame(make_frame("note", Note("hello")))
    with pytest.raises(FrameRefused, match=r"not a frame|header|its header says"):
        decode_frame(data[:length])


def test_frame_of_another_version_names_both() -> None:
    data = bytearray(encode_frame(make_frame("note")))
    data[2] = 9
    with pytest.raises(FrameRefused, match="version 9, this node speaks 1") as changed:
        decode_frame(bytes(data))
    data[-16:] = hashlib.blake2b(data[:-16], digest_size=16).digest()
    with pytest.raises(FrameRefused, match="version 9, this node speaks 1") as whole:
        decode_frame(bytes(data))
    assert (changed.value.fields["is_damaged"], whole.value.fields["is_damaged"]) == (True, False)


def test_frame_longer_than_the_door_allows_is_refused() -> None:
    data = encode_frame(make_frame("k", tensors={"x": np.zeros(10_000, np.uint8)}))
    with pytest.raises(FrameRefused, match="at most 1,000 bytes"):
        decode_frame(data, max_bytes=1000)


def test_frame_above_the_limit_is_refused_before_it_leaves() -> None:
    x = np.zeros(MAX_FRAME_BYTES + 1, np.uint8)
    with pytest.raises(FrameRefused, match="announce the digest"):
        encode_frame(make_frame("k", tensors={"x": x}))


def test_object_arrays_cannot_travel() -> None:
    with pytest.raises(FrameRefused, match="dtype object, which cannot travel"):
        encode_frame(make_frame("k", tensors={"x": np.array([object()])}))


def test_message_of_another_type_is_refused() -> None:
    with pytest.raises(FrameRefused, match="message 'k' from '' is not a Note"):
        make_frame("k").read(Note)


def test_missing_tensor_is_named() -> None:
    with pytest.raises(FrameRefused, match="carries no tensor 'y'"):
        make_frame("k").array("y")


def test_traced_data_needs_a_policy() -> None:
    frame = make_frame("k", tensors=[Tensor("x", traced(np.zeros(3), RAW)[1:] + 1)])
    with pytest.raises(FrameRefused, match=r"class \['raw'\] over a link without a data policy"):
        encode_frame(frame)

    def refuse(origins: frozenset[str]) -> None:
        raise PolicyViolation(f"{sorted(origins)} stays here.")

    with pytest.raises(PolicyViolation, match="stays here"):
        encode_frame(frame, allow=refuse)
    assert decode_frame(encode_frame(frame, allow=lambda origins: None)).origins == {RAW}
