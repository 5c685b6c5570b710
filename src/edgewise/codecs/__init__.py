"""Encodes updates and activations into fewer bytes; one kind of value serves both.

    codec = make_codec({"name": "chain", "codecs": ["int8", "zstd"]})     # or chain(int8(), zstd())
    payload, state = codec.encode(array, codec.init(array.shape), rng)    # keep `state` for the next array
    tensors = payload_to_tensors(payload)                                 # into a frame; payload.shape into its message
    array = codec.decode(payload_from_tensors(shape, tensors))            # raises FrameRefused on anything wrong

A codec's state (the residual of `error_feedback`) belongs to one client; `state_to_arrays` keeps it over a restart.
The contract is `codec.py`; a codec is one file and one line of `CODECS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgewise.codecs.cast import cast
from edgewise.codecs.chain import chain
from edgewise.codecs.codec import Codec, Payload
from edgewise.codecs.error_feedback import error_feedback
from edgewise.codecs.int4 import int4
from edgewise.codecs.int8 import int8
from edgewise.codecs.kept import state_from_arrays, state_to_arrays
from edgewise.codecs.none import none
from edgewise.codecs.png import png
from edgewise.codecs.skip_zeros import skip_zeros
from edgewise.codecs.top_k import top_k
from edgewise.codecs.wire import payload_from_bytes, payload_from_tensors, payload_to_bytes, payload_to_tensors
from edgewise.codecs.zstd import zstd
from edgewise.core.spec import Spec, build

__all__ = [
    "CODECS",
    "Codec",
    "Payload",
    "cast",
    "chain",
    "error_feedback",
    "int4",
    "int8",
    "make_codec",
    "none",
    "payload_from_bytes",
    "payload_from_tensors",
    "payload_to_bytes",
    "payload_to_tensors",
    "png",
    "skip_zeros",
    "state_from_arrays",
    "state_to_arrays",
    "top_k",
    "zstd",
]

CODECS: dict[str, Callable[..., Codec]] = {
    "cast": cast,
    "chain": chain,
    "error_feedback": error_feedback,
    "int4": int4,
    "int8": int8,
    "none": none,
    "png": png,
    "skip_zeros": skip_zeros,
    "top_k": top_k,
    "zstd": zstd,
}


def make_codec(spec: Any) -> Codec:
    """Builds a codec from its spec.

    Args:
        spec: As `Spec.of` reads, e.g. `{"name": "top_k", "fraction": 0.1}`; or text of a plan, e.g. `top_k(fraction=0.1)`.

    Returns:
        The codec.

    Raises:
        InputError: If a name or parameter is unknown.
    """
    if isinstance(spec, Codec):
        return spec
    return build("codecs", CODECS, Spec.parse(spec) if isinstance(spec, str) else spec)
