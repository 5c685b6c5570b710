"""Strings as bytes: UTF-8, in front of each its length in four bytes, least significant first."""

from __future__ import annotations

from collections.abc import Iterable

_LENGTH_BYTES = 4


def pack_texts(texts: Iterable[str | bytes]) -> bytes:
    """Writes strings one after the other.

    Args:
        texts: Strings, or bytes that are UTF-8.

    Returns:
        The bytes.
    """
    coded = [text.encode() if isinstance(text, str) else bytes(text) for text in texts]
    return b"".join(part for text in coded for part in (len(text).to_bytes(_LENGTH_BYTES, "little"), text))


def unpack_texts(data: bytes | memoryview, num: int) -> list[str]:
    """Undoes `pack_texts`. Nothing in the bytes is trusted.

    Args:
        data: The bytes.
        num: How many strings there must be.

    Returns:
        The strings.

    Raises:
        ValueError: If they are not exactly that many strings of UTF-8.
    """
    found, at = list[str](), 0
    while at < len(data):
        start = at + _LENGTH_BYTES
        end = start + int.from_bytes(data[at:start], "little")
        if start > len(data) or end > len(data):
            raise ValueError("a string ends beyond the data; in front of each stands its length in four bytes")
        if len(found) == num:
            raise ValueError(f"found more than {num} strings")
        found.append(str(data[start:end], "utf-8"))
        at = end
    if len(found) != num:
        raise ValueError(f"found {len(found)} strings")
    return found
