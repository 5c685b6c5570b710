"""A node whose network library has panicked is of no use to anybody: its process begins anew, and takes part again."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from edgewise.core.ids import digest_of
from tests.live.small_fleet import EDGE, World

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(200)]
PANICS = '''"""Imported as a process starts: Zenoh panics in the one that a file names, in whatever is asked of it."""

import os
import time
from pathlib import Path

import zenoh

STARTED, NAMED = time.time(), Path(__file__).parent / "panics"


class PanicException(BaseException):
    pass


class Session:
    def __init__(self, session):
        self.session = session

    def __getattr__(self, name):
        if NAMED.exists() and NAMED.read_text() == str(os.getpid()) and NAMED.stat().st_mtime > STARTED:
            raise PanicException("called `Result::unwrap()` on an `Err` value: PoisonError { .. }")
        found = getattr(self.session, name)
        return Session(found) if name == "info" else found


open_session = zenoh.open
zenoh.open = lambda config: Session(open_session(config))
'''


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("panic")
    (folder / "panicky").mkdir()
    (folder / "panicky" / "sitecustomize.py").write_text(PANICS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{folder / 'panicky'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        with World(folder) as made:
            yield made


def panic_in(world: World, pid: int) -> None:
    (world.folder / "panicky" / "panics").write_text(str(pid))


@pytest.mark.parametrize("node", [EDGE, "device-1"])
def test_a_node_whose_zenoh_panics_in_mid_run_is_back_and_the_run_ends_with_the_same_bytes(
    world: World, node: str
) -> None:
    async def scene() -> None:
        await world.all_here()
        world.stop("client-0")
        await world.submit(f"panic-{node}", num_rounds=2)
        await world.stand("client-0")
        before = (await world.rows(lambda rows: node in rows))[node].info.generation
        process = world.fleet.children[node]
        panic_in(world, process.pid)
        world.go()
        status = await world.end_of(f"panic-{node}")
        assert status.state == "completed"
        assert status.model == digest_of(world.simulated("hierarchical", 2))
        rows = await world.rows(lambda rows: rows[node].state == "alive" and rows[node].info.generation > before)
        assert rows[node].info.generation > before
        assert process.running
        assert "begins anew: zenoh has panicked" in world.log(node)

    world.run(scene())


def test_a_node_that_begins_anew_and_is_told_to_stop_stops(world: World) -> None:
    async def scene() -> None:
        await world.all_here()
        process, before = world.fleet.children["device-2"], len(world.log("device-2"))
        panic_in(world, process.pid)

        async def begins_anew() -> bool | None:
            return "begins anew" in world.log("device-2")[before:] or None

        await world.eventually(begins_anew)
        process.send_signal(signal.SIGTERM)

        async def has_ended() -> bool | None:
            return not process.running or None

        await world.eventually(has_ended)
        await world.restart("device-2")

    world.run(scene())
