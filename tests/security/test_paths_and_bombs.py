"""What a stranger names or packs: no name becomes a path, no archive leaves its folder, little bytes do not become many."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path

import msgspec
import numpy as np
import pytest
import zstandard

from edgewise.codecs import make_codec
from edgewise.codecs.bundle import CodedSection
from edgewise.core.errors import FrameRefused, InputError, RemoteError, StoreError
from edgewise.fleet.store.backup import restore
from edgewise.inference.cuts import MOST_ENTRIES, decode_cut
from edgewise.testing import LoopbackFleet
from edgewise.transport.frame import Frame, Tensor
from tests.fuzz.of_files import backups
from tests.inference.tiny import rescaling_graph

ODD = "../../outside"


def outside(folder: Path) -> list[Path]:
    """Files that are in no folder of a node's own."""
    return [p for p in folder.parent.rglob("*outside*") if p.is_file()] + [p for p in folder.glob("*") if p.is_file()]


def test_names_of_runs_and_models_become_no_paths(tmp_path):
    fleet_folder = tmp_path / "fleet"

    async def run() -> None:
        async with LoopbackFleet(fleet_folder, edge_of={"a": "edge-1"}) as fleet:
            status = await fleet.train({"name": "fed_avg"}, num_rounds=1, name=ODD)
            assert (status.run, status.state) == (ODD, "completed")
            with pytest.raises(RemoteError, match="cannot be a model's name"):
                await fleet.operator.register(rescaling_graph().model_bytes, task=ODD)

    asyncio.run(run())
    assert outside(fleet_folder) == []


def test_a_backup_writes_into_its_own_folder_alone(tmp_path):
    (inside := tmp_path / "a" / "b").mkdir(parents=True)
    refused = 0
    for number, data in enumerate(backups()[1:]):
        (file := inside / f"backup-{number}").write_bytes(data)
        try:
            restore(file, inside / f"state-{number}")
        except (InputError, StoreError):
            refused += 1
    assert refused == len(backups()) - 1
    assert {path.name for path in tmp_path.rglob("*")} == {"a", "b", *(f"backup-{n}" for n in range(refused))}
    assert not Path("/tmp/outside").exists()


def test_a_hand_over_of_packed_zeros_is_not_unpacked():
    """A frame of some kilobytes may claim a gigabyte where the plan leaves sizes open."""
    num = MOST_ENTRIES + 1
    header = msgspec.msgpack.encode([[num], [["values", "float32", [num]]]])
    packer = zstandard.ZstdCompressor(level=1).compressobj(size=4 + len(header) + 4 * num)
    parts = [packer.compress(struct.pack("<I", len(header)) + header)]
    parts += [packer.compress(bytes(min(2**24, left))) for left in range(4 * num, 0, -(2**24))]
    packed = np.frombuffer(b"".join([*parts, packer.flush()]), np.uint8)
    assert packed.size < 100_000
    frame = Frame(kind="stage_request", tensors=(Tensor("x/packed", packed),))
    with pytest.raises(FrameRefused, match="claim 67,108,865 entries; at most 67,108,864 are unpacked"):
        decode_cut(make_codec("zstd"), None, (CodedSection("x", (num,)),), frame)
