"""What a codec decodes: payloads of every registered codec and of chains, bundles, cuts with strings, stored sums and states."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from random import Random
from typing import Any

import msgspec
import numpy as np
import zstandard

from edgewise.codecs import CODECS, Codec, make_codec, payload_from_bytes, payload_to_bytes
from edgewise.codecs.bundle import Section, bundle_from_bytes, bundle_to_bytes, decode_bundle, encode_bundle
from edgewise.inference.cuts import decode_cut, encode_cut
from edgewise.transport.frame import Frame, Tensor
from tests.fuzz.mutate import NUMBERS, mutated_bytes, mutated_tree, overwritten, packed
from tests.fuzz.target import Target, plainly

ARGUMENTS: dict[str, dict[str, Any]] = {
    "top_k": {"fraction": 0.25},
    "png": {"low": 0.0, "high": 1.0, "num_levels": 17},
    "error_feedback": {"codec": {"name": "top_k", "fraction": 0.5}},
    "skip_zeros": {"codec": "int8", "ranges": [[2, 3], [8, 2]]},
    "chain": {"codecs": [{"name": "top_k", "fraction": 0.25}, "int8", "zstd"]},
}
"""What a registered codec needs to be made."""
CHAINS = (
    ["cast", "zstd"],
    ["int4", "zstd"],
    [{"name": "top_k", "fraction": 0.1}, "cast", "zstd"],
    [{"name": "top_k", "fraction": 0.5}, "int4"],
    ["zstd", "zstd"],
)


def _codecs() -> list[Codec]:
    made = [make_codec({"name": name, **ARGUMENTS.get(name, {})}) for name in CODECS]
    return made + [make_codec({"name": "chain", "codecs": codecs}) for codecs in CHAINS]


MADE = _codecs()
SHAPES = ((12,), (3, 8), (2, 3, 4))


def payloads() -> list[bytes]:
    """A payload of each codec and shape, after a byte that says which codec."""
    rng, found = np.random.default_rng(0), []
    for place, codec in enumerate(MADE):
        for shape in SHAPES[1:] if "png" in str(codec) else SHAPES:
            array = rng.random(shape, dtype=np.float32)
            payload, _ = codec.encode(array, codec.init(shape), rng)
            found.append(bytes((place,)) + payload_to_bytes(payload))
    return found


def _decoded(data: bytes) -> str:
    codec = MADE[data[0] % len(MADE)] if data else MADE[0]
    codec.decode(payload_from_bytes(data[1:]))
    return "decoded"


def mutated_payload(rng: Random, seeds: Sequence[bytes]) -> bytes:
    """A payload whose header, arrays or codec is another; lengths mostly fit."""
    seed = rng.choice(seeds)
    first = seed[:1] if rng.random() < 0.95 else rng.randbytes(1)
    return first + mutated_headed(rng, [seed[1:], rng.choice(seeds)[1:]])


def mutated_headed(rng: Random, seeds: Sequence[bytes]) -> bytes:
    """Bytes of the form length:u32 | header (msgpack) | the rest, with one of the three changed."""
    if rng.random() < 0.25:
        return mutated_bytes(rng, seeds)
    data = seeds[0]
    start = 4 + int.from_bytes(data[:4], "little")
    header, rest = msgspec.msgpack.decode(data[4:start]), data[start:]
    kind = rng.random()
    if kind < 0.4:
        rest = overwritten(rng, rest)
    elif kind < 0.5:
        rest = mutated_bytes(rng, [rest + b"\0"])
    elif kind < 0.65 and isinstance(header, list) and header and isinstance(header[0], list):
        header[0] = [rng.choice((0, 1, *NUMBERS)) for _ in range(rng.randrange(10))]  # the shape
    else:
        header = mutated_tree(rng, header)
    if rng.random() < 0.02:
        rest = _bomb(rng, header)
    head = packed(header)
    return struct.pack("<I", len(head)) + head + rest


def _bomb(rng: Random, header: Any) -> bytes:
    """Zeros that are small while they are packed, and a header that says they are there."""
    size = rng.choice((2**16, 2**20, 2**24, 2**26))
    data = _packed_zeros(size)
    if isinstance(header, list) and len(header) > 1:
        header[0] = [rng.choice((size // 8, size // 4, size, 2**28))]
        header[1] = [["packed", "uint8", [len(data)]]]
    return data


@lru_cache
def _packed_zeros(size: int) -> bytes:
    return zstandard.ZstdCompressor(level=1).compress(bytes(size))


SECTIONS = (Section("model", "float32", (12,)), Section("logits", "float32", (None, 8)), Section("key", "uint8", (4,)))


def bundles() -> list[bytes]:
    """Bundles of three sections, coded by each codec."""
    rng, found = np.random.default_rng(0), []
    bundle = {
        "model": rng.random(12, dtype=np.float32),
        "logits": rng.random((3, 8), dtype=np.float32),
        "key": np.arange(4, dtype=np.uint8),
    }
    for place, codec in enumerate(MADE):
        if "png" in str(codec):
            continue
        coded, _ = encode_bundle({"model": codec, "logits": codec}, bundle, None, rng)
        found.append(bytes((place,)) + bundle_to_bytes(coded))
    return found


def _unbundled(data: bytes) -> str:
    place = data[0] % len(MADE) if data else 0
    codec = MADE[place]
    coded = bundle_from_bytes(data[1:])
    decode_bundle({"model": codec, "logits": codec}, None if place % 3 == 2 else SECTIONS, coded)
    return "decoded"


def mutated_bundle(rng: Random, seeds: Sequence[bytes]) -> bytes:
    """A bundle whose sections, or the payload behind them, are others."""
    seed = rng.choice(seeds)
    first, data = seed[:1], seed[1:]
    start = 4 + int.from_bytes(data[:4], "little")
    if rng.random() < 0.5:
        return first + data[:start] + mutated_headed(rng, [data[start:]])
    return first + mutated_headed(rng, [data])


def cuts() -> list[bytes]:
    """What is handed over at a cut: strings and numbers, as a message's sections with the arrays' bytes."""
    rng, found = np.random.default_rng(0), []
    values = {
        "words": np.array([["a", "bc"], ["", "é"]], object),
        "x": rng.random((2, 3), dtype=np.float32),
        "n": np.arange(3),
    }
    for place in (CODECS_BY_NAME["none"], CODECS_BY_NAME["int8"], CODECS_BY_NAME["zstd"]):
        coded = encode_cut(MADE[place], ["words", "x", "n"], values, np.random.default_rng(0))
        arrays = [
            [name, str(array.dtype), list(array.shape), bytes(bytearray(array))] for name, array in coded.arrays.items()
        ]
        found.append(bytes((place,)) + msgspec.msgpack.encode([[[s.name, s.shape] for s in coded.sections], arrays]))
    return found


CODECS_BY_NAME = {name: place for place, name in enumerate(CODECS)}


class _Array(msgspec.Struct, array_like=True):
    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes


class _Cut(msgspec.Struct, array_like=True):
    sections: tuple[Any, ...]
    arrays: tuple[_Array, ...]


def _uncut(data: bytes) -> str:
    """As a stage reads what the one before handed over; what no frame could carry is not built."""
    from edgewise.codecs.bundle import CodedSection
    from edgewise.core.errors import FrameRefused

    try:
        cut = msgspec.msgpack.decode(data[1:], type=_Cut)
        sections = msgspec.convert(cut.sections, tuple[CodedSection, ...])
        tensors = tuple(
            Tensor(a.name, np.frombuffer(a.data, np.dtype(a.dtype)).reshape(a.shape)) for a in cut.arrays[:70]
        )
    except (msgspec.MsgspecError, ValueError, TypeError, UnicodeDecodeError, OverflowError, SyntaxError) as error:
        raise FrameRefused("the harness cannot put this into a frame.") from error
    decode_cut(MADE[data[0] % len(MADE)], None, sections, Frame(kind="stage_request", tensors=tensors))
    return "decoded"


def mutated_cut(rng: Random, seeds: Sequence[bytes]) -> bytes:
    """A cut with its sections, arrays or their bytes changed."""
    seed = rng.choice(seeds)
    tree = msgspec.msgpack.decode(seed[1:])
    if rng.random() < 0.4:
        array = rng.choice(tree[1])
        array[3] = mutated_bytes(rng, [array[3] + b"\0"]) if rng.random() < 0.5 else overwritten(rng, array[3])
        array[2] = [len(array[3])] if array[1] == "uint8" else array[2]
    else:
        tree = mutated_tree(rng, tree)
    return seed[:1] + packed(tree)


TARGETS = (
    Target("codecs", 16, payloads, plainly(_decoded), mutated_payload),
    Target("bundles", 10, bundles, plainly(_unbundled), mutated_bundle),
    Target("cuts", 4, cuts, plainly(_uncut), mutated_cut),
)
