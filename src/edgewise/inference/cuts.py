"""What a stage hands over: a bundle of its tensors, coded on one side, decoded and checked on the other.

The float32 tensors of a hand-over go through its codec, others (indices, masks) travel as they are; raw data stays
raw on both sides. `codecs/bundle.py` has the form of what travels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.codecs import Codec
from edgewise.codecs.bundle import CodedBundle, CodedSection, Section, decode_bundle, encode_bundle
from edgewise.core.errors import FrameRefused
from edgewise.core.provenance import traced
from edgewise.inference.text_tensors import pack_text_tensors, unpack_text_tensors, wire_name
from edgewise.models.graph.graph import Graph
from edgewise.transport.frame import Frame

MOST_ENTRIES = 2**26
"""Of all tensors of a hand-over, unpacked: 256 MiB of float32. A frame of zeros packs far more into its 64 MiB."""


def encode_cut(
    codec: Codec, names: Iterable[str], values: Mapping[str, NDArray[Any]], rng: np.random.Generator
) -> CodedBundle:
    """Encodes the tensors of a hand-over.

    Args:
        codec: The hand-over's codec.
        names: Tensors that travel.
        values: At least those.
        rng: For codecs that round at random.

    Returns:
        The bundle; each of its arrays knows the data classes of what it encodes.
    """
    bundle = pack_text_tensors({name: values[name] for name in names})
    return encode_bundle(dict.fromkeys(bundle, codec), bundle, None, rng)[0]


def decode_cut(
    codec: Codec, accepted: tuple[Section, ...] | None, sections: tuple[CodedSection, ...], frame: Frame
) -> dict[str, NDArray[Any]]:
    """Undoes `encode_cut` on the other side.

    Args:
        codec: The same codec.
        accepted: What the plan hands over here, as from `sections_of`; None accepts anything.
        sections: From the message.
        frame: Carries the arrays.

    Returns:
        Arrays by name; raw data is traced as such again.

    Raises:
        FrameRefused: If a tensor is missing, unknown or does not fit.
    """
    claimed = sum(prod(section.shape) for section in sections)
    if claimed > MOST_ENTRIES:
        raise FrameRefused(
            f"the tensors of a cut claim {claimed:,} entries; at most {MOST_ENTRIES:,} are unpacked. Send fewer at once."
        )
    arrays = {t.name: traced(t.array, *t.origins) if t.origins else t.array for t in frame.tensors}
    codecs = {section.name: codec for section in sections}
    return unpack_text_tensors(decode_bundle(codecs, accepted, CodedBundle(sections, arrays)))


def sections_of(graph: Graph, names: Iterable[str]) -> tuple[Section, ...]:
    """What tensors of a graph look like on the wire.

    Args:
        graph: Knows them.
        names: Which.

    Returns:
        A section each; an axis whose size depends on the data may have any length, and where an input of the graph has a free axis, every axis may have any length.
    """
    is_free = any(tensor.symbolic_batch or tensor.free for tensor in graph.inputs)
    tensors = [graph.tensor(name) for name in names]
    return tuple(
        Section(wire_name(t.name), "uint8", (None,))
        if t.dtype == "object"
        else Section(t.name, t.dtype, tuple(None if is_free or axis in t.free else n for axis, n in enumerate(t.shape)))
        for t in tensors
    )
