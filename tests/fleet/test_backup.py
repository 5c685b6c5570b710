"""A coordinator's state in one file, taken while it runs, and a fleet that goes on from it."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import tarfile
from pathlib import Path

import pytest

from edgewise.cli.main import run
from edgewise.core.errors import InputError, StoreError
from edgewise.fleet.messages import Deploy
from edgewise.fleet.store.backup import restore, write_backup
from edgewise.testing.serving_fleet import ServingFleet
from tests.inference.tiny import split_plan, two_exit_graph

GRAPH = two_exit_graph()


def in_force(folder: Path, backup: Path | None = None) -> dict[str, int]:
    """What serves on a fleet; with a backup to write, after a version came into force and another was registered."""

    async def scene() -> dict[str, int]:
        async with ServingFleet(folder) as fleet:
            if backup is not None:
                for seed in (0, 1):
                    await fleet.register(two_exit_graph(seed=seed).model_bytes, "digits")
                assert (await fleet.operator.deploy(Deploy(1, (split_plan(GRAPH),), deadline_s=5.0))).accepted
                write_backup(folder / "state/cloud", backup)
            known = await fleet.operator.versions()
            assert await fleet.operator.graph(2) == two_exit_graph(seed=1).model_bytes
            assert [line.version for line in known.history] == [1]
            return known.in_force

    return asyncio.run(scene())


@pytest.fixture(scope="module")
def backup(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fleet")
    assert in_force(folder, folder / "cloud.backup") == {"digits": 1}
    return folder / "cloud.backup"


def test_a_restored_coordinator_knows_what_it_knew(
    backup: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["restore", str(backup), "--state", str(tmp_path / "state/cloud")]) == 0
    assert "restored 2 versions and " in capsys.readouterr().out
    assert in_force(tmp_path) == {"digits": 1}
    assert run(["backup", str(tmp_path / "state/cloud"), "--out", str(tmp_path / "again"), "--json"]) == 0
    assert '"versions":2' in capsys.readouterr().out


def test_a_folder_in_use_is_left_alone(backup: Path, tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used/file").write_text("mine")
    with pytest.raises(InputError, match="is not empty; a backup is restored into a new folder"):
        restore(backup, tmp_path / "used")
    assert [path.name for path in tmp_path.rglob("*")] == ["used", "file"]


def test_a_damaged_backup_restores_nothing(backup: Path, tmp_path: Path) -> None:
    data = bytearray(backup.read_bytes())
    place = data.find(GRAPH.model_bytes)
    data[place + 100] ^= 1
    (tmp_path / "damaged").write_bytes(data)
    with pytest.raises(StoreError, match=r"'blobs/.*' in .* is damaged or missing"):
        restore(tmp_path / "damaged", tmp_path / "state")
    (tmp_path / "cut").write_bytes(backup.read_bytes()[: place + 100])
    (tmp_path / "other").write_bytes(b"no backup" * 100)
    with tarfile.open(tmp_path / "tar", "w") as tar:
        tar.add(backup.parent / "state/cloud/registry.db", "registry.db")
    for name in ("cut", "other", "tar"):
        with pytest.raises(InputError, match="is no whole backup"):
            restore(tmp_path / name, tmp_path / "state")
    with pytest.raises(FileNotFoundError):
        restore(tmp_path / "nowhere", tmp_path / "state")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "damaged", "other", "tar"]


def test_what_is_no_coordinators_state_is_not_backed_up(backup: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"is no state folder of a coordinator: it has no events\.db and no registry\.db"
    ):
        write_backup(tmp_path, tmp_path / "out")
    shutil.copytree(backup.parent / "state/cloud", tmp_path / "state")
    shutil.rmtree(tmp_path / "state/blobs")
    with pytest.raises(StoreError, match="version 1 lacks its blob"):
        write_backup(tmp_path / "state", tmp_path / "out")
    with sqlite3.connect(tmp_path / "state/registry.db") as raw:
        raw.execute("PRAGMA user_version=99")
    raw.close()
    with pytest.raises(StoreError, match="has format 99"):
        write_backup(tmp_path / "state", tmp_path / "out")
    assert not (tmp_path / "out").exists()
