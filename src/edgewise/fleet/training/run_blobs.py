"""A node's blobs as steps read them, and those that come in and are not named by any state yet."""

from __future__ import annotations

import mmap
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from edgewise.core.files import storing
from edgewise.core.ids import Digest
from edgewise.core.layout import Vector
from edgewise.transport.bulk.blobs import FolderBlobs

MAPPED_BYTES = 2**20
"""Blobs from this size on are read by mapping the file: a model is in memory as far as it is looked at."""


class MappedBlobs(Mapping[Digest, bytes]):
    """A folder of blobs as the mapping that steps read by digest."""

    def __init__(self, blobs: FolderBlobs) -> None:
        self._blobs = blobs

    def __getitem__(self, digest: Digest) -> bytes:
        if not self._blobs.has(digest):
            raise KeyError(digest)
        if self._blobs.size(digest) < MAPPED_BYTES:
            return self._blobs.read(digest)
        return memoryview(_mapped(self._blobs, digest))  # type: ignore[return-value]

    def __contains__(self, digest: object) -> bool:
        return isinstance(digest, str) and self._blobs.has(Digest(digest))

    def __iter__(self) -> Iterator[Digest]:
        raise TypeError("a blob folder is read by digest")

    def __len__(self) -> int:
        raise TypeError("a blob folder is read by digest")


def mapped_model(blobs: FolderBlobs, digest: Digest) -> Vector:
    """A model's entries, float32[d], as they are on disk; still readable when the blob is dropped.

    Raises:
        StoreDamaged, StoreUnavailable: As `FolderBlobs.check`.
    """
    return np.frombuffer(_mapped(blobs, digest), "<f4")


def _mapped(blobs: FolderBlobs, digest: Digest) -> mmap.mmap:
    blobs.check(digest)
    with storing(blobs.path(digest)), blobs.path(digest).open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


class Incoming:
    """Blobs of a node that are being stored and that no state names yet, so that nobody drops them meanwhile.

    Attributes:
        lock: Held while it is judged what may go, and while any one blob goes: never for longer, the event loop waits for it.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._digests: Counter[Digest] = Counter()
        self._doomed: list[set[Digest]] = []

    def add(self, *digests: Digest) -> None:
        """Blobs that are about to be stored; any thread, before it looks whether they are there."""
        with self.lock:
            self._digests.update(digests)
            self._save(digests)

    @property
    def digests(self) -> frozenset[Digest]:
        """What is being stored now; any thread."""
        with self.lock:
            return frozenset(self._digests)

    def release(self, *digests: Digest) -> None:
        """The event that names them is folded, or they do not matter any more."""
        with self.lock:
            self._digests.subtract(digests)
            self._digests += Counter()

    def name(self, digests: Iterable[Digest], mentioned: set[Digest]) -> None:
        """Blobs that a role is about to store and names from here on; any thread.

        Args:
            digests: Which.
            mentioned: The role's names; they are added to it.
        """
        with self.lock:
            mentioned.update(digests)
            self._save(digests)

    def drop(self, judge: Callable[[], set[Digest]], delete: Callable[[Digest], None]) -> set[Digest]:
        """Deletes what fell free, blob by blob; one that comes in meanwhile stays.

        Args:
            judge: Called with the lock held: what nobody names.
            delete: Deletes one.

        Returns:
            What is gone.
        """
        with self.lock:
            doomed = judge() - set(self._digests)
            self._doomed.append(doomed)
        gone: set[Digest] = set()
        while True:
            with self.lock:
                if not doomed:
                    self._doomed = [other for other in self._doomed if other is not doomed]
                    return gone
                gone.add(digest := doomed.pop())
                delete(digest)

    def _save(self, digests: Iterable[Digest]) -> None:
        for doomed in self._doomed:
            doomed.difference_update(digests)
