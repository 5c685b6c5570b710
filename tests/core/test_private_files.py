"""What a node keeps is its owner's alone: made so under any umask, mended at the start, and told by the doctor."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgewise.cli import main
from edgewise.core.ids import digest_of
from edgewise.core.private_files import exposed
from edgewise.fleet.node.sole_process import StateLock
from edgewise.fleet.store.backup import restore, write_backup
from edgewise.testing import LoopbackFleet
from edgewise.transport.bulk.blobs import FolderBlobs


@pytest.fixture(autouse=True)
def lax() -> Iterator[None]:
    """The umask that shares everything."""
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_every_file_of_every_node_is_for_its_owner_alone(tmp_path: Path) -> None:
    seen: dict[str, int] = {}

    async def scene() -> None:
        async with LoopbackFleet(tmp_path, edge_of={"a": "edge-1", "b": "edge-1"}) as fleet:
            await fleet.train("scaffold", num_rounds=3, protocol="hierarchical")
            for path in (tmp_path / "state").rglob("*"):
                with contextlib.suppress(FileNotFoundError):  # it fell free meanwhile
                    seen[f"{path.parent.name}/{path.name}"] = mode(path)
            write_backup(tmp_path / "state" / "cloud", tmp_path / "cloud.backup")

    asyncio.run(scene())
    assert {"cloud/events.db", "cloud/events.db-wal", "cloud/registry.db-shm", "edge-1/blobs", "device-a/kept"} <= {
        *seen
    }
    assert {name: bits for name, bits in seen.items() if bits & 0o077} == {}
    assert mode(tmp_path / "cloud.backup") == 0o600
    restore(tmp_path / "cloud.backup", tmp_path / "again")
    assert exposed(tmp_path / "again") == []


def test_a_part_of_a_blob_is_for_its_owner_alone(tmp_path: Path) -> None:
    blobs, digest = FolderBlobs(tmp_path / "new" / "blobs"), digest_of(b"ab")
    blobs.write_at(digest, 0, b"a")
    assert [mode(path) for path in (*blobs.folder.iterdir(), blobs.folder, blobs.folder.parent)] == [
        0o600,
        0o700,
        0o700,
    ]
    blobs.write_at(digest, 1, b"b")
    blobs.finish(digest)
    assert mode(blobs.path(digest)) == 0o600


def left_open(state: Path) -> list[Path]:
    """What 0.1.0 left: a folder, a log and a blob that everybody may read, and a program beside them."""
    (state / "blobs").mkdir(parents=True)
    files = [state / "events.db", state / "blobs" / "ab", state / "start.sh"]
    for file in files:
        file.touch(0o644)
    files[2].chmod(0o755)
    return sorted((state, state / "blobs", *files))


def test_a_node_mends_what_was_left_open_as_it_starts(tmp_path: Path) -> None:
    state = tmp_path / "state"
    assert exposed(state) == []
    assert left_open(state) == exposed(state)
    asyncio.run(StateLock.take(state)).close()
    assert exposed(state) == []
    assert mode(state / "start.sh") == 0o700


def test_the_doctor_names_what_others_may_read_and_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGEWISE_STATE", str(tmp_path))
    state = tmp_path / "edge 1"
    left_open(state)

    def told() -> dict[str, object]:
        main.run(["doctor", "--json"])
        return next(f for f in json.loads(capsys.readouterr().out) if f["what"] == f"state {state}")

    found = told()
    assert found["ok"] is False
    assert found["found"] == f"others may read or enter {state} and 4 more"
    cure = str(found["cure"]).partition(";")[0]
    assert os.system(cure) == 0
    assert told()["ok"] is True
