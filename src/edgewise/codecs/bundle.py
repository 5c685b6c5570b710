"""What travels between nodes: named arrays, an update and the tensors of a cut alike.

    Bundle ── encode_bundle(codecs) ──▶ CodedBundle ── bytes, or tensors of a frame ──▶ decode_bundle(codecs) ──▶ Bundle

A float32 section goes through its codec, anything else as it is. `Section` says what a receiver accepts: dtype, shape
and with them the largest size, checked before anything is decoded. A coded bundle is not coded again on its way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewise.codecs.codec import Codec, Payload, Shape, State, check_shape
from edgewise.codecs.header_cache import MOST_HEADERS, remembered
from edgewise.codecs.wire import payload_from_bytes, payload_of, payload_to_buffers
from edgewise.core.dtypes import dtype_name
from edgewise.core.errors import FrameRefused
from edgewise.core.provenance import origins_of, traced
from edgewise.core.unreadable import UNREADABLE

Bundle = Mapping[str, NDArray[Any]]
"""Arrays by section: {"model": float32[d]}, {"model", "control"}, {"logits": float32[n, k]}, {"key": uint8[32]}."""
Codecs = Mapping[str, Codec]
"""Codec of a float32 section by its name; a section without one travels as it is."""

_PLAIN = "plain"
_MOST_SECTIONS = 64


class Section(msgspec.Struct, frozen=True):
    """What a side may send under one name.

    Attributes:
        name: Of the section.
        dtype: Of its array.
        shape: None in a place accepts any length.
    """

    name: str
    dtype: str = "float32"
    shape: tuple[int | None, ...] = ()


class CodedSection(msgspec.Struct, frozen=True, array_like=True):
    """One section on the wire: its name, and the shape that its arrays stand for."""

    name: str
    shape: Shape


_HEADER = msgspec.msgpack.Decoder(tuple[CodedSection, ...])


class CodedBundle(msgspec.Struct, frozen=True):
    """A bundle as it travels.

    Attributes:
        sections: In the order they were given.
        arrays: By `section/part`; each knows where its content comes from.
    """

    sections: tuple[CodedSection, ...]
    arrays: Mapping[str, NDArray[Any]]

    @property
    def size_bytes(self) -> int:
        """Bytes of all arrays, without headers."""
        return sum(array.nbytes for array in self.arrays.values())


def encode_bundle(
    codecs: Codecs, bundle: Bundle, states: Mapping[str, State] | None, rng: np.random.Generator
) -> tuple[CodedBundle, dict[str, State]]:
    """Encodes every section.

    Args:
        codecs: By section; only float32 sections are coded.
        bundle: What is to travel.
        states: Codec state by section, as returned last time; a missing one begins anew.
        rng: For codecs that round at random.

    Returns:
        The coded bundle, and the next states of the sections whose codec keeps one.

    Raises:
        InputError: If a codec cannot encode its section, e.g. because it is not finite.
    """
    sections: list[CodedSection] = []
    arrays: dict[str, NDArray[Any]] = {}
    kept: dict[str, State] = {}
    for name, array in bundle.items():
        sections.append(CodedSection(name, tuple(array.shape)))
        codec, origins = codecs.get(name) if array.dtype == np.float32 else None, origins_of(array)
        if codec is None:
            plain = array if array.flags.c_contiguous else np.ascontiguousarray(array)  # which makes a scalar [1]
            arrays[f"{name}/{_PLAIN}"] = traced(plain, *origins) if origins else plain
            continue
        state = (states or {}).get(name)
        payload, state = codec.encode(array, codec.init(array.shape) if state is None else state, rng)
        for part, coded in payload.arrays.items():
            arrays[f"{name}/{part}"] = traced(coded, *origins) if origins else coded
        if state != ():
            kept[name] = state
    return CodedBundle(tuple(sections), arrays), kept


def decode_bundle(codecs: Codecs, accepted: Sequence[Section] | None, coded: CodedBundle) -> dict[str, NDArray[Any]]:
    """Undoes `encode_bundle` on the other side. Nothing in the coded bundle is trusted.

    Args:
        codecs: The same codecs.
        accepted: The sections that must be there, no others; None accepts any, for what a plan's stages declare.
        coded: What came.

    Returns:
        Arrays by section; raw data is traced as such again.

    Raises:
        FrameRefused: If a section is missing, unknown, or of another dtype or shape.
    """
    if accepted is not None:
        _check_sections(accepted, coded.sections)
    dtypes = {section.name: section.dtype for section in accepted or ()}
    found: dict[str, NDArray[Any]] = {}
    num_read = 0
    for section in coded.sections:
        prefix = f"{section.name}/"
        parts = {key[len(prefix) :]: array for key, array in coded.arrays.items() if key.startswith(prefix)}
        value, num_read = parts.get(_PLAIN), num_read + len(parts)
        if value is not None and len(parts) > 1:
            raise FrameRefused(f"section {section.name!r} came as it is and coded, with {sorted(parts)[:10]}.")
        if value is not None:
            if value.shape != section.shape:
                raise FrameRefused(
                    f"section {section.name!r} has shape {value.shape}, its header says {section.shape}."
                )
            origins = origins_of(value)
            value = traced(value, *origins) if origins else value
        elif section.name in codecs:
            value = codecs[section.name].decode(payload_of(section.shape, parts))
        else:
            raise FrameRefused(f"section {section.name!r} came coded, it is expected as it is.")
        dtype = dtypes.get(section.name)
        if dtype is not None and dtype_name(value.dtype) != dtype:
            raise FrameRefused(f"section {section.name!r} must be {dtype}, found {value.dtype}.")
        found[section.name] = value
    if num_read != len(coded.arrays):
        strangers = [key for key in coded.arrays if key.partition("/")[0] not in found]
        raise FrameRefused(
            f"arrays {sorted(strangers)[:10]} of a bundle belong to none of its sections {sorted(found)}."
        )
    return found


def bundle_to_bytes(coded: CodedBundle) -> bytes:
    """One string of bytes for a blob; equal bundles give equal bytes.

    Args:
        coded: From `encode_bundle`.

    Returns:
        header_length:u32 | sections (msgpack) | the arrays as of `payload_to_bytes`.
    """
    header = _header_of(coded.sections)
    return b"".join((len(header).to_bytes(4, "little"), header, *payload_to_buffers(Payload((), coded.arrays))))


def bundle_from_bytes(data: bytes | memoryview) -> CodedBundle:
    """Undoes `bundle_to_bytes`.

    Args:
        data: From a blob; its memory is shared, not copied.

    Returns:
        The coded bundle, not yet checked by `decode_bundle`.

    Raises:
        FrameRefused: If the bytes are not exactly a bundle.
    """
    start = 4 + int.from_bytes(data[:4], "little")
    return CodedBundle(_read_header(bytes(data[4:start])), payload_from_bytes(memoryview(data)[start:]).arrays)


@lru_cache(MOST_HEADERS)
def _header_of(sections: tuple[CodedSection, ...]) -> bytes:
    return msgspec.msgpack.encode(sections)


@remembered
def _read_header(data: bytes) -> tuple[CodedSection, ...]:
    try:
        sections = _HEADER.decode(data)
    except UNREADABLE as error:
        raise FrameRefused(f"{len(data):,} bytes are not a bundle's header: {error}.") from error
    if len(sections) > _MOST_SECTIONS:
        raise FrameRefused(f"a bundle has at most {_MOST_SECTIONS} sections, found {len(sections)}.")
    for section in sections:
        check_shape(section.shape)
    return sections


def _check_sections(accepted: Sequence[Section], found: Sequence[CodedSection]) -> None:
    wanted = {section.name: section.shape for section in accepted}
    if len(found) != len(wanted) or {section.name for section in found} != wanted.keys():
        names = sorted(section.name for section in found)
        raise FrameRefused(f"a bundle with sections {sorted(wanted)} is expected, found {names[:10]}.")
    for section in found:
        shape = wanted[section.name]
        if shape == section.shape:
            continue
        fits = len(shape) == len(section.shape) and all(
            w is None or w == f for w, f in zip(shape, section.shape, strict=True)
        )
        if not fits:
            raise FrameRefused(f"section {section.name!r} must have shape {shape}, found {section.shape}.")
