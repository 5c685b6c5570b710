"""Rows that seal each other: each carries a hash over the seal of the former row and its own content.

A row that was changed, removed or put between is found and named, whoever changed it, as long as the seals are not computed
anew: that is for damage and for hands that meant well, not against somebody who may write the state folder.

Example:
    >>> rows = chained(["a", "b", "c"])
    >>> broken_rows([rows[0], rows[1]._replace(content="x"), rows[2]], 3, rows[2].seal)
    {2: 'was changed on disk'}
    >>> broken_rows([rows[0], rows[2]], 3, rows[2].seal)
    {2: 'is missing'}
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

CHANGED = "was changed on disk"
MISSING = "is missing"
ADDED = "was not written by Edgewise"


class SealedRow(NamedTuple):
    """One row of a chain.

    Attributes:
        number: Its place, from 1, without gaps.
        former: Seal of the row before it; "" for the first.
        seal: Its own.
        content: What it says.
    """

    number: int
    former: str
    seal: str
    content: str | bytes


def seal_of(former: str, number: int, content: str | bytes) -> str:
    """Seals a row.

    Args:
        former: Seal of the row before it.
        number: Its place.
        content: What it says.

    Returns:
        SHA-256 in hexadecimal.
    """
    data = content.encode() if isinstance(content, str) else content
    return hashlib.sha256(f"{former}\x1f{number}\x1f".encode() + data).hexdigest()


def chained(contents: Iterable[str | bytes], *, former: str = "", first: int = 1) -> list[SealedRow]:
    """Seals rows, each upon the one before.

    Args:
        contents: What they say, in order.
        former: Seal of the row before the first of them.
        first: Number of the first of them.
    """
    rows: list[SealedRow] = []
    for number, content in enumerate(contents, start=first):
        seal = seal_of(former, number, content)
        rows.append(SealedRow(number, former, seal, content))
        former = seal
    return rows


def broken_rows(rows: Sequence[SealedRow], length: int, head: str) -> dict[int, str]:
    """Finds rows that are not as they were written.

    Args:
        rows: As they are on disk, by number.
        length: How many were written.
        head: Seal of the last that was written.

    Returns:
        What is wrong with each, by number; empty where all are whole.
    """
    found: dict[int, str] = {}
    by_number = {row.number: row for row in rows}
    for number in range(1, max(length, *by_number, 0) + 1) if by_number else range(1, length + 1):
        row = by_number.get(number)
        if row is None:
            found[number] = MISSING
        elif number > length:
            found[number] = ADDED
        elif row.seal != seal_of(row.former, number, row.content):
            found[number] = CHANGED
    for row in rows:  # one that is whole in itself tells what stood before it
        before = by_number.get(row.number - 1)
        if before is not None and row.number not in found and before.number not in found and before.seal != row.former:
            found[before.number] = CHANGED
    last = by_number.get(length)
    if last is not None and length not in found and last.seal != head:
        found[length] = CHANGED
    return dict(sorted(found.items()))
