from __future__ import annotations

from pathlib import Path

import pytest

from edgewise.core.errors import StoreError
from edgewise.core.ids import Digest, digest_of
from edgewise.transport.bulk.blobs import MOST_HELD_BYTES, FolderBlobs

DATA = bytes(range(256)) * 10
NAME = digest_of(DATA)


def test_put_names_bytes_by_their_content(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path / "new" / "folder")
    assert blobs.put(DATA) == blobs.put(DATA) == NAME
    assert blobs.has(NAME)
    assert blobs.size(NAME) == len(DATA)
    assert blobs.read(NAME) == blobs.path(NAME).read_bytes() == DATA
    assert blobs.read(NAME, 2550, 100) == DATA[2550:]


def test_partial_blob_is_gone_on_with_by_another_process(tmp_path: Path) -> None:
    first = FolderBlobs(tmp_path)
    first.write_at(NAME, 0, DATA[:1000])
    second = FolderBlobs(tmp_path)
    assert second.partial_size(NAME) == 1000
    assert not second.has(NAME)
    second.write_at(NAME, 1000, DATA[1000:])
    second.finish(NAME)
    assert second.read(NAME) == DATA
    assert second.partial_size(NAME) == 0


def test_bytes_that_leave_a_gap_are_refused(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path)
    blobs.write_at(NAME, 0, DATA[:10])
    with pytest.raises(StoreError, match=r"bytes at 11 of blob .* leave a gap: only 10 are here"):
        blobs.write_at(NAME, 11, b"x")


def test_other_content_is_refused_and_thrown_away(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path)
    blobs.write_at(NAME, 0, DATA[:-1] + b"?")
    with pytest.raises(StoreError, match="thrown away"):
        blobs.finish(NAME)
    assert not blobs.has(NAME)
    assert blobs.partial_size(NAME) == 0


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "A" * 64, "a" * 63])
def test_name_that_is_no_digest_never_becomes_a_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreError, match="is not a digest"):
        FolderBlobs(tmp_path).read(Digest(name))


def test_missing_blob_says_so(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path)
    with pytest.raises(StoreError, match="is not in this node's store"):
        blobs.read(NAME)
    with pytest.raises(StoreError, match="is not in this node's store"):
        blobs.size(NAME)
    blobs.drop(NAME)


def test_held_blob_is_read_like_others_and_leaves_no_file(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path)
    digest = blobs.hold(b"small and short-lived")
    assert (blobs.has(digest), blobs.size(digest), blobs.read(digest, 6, 3)) == (True, 21, b"and")
    assert not list(tmp_path.iterdir())
    assert not FolderBlobs(tmp_path).has(digest)
    assert blobs.put(b"small and short-lived") == digest
    assert FolderBlobs(tmp_path).read(digest) == b"small and short-lived"
    blobs.drop(digest)
    assert not blobs.has(digest)
    assert not list(tmp_path.iterdir())


def test_large_blob_is_not_held_in_memory(tmp_path: Path) -> None:
    digest = FolderBlobs(tmp_path).hold(bytes(MOST_HELD_BYTES + 1))
    assert FolderBlobs(tmp_path).is_whole(digest)
