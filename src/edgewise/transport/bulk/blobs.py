"""Stores large values in a folder under their digest; an interrupted transfer resumes where it stopped.

{folder}/{digest}          a whole blob
{folder}/{digest}.part     the first bytes of one that is still coming; its length says how many
{folder}/{digest}.damaged  what was found under that name and is something else; it is fetched anew

A blob is checked against its name when this process first reads it, and again whenever its file has changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from edgewise.core.errors import PolicyViolation, StoreDamaged, StoreError, Unreachable
from edgewise.core.files import appending, remove, rename, storing, sync, sync_folder, write_atomic
from edgewise.core.ids import Digest, digest_of
from edgewise.core.private_files import PRIVATE, make_private_folder, open_private
from edgewise.core.provenance import origins_of
from edgewise.transport.bulk.transfers import Transfers

_DIGEST = re.compile(r"[0-9a-f]{64}")
_READ_BYTES = 2**20
DAMAGED = ".damaged"
MOST_HELD_BYTES = 2**18
"""Larger blobs are not held in memory."""


class FolderBlobs:
    """Stores the blobs of one node.

    Attributes:
        folder: Where.
        transfers: What is on its way here.

    Example:
        >>> import tempfile
        >>> blobs = FolderBlobs(tempfile.mkdtemp())
        >>> blobs.read(blobs.put(b"model"), offset=1, size=3)
        b'ode'
    """

    def __init__(self, folder: str | Path) -> None:
        with storing(Path(folder)):
            self.folder = make_private_folder(Path(folder))
            sync_folder(self.folder)  # a name that is seen lasts, also of a process that was killed before it synced it
        self.transfers = Transfers()
        self._held: dict[Digest, bytes] = {}
        self._checked: dict[Digest, tuple[int, int, int]] = {}
        self._claims: dict[Digest, float] = {}
        self._claiming = threading.Lock()
        self._unsynced: set[Digest] = set()

    def put(self, data: bytes | memoryview, *, durable: bool = True) -> Digest:
        """Stores a blob atomically.

        Args:
            data: The blob.
            durable: Whether it must outlive a loss of power, too; else `is_whole` tells after one.

        Returns:
            Its name.

        Raises:
            PolicyViolation: If the bytes descend from a data source; a blob is given without a look at its data classes.
            StoreUnavailable: If there is no room for it now.
        """
        origins = origins_of(data)
        if origins:
            raise PolicyViolation(
                f"data of class {sorted(origins)} may not become a blob, because a blob is given without a look at them. "
                "Send it in a frame, where the data policy decides.",
                data_class=sorted(origins)[0],
            )
        digest = digest_of(data)
        path = self.path(digest)
        self.claim(digest)
        with storing(self.folder):
            if not (path.exists() and self._is_as_named(digest)):
                write_atomic(path, data, mode=PRIVATE, durable=durable)
                self._trust(digest)
                if not durable:
                    self._unsynced.add(digest)
            elif durable and digest in self._unsynced:
                with path.open("rb") as file:
                    sync(file.fileno(), path)
                sync_folder(self.folder)
            if durable:
                self._unsynced.discard(digest)
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

    def claim(self, digest: Digest) -> bool:
        """As `has`, for whoever is about to name it: for a while nobody lets go of it, also if it is still to come.

        Args:
            digest: Which.

        Returns:
            Whether the complete blob is stored.
        """
        with self._claiming:
            self._claims[digest] = time.monotonic()
        return self.has(digest)

    def let_go(self, digest: Digest, grace_s: float) -> bool:
        """Deletes a blob that nobody holds, complete or partial, unless it was just claimed or is being fetched; any thread.

        Args:
            digest: Which.
            grace_s: How long a claim stands.

        Returns:
            Whether it is gone.
        """
        with self._claiming:
            is_claimed = time.monotonic() - self._claims.get(digest, float("-inf")) < grace_s
            if is_claimed or digest in self.transfers:
                return False
            self.drop(digest)
        return True

    def forget_claims(self, grace_s: float) -> None:
        """Forgets claims that stand no more; any thread."""
        with self._claiming:
            now = time.monotonic()
            claims = tuple(self._claims.items())  # in one step: a role may drop a blob meanwhile
            self._claims = {digest: at for digest, at in claims if now - at < grace_s}

    def stored(self) -> Iterator[tuple[Digest, bool, os.stat_result]]:
        """What is in the folder: name, whether it is complete, and what the file system says of it."""
        with os.scandir(self.folder) as entries:
            for entry in entries:
                name, _, suffix = entry.name.partition(".")
                if _DIGEST.fullmatch(name) and suffix in ("", "part"):
                    try:
                        yield Digest(name), not suffix, entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue  # a run has let go of it meanwhile

    def is_whole(self, digest: Digest) -> bool:
        """Whether the blob is on disk and is what its name says; reads all of it."""
        path = self.path(digest)
        return path.exists() and _digest_of_file(path) == digest

    def check(self, digest: Digest) -> None:
        """Checks that a blob is what its name says; reads all of it, but once as long as its file does not change.

        Raises:
            StoreDamaged: If it is something else; the file is moved aside, so that the blob is missing and is fetched again.
            StoreError: If it is not here.
            StoreUnavailable: If the disk does not answer.
        """
        if digest in self._held:
            return
        with storing(self.path(digest)):
            try:
                is_whole = self._is_as_named(digest)
            except FileNotFoundError as error:
                raise self._missing(digest) from error
            if not is_whole:
                raise self._set_aside(digest)

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
            raise self._missing(digest) from error

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
            StoreDamaged, StoreUnavailable: As `check`.
        """
        if (held := self._held.get(digest)) is not None:
            return held[offset : None if size is None else offset + size] if offset or size is not None else held
        self.check(digest)
        with storing(self.path(digest)):
            try:
                with self.path(digest).open("rb") as file:
                    file.seek(offset)
                    return file.read(-1 if size is None else size)
            except FileNotFoundError as error:
                raise self._missing(digest) from error

    def find(self, digest: Digest) -> bytes | None:
        """Reads a small blob; None if it is not here."""
        if (held := self._held.get(digest)) is not None:
            return held
        return self.read(digest) if self.has(digest) else None

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
            if digest not in self.transfers:
                there = self.partial_size(digest)
                if not there:
                    raise self._missing(digest)
                raise Unreachable(
                    f"only the first {there:,} bytes of blob {digest[:12]} are here yet. Ask again, or another holder."
                )
            await self.transfers.moves(digest)
        try:
            with self._partial(digest).open("rb") as file:
                file.seek(offset)
                return file.read(size)
        except FileNotFoundError:  # it is whole, maybe only just
            if not self._is_checked(digest):
                await asyncio.to_thread(self.check, digest)
            return self.read(digest, offset, size)

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
            StoreUnavailable: If there is no room for them now.
        """
        there = self.partial_size(digest)
        if offset > there:
            raise StoreError(f"bytes at {offset:,} of blob {digest[:12]} leave a gap: only {there:,} are here.")
        partial = self._partial(digest)
        with storing(self.folder), appending(partial), open_private(partial, "r+b" if there else "wb") as file:
            file.seek(offset)
            file.write(data)

    def finish(self, digest: Digest) -> None:
        """Verifies the digest of a received blob and stores it under that name.

        Args:
            digest: Which.

        Raises:
            StoreError: If its content is another; the bytes are thrown away.
            StoreUnavailable: If the disk takes nothing now; the bytes stay.
        """
        with storing(self.folder):
            self._finish(digest)

    def _finish(self, digest: Digest) -> None:
        partial = self._partial(digest)
        if not partial.exists():
            partial.touch(PRIVATE)
        found = _digest_of_file(partial)
        if found != digest:
            size = partial.stat().st_size
            remove(partial)
            raise StoreError(
                f"{size:,} bytes received as blob {digest[:12]} have digest {found[:12]}. They were thrown away; "
                "fetch it again, from another node if this repeats."
            )
        with partial.open("rb") as file:
            sync(file.fileno(), partial)
        self.claim(digest)
        rename(partial, self.path(digest))
        sync_folder(self.folder)
        self._trust(digest)

    def drop(self, digest: Digest) -> None:
        """Deletes a blob, complete or partial; idempotent."""
        self._held.pop(digest, None)
        self._claims.pop(digest, None)
        self._checked.pop(digest, None)
        self._unsynced.discard(digest)
        with storing(self.folder):
            remove(self.path(digest))
            remove(self._partial(digest))

    def _is_checked(self, digest: Digest) -> bool:
        try:
            return digest in self._held or self._checked.get(digest) == _stamp(self.path(digest))
        except FileNotFoundError:
            return False

    def _is_as_named(self, digest: Digest) -> bool:
        path = self.path(digest)
        stamp = _stamp(path)
        if self._checked.get(digest) == stamp:
            return True
        if _digest_of_file(path) != digest:
            return False
        self._checked[digest] = stamp  # taken before: a change meanwhile is seen next time
        return True

    def _trust(self, digest: Digest) -> None:
        """What was just written needs no reading."""
        with contextlib.suppress(FileNotFoundError):
            self._checked[digest] = _stamp(self.path(digest))

    def _set_aside(self, digest: Digest) -> StoreDamaged:
        path = self.path(digest)
        aside = path.with_name(f"{path.name}{DAMAGED}")
        self._checked.pop(digest, None)
        text = f"It was moved to {aside.name!r}."
        try:
            rename(path, aside)
        except OSError as error:
            text = f"It cannot be moved away ({error.strerror})."
        return StoreDamaged(
            f"blob {digest[:12]} is damaged on disk: {str(path)!r} is not what its name says. {text} What needs it stops; "
            "it is fetched again where a node has it: `edgewise repair` looks for one.",
            path=str(path),
            digest=str(digest),
        )

    def _missing(self, digest: Digest) -> StoreError:
        """Why a blob is not here: whoever asks for one that a disk has spoiled is not to take this node for a liar."""
        text = f"blob {digest[:12]} is not in this node's store."
        aside = self.path(digest).with_name(f"{digest}{DAMAGED}")
        if aside.exists():
            return StoreDamaged(f"{text} It was damaged on its disk.", path=str(aside), digest=str(digest))
        return StoreError(f"{text} Fetch it from a node that announced it.")

    def _partial(self, digest: Digest) -> Path:
        path = self.path(digest)
        return path.with_name(path.name + ".part")


def _stamp(path: Path) -> tuple[int, int, int]:
    """What changes when a file does."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _digest_of_file(path: Path) -> Digest:
    with path.open("rb") as file:
        return Digest(hashlib.file_digest(file, "sha256").hexdigest())
