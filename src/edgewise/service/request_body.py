"""The body of a request to the HTTP endpoint: read to a bound, unpacked, split into JSON and tensors."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

from litestar.types import Receive

from edgewise.core.errors import InputError

LENGTH = b"inference-header-content-length"


class BodyTooLarge(InputError):
    """A request body beyond the bound."""

    code = "input.size"


async def read_body(receive: Receive, max_bytes: int) -> bytes:
    """All of a request's body.

    Args:
        receive: From the server.
        max_bytes: Its bound.

    Returns:
        The bytes, as they were sent.

    Raises:
        BodyTooLarge: If there are more.
        InputError: If the client leaves before the end.
    """
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise InputError("the client closed the connection before its request was complete.")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > max_bytes:
            raise BodyTooLarge(f"the request body has more than {max_bytes:,} bytes. Send less at once.")
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def header_length(headers: Mapping[bytes, bytes]) -> int | None:
    """Length of the JSON in front of binary tensors; None if all is JSON."""
    text = headers.get(LENGTH)
    if text is None:
        return None
    if not text.isdigit():
        raise InputError(f"Inference-Header-Content-Length is {text.decode('latin-1')!r}, it must be a number.")
    return int(text)


def decompressed(body: bytes, headers: Mapping[bytes, bytes], max_bytes: int) -> bytes:
    """The body as it was before the client compressed it.

    Args:
        body: As sent.
        headers: Name its encoding.
        max_bytes: Bound of what it unpacks to.

    Returns:
        The bytes.

    Raises:
        BodyTooLarge: If it unpacks to more.
        InputError: If it is not what its header says.
    """
    encoding = headers.get(b"content-encoding", b"identity").decode("latin-1")
    if encoding == "identity":
        return body
    if encoding not in ("gzip", "deflate"):
        raise InputError(f"content-encoding {encoding!r} is not offered. Send gzip, deflate or plain bytes.")
    reader = zlib.decompressobj(zlib.MAX_WBITS | 32)
    try:
        plain = reader.decompress(body, max_bytes)
    except zlib.error as error:
        raise InputError(f"the body is not {encoding}: {error}.") from error
    if reader.unconsumed_tail:
        raise BodyTooLarge(f"the request body unpacks to more than {max_bytes:,} bytes. Send less at once.")
    if not reader.eof:
        raise InputError(f"the body is not {encoding}: it ends too early.")
    return plain
