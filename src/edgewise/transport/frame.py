"""Encodes and decodes frames: one typed message with its tensors, versioned, digest-checked, signable.

    "EW" version:u8 flags:u8 header_length:u32 | header (msgpack) | message (msgpack) | tensors | digest 16 | signature

The message is a msgspec struct of the layer that speaks; a frame does not know which. Tensors travel as raw
little-endian bytes. Digest and signature are the end of a frame of every version: what does not match was changed on its
way, and may be sent again, whatever the rest of it says. A frame whose tensor descends from a data source that may not leave is refused by
`encode_frame`, whatever the caller believes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import msgspec
import numpy as np
from msgspec.structs import force_setattr, replace
from numpy.typing import NDArray

from edgewise.core.dtypes import DTYPES, dtype_name
from edgewise.core.errors import FrameRefused
from edgewise.core.ids import Generation, NodeId
from edgewise.core.provenance import Origins, origins_of, traced
from edgewise.ledger.entry import Purpose

VERSION = 1
MAX_FRAME_BYTES = 64 * 2**20
MAGIC = b"EW"
CHUNK_REQUEST = "chunk_request"
"""Kind of the frames that ask for a part of a blob."""
_PREFIX_BYTES = 8
_DIGEST_BYTES = 16
_MOST_SIGNATURE_BYTES = 128
_MAX_DIMENSIONS = 8
M = TypeVar("M", bound=msgspec.Struct)


class Tensor(msgspec.Struct, frozen=True, eq=False):
    """Holds a named array to send, with the data classes it descends from.

    Attributes:
        name: The receiver's key.
        array: Any shape; a dtype of `core/dtypes.py`.
        origins: Data classes; filled from the array itself, may only be added to.
    """

    name: str
    array: NDArray[Any]
    origins: Origins = frozenset()

    def __post_init__(self) -> None:
        found = origins_of(self.array)
        if found:
            force_setattr(self, "origins", self.origins | found)


class _TensorHeader(msgspec.Struct, frozen=True, array_like=True):
    name: str
    dtype: str
    shape: tuple[int, ...]
    origins: tuple[str, ...] = ()


class _Header(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    kind: str
    purpose: Purpose
    sender: NodeId
    generation: Generation
    sequence: int
    deadline_s: float | None
    run: str
    message_bytes: int
    tensors: tuple[_TensorHeader, ...]


_write = msgspec.msgpack.Encoder().encode
_read_header = msgspec.msgpack.Decoder(_Header).decode


class Frame(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """Holds one message between two nodes.

    Attributes:
        kind: The message's tag, e.g. `update`; routes it and names it in the ledger.
        message: msgpack bytes of the message struct.
        tensors: What travels beside the message.
        purpose: Priority class.
        sender: Name of the sending node; proved by `signature` where state changes.
        generation: The sender's incarnation.
        sequence: Counter of the sender's signed frames in this incarnation.
        deadline_s: Seconds of work left when sent; None where the work has no deadline.
        run: Run, version or plan it belongs to; for the ledger.
        signature: Over everything before it; empty if unsigned.
        signed_bytes: The exact bytes `signature` covers, kept by `decode_frame`.
    """

    kind: str
    message: bytes = b"\xc0"
    tensors: tuple[Tensor, ...] = ()
    purpose: Purpose = Purpose.CONTROL
    sender: NodeId = NodeId("")
    generation: Generation = Generation(0)
    sequence: int = 0
    deadline_s: float | None = None
    run: str = ""
    signature: bytes = b""
    signed_bytes: bytes = b""

    def __repr__(self) -> str:
        return f"Frame({self.kind!r}, {self.purpose}, from {self.sender!r}, {len(self.tensors)} tensors)"

    def read(self, as_type: type[M]) -> M:
        """Decodes the message.

        Args:
            as_type: The struct expected for this kind.

        Returns:
            The message.

        Raises:
            FrameRefused: If it is not one.
        """
        try:
            return msgspec.msgpack.decode(self.message, type=as_type)
        except Exception as error:  # boundary: whatever a decoder raises over a stranger's bytes is a refusal
            raise FrameRefused(
                f"message {self.kind!r} from {self.sender!r} is not a {as_type.__name__}: {_why(error)}."
            ) from error

    def array(self, name: str) -> NDArray[Any]:
        """Returns one tensor by name.

        Raises:
            FrameRefused: If the frame has none of that name.
        """
        for tensor in self.tensors:
            if tensor.name == name:
                return tensor.array
        raise FrameRefused(f"frame {self.kind!r} from {self.sender!r} carries no tensor {name!r}.")

    @property
    def origins(self) -> Origins:
        """Returns the data classes of all its tensors."""
        found: Origins = frozenset()
        for tensor in self.tensors:
            found |= tensor.origins
        return found


def make_frame(
    kind: str,
    message: msgspec.Struct | None = None,
    tensors: Mapping[str, NDArray[Any]] | Iterable[Tensor] = (),
    **fields: Any,
) -> Frame:
    """Makes a frame from a message struct and arrays.

    Args:
        kind: The message's tag.
        message: Any msgspec struct.
        tensors: Arrays by name, or `Tensor`s.
        **fields: Other fields of `Frame`.

    Returns:
        The frame, unsigned and without sender (the transport's owner fills them).
    """
    if isinstance(tensors, Mapping):
        tensors = tuple(Tensor(name, array) for name, array in tensors.items())
    return Frame(kind=kind, message=_write(message), tensors=tuple(tensors), **fields)


def encode_frame(
    frame: Frame,
    *,
    sign: Callable[[bytes], bytes] | None = None,
    allow: Callable[[Origins], None] | None = None,
) -> bytes:
    """Encodes a frame into bytes.

    Args:
        frame: What to send.
        sign: Makes the signature; None leaves the frame unsigned.
        allow: Raises PolicyViolation if data of these origins may not take this link; None refuses every origin.

    Returns:
        The bytes.

    Raises:
        PolicyViolation: From `allow`.
        FrameRefused: If a dtype cannot travel, or the frame is larger than `MAX_FRAME_BYTES`, or carries
            traced data and `allow` is None.
    """
    origins = frame.origins
    if origins and allow is None:
        raise FrameRefused(
            f"frame {frame.kind!r} carries data of class {sorted(origins)} over a link without a data policy. "
            "Give the transport a policy that grants it."
        )
    if allow is not None:
        allow(origins)
    headers, parts = [], []
    for tensor in frame.tensors:
        array = np.ascontiguousarray(np.asarray(tensor.array))
        dtype = dtype_name(array.dtype)
        if dtype not in DTYPES:
            raise FrameRefused(f"tensor {tensor.name!r} has dtype {array.dtype}, which cannot travel.")
        headers.append(_TensorHeader(tensor.name, dtype, tensor.array.shape, tuple(sorted(tensor.origins))))
        _tensor_bytes(headers[-1])  # what nobody would take is said here
        parts.append(array.data)
    header = _write(
        _Header(
            kind=frame.kind,
            purpose=frame.purpose,
            sender=frame.sender,
            generation=frame.generation,
            sequence=frame.sequence,
            deadline_s=frame.deadline_s,
            run=frame.run,
            message_bytes=len(frame.message),
            tensors=tuple(headers),
        )
    )
    prefix = MAGIC + bytes((VERSION, 1 if sign else 0)) + len(header).to_bytes(4, "little")
    content = b"".join((prefix, header, frame.message, *parts))
    if len(content) > MAX_FRAME_BYTES:
        raise FrameRefused(
            f"frame {frame.kind!r} would have {len(content):,} bytes, the limit is {MAX_FRAME_BYTES:,}. "
            "Send large values as a blob: announce the digest and let the receiver pull it."
        )
    signed = content + hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()
    return signed + sign(signed) if sign else signed


def decode_frame(data: bytes | memoryview, *, max_bytes: int = MAX_FRAME_BYTES) -> Frame:
    """Decodes a frame after checking its lengths and digest.

    Args:
        data: The bytes.
        max_bytes: Length limit.

    Returns:
        The frame; arrays are read-only views of `data`. The signature is kept, not verified.

    Raises:
        FrameRefused: If version, length, digest, dtype or shape is wrong, or anything else about them; `is_damaged` where it
            was changed on its way, so that it may be sent again.
    """
    try:
        return _decoded(bytes(data), max_bytes)
    except FrameRefused as error:
        is_damaged = len(data) <= max_bytes and not _is_whole(bytes(data))
        raise FrameRefused(error.message, is_damaged=is_damaged) from error
    except Exception as error:  # boundary: whatever a decoder raises over a stranger's bytes is a refusal
        raise FrameRefused(f"{len(data):,} bytes cannot be read as a frame: {_why(error)}.") from error


def _decoded(data: bytes, max_bytes: int) -> Frame:
    if len(data) > max_bytes + 4096 or len(data) < _PREFIX_BYTES + _DIGEST_BYTES or data[:2] != MAGIC:
        raise FrameRefused(f"{len(data):,} bytes are not a frame of at most {max_bytes:,} bytes.")
    if data[2] != VERSION:
        raise FrameRefused(f"frame has version {data[2]}, this node speaks {VERSION}. Update the older node.")
    start = _PREFIX_BYTES + int.from_bytes(data[4:8], "little")
    try:
        header = _read_header(data[_PREFIX_BYTES:start])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise FrameRefused(f"frame header is not readable: {error}.") from error
    offset = start + header.message_bytes
    sizes = [_tensor_bytes(t) for t in header.tensors]
    end = offset + sum(sizes)
    signed_end = end + _DIGEST_BYTES
    if header.message_bytes < 0 or signed_end > len(data) or (not data[3] and signed_end != len(data)):
        raise FrameRefused(
            f"frame {header.kind!r} from {header.sender!r} has {len(data):,} bytes, its header says {signed_end:,}."
        )
    if hashlib.blake2b(memoryview(data)[:end], digest_size=_DIGEST_BYTES).digest() != data[end:signed_end]:
        raise FrameRefused(
            f"frame {header.kind!r} from {header.sender!r} does not match its digest; it was changed on the way."
        )
    tensors = []
    for meta, size in zip(header.tensors, sizes, strict=True):
        dtype = DTYPES[meta.dtype]
        array = np.frombuffer(data, dtype, size // dtype.itemsize, offset)
        array = array.reshape(meta.shape)
        # Traced again, so that a node which received granted data cannot pass it on beyond the grant by oversight.
        tensors.append(Tensor(meta.name, traced(array, *meta.origins) if meta.origins else array))
        offset += size
    return Frame(
        kind=header.kind,
        message=data[start : start + header.message_bytes],
        tensors=tuple(tensors),
        purpose=header.purpose,
        sender=header.sender,
        generation=header.generation,
        sequence=header.sequence,
        deadline_s=header.deadline_s,
        run=header.run,
        signature=data[signed_end:],
        signed_bytes=data[:signed_end],
    )


def _is_whole(data: bytes) -> bool:
    """Whether bytes end with the digest of what is before it, and perhaps a signature, whatever else they say."""
    start = max(0, len(data) - _DIGEST_BYTES - _MOST_SIGNATURE_BYTES)
    content = hashlib.blake2b(memoryview(data)[:start], digest_size=_DIGEST_BYTES)
    for end in range(start, len(data) - _DIGEST_BYTES + 1):
        if content.digest() == data[end : end + _DIGEST_BYTES]:
            return True
        content.update(data[end : end + 1])
    return False


def _tensor_bytes(meta: _TensorHeader) -> int:
    if meta.dtype not in DTYPES or len(meta.shape) > _MAX_DIMENSIONS or any(n < 0 for n in meta.shape):
        raise FrameRefused(
            f"tensor {meta.name!r} has dtype {meta.dtype!r} and shape {meta.shape}, which cannot travel."
        )
    itemsize = DTYPES[meta.dtype].itemsize
    # An axis of 0 must not hide what numpy cannot hold beside it, e.g. [0, 2^62].
    if itemsize * math.prod(max(n, 1) for n in meta.shape) > MAX_FRAME_BYTES:
        raise FrameRefused(
            f"tensor {meta.name!r} has shape {meta.shape}; its axes are to make at most {MAX_FRAME_BYTES:,} bytes. "
            "Send large values as a blob: announce the digest and let the receiver pull it."
        )
    return itemsize * math.prod(meta.shape)


def _why(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": .")


def stamped(frame: Frame, *, sender: NodeId, generation: Generation, sequence: int = 0) -> Frame:
    """Returns the frame with its sender's name, incarnation and counter set."""
    return replace(frame, sender=sender, generation=generation, sequence=sequence)
