"""Remembers what headers say: the clients of a round send ones that are alike."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar

T = TypeVar("T")
MOST_HEADERS, SHORT_HEADER = 256, 1024


def remembered(read: Callable[[bytes], T]) -> Callable[[bytes], T]:
    """Remembers what a header's bytes were read as; a long one may be anything and is read anew each time.

    Args:
        read: A pure function; what it raises is not remembered.

    Returns:
        The same function.
    """
    known = lru_cache(MOST_HEADERS)(read)
    return lambda header: known(header) if len(header) <= SHORT_HEADER else read(header)
