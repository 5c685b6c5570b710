"""Stores large values in a folder under their digest; an interrupted transfer resumes where it stopped.

{folder}/{digest}          a whole blob
{folder}/{digest}.part     the first bytes of one that is still coming; its length says how many
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from pathlib import Path

from edgewise.core.errors import PolicyViolation, StoreError, Unreachable
from edgewise.core.files import naming, write_atomic
from edgewise.core.ids import Digest, digest_of
from edgewise.core.provenance import origins_of

_DIGEST = re.compile(r"[0-9a-f]{64}")
_READ_BYTES = 2**20
MOST_HELD_BYTES = 2**18
"""Larger blobs are not held in memory."""


class FolderBlobs:
    """Stores the blobs of one node.

    Example:
        >>> import tempfile
        >>> blobs = FolderBlobs(tempfile.mkdtemp())
        >>> blobs.read(blobs.put(b"model"), offset=1, size=3)
        b'ode'
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._fetching: dict[Digest, asyncio.Lock] = {}
        self._moved: dict[Digest, asyncio.Event] = {}
        self._held: dict[Digest, bytes] = {}

    def put(self, data: bytes | memoryview, *, durable: bool = True) -> Digest:
        """Stores a blob atomically.

        Args:
            data: The blob.
            durable: Whether it must outlive a loss of power, too; else `is_whole` tells after one.

        Returns:
            Its name.

        Raises:
            PolicyViolation: If the bytes descend from a data source; a blob is given without a look at its data classes.
        """
        origins = origins_of(data)
        if origins:
            raise PolicyViolation(
                f"data of class {sorted(origins)} may not become a blob, because a blob is given without a look at them. "
                "Send it in a frame, where the data policy decides.",
                data_class=sorted(origins)[0],
            )
        digest = digest_of(data)
        if not self.path(digest).exists():
            write_atomic(self.path(digest), data, durable=durable)
        return digest

    def hold(self, data: bytes) -> Digest:
        """Keeps a small blob in memory until it is dropped or this process ends; it is given like others.

        Args:
            data: The blob.

        Returns:
            Its name.

        Raises:
            PolicyViolation: As `put`.
        """
        if origins_of(data) or len(data) > MOST_HELD_BYTES:
            return self.put(data, durable=False)
        digest = digest_of(data)
        self._held[digest] = data
        return digest

    def has(self, digest: Digest) -> bool:
        """Returns whether the complete blob is stored."""
        return digest in self._held or self.path(digest).exists()

    def is_whole(self, digest: Digest) -> bool:
        """Whether the blob is on disk and is what its name says; reads all of it."""
        path = self.path(digest)
        return path.exists() and _digest_of_file(path) == digest

    def path(self, digest: Digest) -> Path:
        """Returns the path of the complete blob, stored or not; one that is held in memory has no file.

        Raises:
            StoreError: If `digest` is not one; it came from another node and becomes a file name.
        """
        if not _DIGEST.fullmatch(digest):
            raise StoreError(f"{digest[:80]!r} is not a digest. A blob is named by 64 hexadecimal characters.")
        return self.folder / digest

    def size(self, digest: Digest) -> int:
        """Returns the size of a complete blob in bytes.

        Raises:
            StoreError: If it is not here.
        """
        if (held := self._held.get(digest)) is not None:
            return len(held)
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError as error:
            raise _missing(digest) from error

    def read(self, digest: Digest, offset: int = 0, size: int | None = None) -> bytes:
        """Reads a blob or a part of it.

        Args:
            digest: Which.
            offset: First byte.
            size: At most so many bytes; None reads to the end.

        Returns:
            The bytes; fewer where the blob ends.

        Raises:
            StoreError: If it is not here.
        """
        if (held := self._held.get(digest)) is not None:
            return held[offset : None if size is None else offset + size] if offset or size is not None else held
        try:
            with self.path(digest).open("rb") as file:
                file.seek(offset)
                return file.read(-1 if size is None else size)
        except FileNotFoundError as error:
            raise _missing(digest) from error

    def find(self, digest: Digest) -> bytes | None:
        """Reads a small blob; None if it is not here."""
        if (held := self._held.get(digest)) is not None:
            return held
        try:
            return self.path(digest).read_bytes()
        except FileNotFoundError:
            return None

    async def read_coming(self, digest: Digest, offset: int, size: int) -> bytes:
        """Reads a part of a blob that may still be in transfer; its digest is checked only at the end.

        Args:
            digest: Which.
            offset: First byte.
            size: At most so many bytes, as `read`; where the blob is being fetched they are waited for.

        Returns:
            The bytes.

        Raises:
            Unreachable: If a part of it is here, and the rest is not being fetched now.
            StoreError: If nothing is here.
        """
        while not self.has(digest) and self.partial_size(digest) < offset + size:
            fetching = self._fetching.get(digest)
            if fetching is None or not fetching.locked():
                there = self.partial_size(digest)
                if not there:
                    raise _missing(digest)
                raise Unreachable(
                    f"only the first {there:,} bytes of blob {digest[:12]} are here yet. Ask again, or another holder."
                )
            await self._moved.setdefault(digest, asyncio.Event()).wait()
        try:
            with self._partial(digest).open("rb") as file:
                file.seek(offset)
                return file.read(size)
        except FileNotFoundError:  # it is whole, maybe only just
            return self.read(digest, offset, size)

    def has_moved(self, digest: Digest) -> None:
        """Wakes the readers of a blob in transfer, on their event loop."""
        if digest in self._moved:
            self._moved.pop(digest).set()

    def partial_size(self, digest: Digest) -> int:
        """Returns how many bytes of a blob in transfer are stored, counted from the start."""
        try:
            return self._partial(digest).stat().st_size
        except FileNotFoundError:
            return 0

    def write_at(self, digest: Digest, offset: int, data: bytes) -> None:
        """Appends bytes to a blob in transfer.

        Args:
            digest: Which.
            offset: Where they belong; they must join what is here, so that the length tells what is there.
            data: The bytes.

        Raises:
            StoreError: If they would leave a gap.
        """
        there = self.partial_size(digest)
        if offset > there:
            raise StoreError(f"bytes at {offset:,} of blob {digest[:12]} leave a gap: only {there:,} are here.")
        with naming(self._partial(digest)), self._partial(digest).open("r+b" if there else "wb") as file:
            file.seek(offset)
            file.write(data)

    def finish(self, digest: Digest) -> None:
        """Verifies the digest of a received blob and stores it under that name.

        Args:
            digest: Which.

        Raises:
            StoreError: If its content is another; the bytes are thrown away.
        """
        partial = self._partial(digest)
        if not partial.exists():
            partial.touch()
        found = _digest_of_file(partial)
        if found != digest:
            size = partial.stat().st_size
            partial.unlink()
            raise StoreError(
                f"{size:,} bytes received as blob {digest[:12]} have digest {found[:12]}. They were thrown away; "
                "fetch it again, from another node if this repeats."
            )
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, self.path(digest))

    def fetching(self, digest: Digest) -> asyncio.Lock:
        """Returns the lock held while a blob is fetched, so that it is fetched once."""
        return self._fetching.setdefault(digest, asyncio.Lock())

    def drop(self, digest: Digest) -> None:
        """Deletes a blob, complete or partial; idempotent."""
        self._held.pop(digest, None)
        self.path(digest).unlink(missing_ok=True)
        self._partial(digest).unlink(missing_ok=True)

    def _partial(self, digest: Digest) -> Path:
        path = self.path(digest)
        return path.with_name(path.name + ".part")


def _digest_of_file(path: Path) -> Digest:
    with path.open("rb") as file:
        return Digest(hashlib.file_digest(file, "sha256").hexdigest())


def _missing(digest: Digest) -> StoreError:
    return StoreError(f"blob {digest[:12]} is not in this node's store. Fetch it from a node that announced it.")
