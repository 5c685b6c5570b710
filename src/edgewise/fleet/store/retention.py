"""What a node keeps of its blobs, and what goes: every part of a node says what it holds, the rest falls free.

A *hold* names digests and why they stay. What is needed (a run that goes on, the version in force and the one before it,
a letter under way, what a client keeps) stays whatever it takes. What is only wanted (older versions, the last models of
ended runs) stays, newest first, while it fits into the node's budget. What nobody holds goes. This file only judges;
`fleet/node/upkeep.py` asks the holders and deletes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from edgewise.core.ids import Digest

DISK_FRACTION = 0.1
"""Budget where none is said: so much of the disk that the state folder is on."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Why some blobs stay.

    Attributes:
        what: Who holds them, for people.
        digests: Which; some may not be on this disk.
        is_needed: Whether they stay whatever they take; else while they fit.
        let_go: Notes, for good, that they go; called on a thread before the first one is deleted.
    """

    what: str
    digests: frozenset[Digest]
    is_needed: bool = True
    let_go: Callable[[], None] = field(default=lambda: None, compare=False)


Holder = Callable[[], Iterable[Hold]]
"""Says what a part of a node holds now; on the node's event loop. Raises where it cannot tell: then nothing goes."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A blob on disk.

    Attributes:
        size_bytes: Of it, or of its part that is here.
        time_s: When it was written, seconds since 1970.
    """

    size_bytes: int
    time_s: float


@dataclass(frozen=True, slots=True)
class Share:
    """What one hold keeps; a blob that several hold counts for the first.

    Attributes:
        hold: Which.
        digests: Blobs that are here.
        size_bytes: What they take.
        stays: Whether they do.
    """

    hold: Hold
    digests: tuple[Digest, ...]
    size_bytes: int
    stays: bool = True


@dataclass(frozen=True, slots=True)
class Verdict:
    """What stays and what goes.

    Attributes:
        shares: By hold: what is needed first, then what is wanted, newest first.
        goes: Blobs that nobody holds, or that do not fit.
        size_bytes: What they take.
    """

    shares: tuple[Share, ...]
    goes: frozenset[Digest]
    size_bytes: int


def judge(stored: Mapping[Digest, Stored], holds: Iterable[Hold], budget_bytes: int) -> Verdict:
    """Decides what stays.

    Args:
        stored: What is on disk.
        holds: Of every part of the node.
        budget_bytes: What all of it may take; what is needed may take more.

    Returns:
        What stays and what goes.

    Example:
        >>> stored = {Digest("a"): Stored(6, 1.0), Digest("b"): Stored(3, 2.0), Digest("c"): Stored(1, 0.0)}
        >>> old = Hold("version 1", frozenset({Digest("a")}), is_needed=False)
        >>> sorted(judge(stored, [Hold("in force", frozenset({Digest("b")})), old], 8).goes)
        ['a', 'c']
    """
    found = [(hold, frozenset(hold.digests & stored.keys())) for hold in holds]
    needed = [pair for pair in found if pair[0].is_needed]
    wanted = [pair for pair in found if not pair[0].is_needed]
    wanted.sort(key=lambda pair: max((stored[d].time_s for d in pair[1]), default=0.0), reverse=True)
    kept: set[Digest] = set()
    shares, room = [], budget_bytes
    for hold, there in (*needed, *wanted):
        more = tuple(sorted(there - kept))
        size = sum(stored[digest].size_bytes for digest in more)
        stays = hold.is_needed or size <= room
        if stays:
            kept.update(more)
            room -= size
        shares.append(Share(hold, more, size, stays))
    goes = frozenset(stored.keys() - kept)
    return Verdict(tuple(shares), goes, sum(stored[digest].size_bytes for digest in goes))
