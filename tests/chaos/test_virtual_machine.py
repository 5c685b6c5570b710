"""The loop draws its order and no other, the disk forgets exactly what was not synced, the links do what their weather says."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgewise.chaos.faulty_links import FaultyLinks, Weather
from edgewise.chaos.virtual_disk import VirtualDisk
from edgewise.chaos.virtual_loop import LANE, Died, Lane, StandsStill, VirtualLoop
from edgewise.core.files import watch_disk
from edgewise.core.ids import NodeId, digest_of
from edgewise.fleet.store.events import EventLog
from edgewise.transport.bulk.blobs import FolderBlobs
from edgewise.transport.loopback import Parcel

DRAWS = 24


def in_virtual_time(seed: int, scene: Callable[[VirtualLoop], Any]) -> Any:
    loop = VirtualLoop(random.Random(seed))
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(scene(loop))
    finally:
        asyncio.set_event_loop(None)
        loop.discard()


def order_of(seed: int) -> tuple[list[str], float]:
    done: list[str] = []

    async def scene(loop: VirtualLoop) -> float:
        async def work(name: str) -> None:
            for step in range(3):
                done.append(f"{name}{step}")
                await asyncio.sleep(0)
            await asyncio.to_thread(done.append, f"{name} in a thread")

        tasks = []
        for name in "ab":
            context = contextvars.Context()
            context.run(LANE.set, Lane(name))
            tasks.append(loop.create_task(work(name), context=context))
        await asyncio.gather(*tasks)
        await asyncio.sleep(3600.0)
        return loop.time()

    return done, in_virtual_time(seed, scene)


def test_lanes_interleave_by_the_seed_and_each_keeps_its_order() -> None:
    orders = {tuple(order_of(seed)[0]) for seed in range(10)}
    assert len(orders) > 3
    assert order_of(3) == order_of(3)
    assert all([step for step in order if step[0] == "a"][:3] == ["a0", "a1", "a2"] for order in orders)
    assert 3600.0 <= order_of(3)[1] < 3601.0


def test_a_killed_lane_does_nothing_more_and_waiting_for_nothing_is_told() -> None:
    done: list[int] = []

    async def scene(loop: VirtualLoop) -> None:
        async def count() -> None:
            try:
                while True:
                    done.append(len(done))
                    await asyncio.sleep(1.0)
            finally:
                done.append(-1)

        lane, context = Lane("a"), contextvars.Context()
        context.run(LANE.set, lane)
        loop.create_task(count(), context=context)
        await asyncio.sleep(2.5)
        loop.kill(lane)
        await asyncio.sleep(10.0)
        assert done == [0, 1, 2]
        await loop.create_future()

    with pytest.raises(StandsStill, match="nothing is left to do and these wait"):
        in_virtual_time(0, scene)


def after_a_loss_of_power(
    folder: Path,
    seed: int,
    *lives: Callable[[Path], object],
    is_killed: bool = False,
    on_act: Callable[[str, Path], None] = lambda *_: None,
) -> None:
    """What is left of what some processes wrote, one after the other; each but the last is killed or loses its power, too."""
    disk = VirtualDisk(folder, random.Random(seed), on_act)

    def lived(write: Callable[[Path], object]) -> None:
        watch_disk(disk)
        write(folder)

    for write in lives:
        contextvars.Context().run(lived, write)
        disk.crash(power=write is lives[-1] or not is_killed)


def test_a_synced_blob_stands_and_another_is_lost_torn_or_luckily_there(tmp_path: Path) -> None:
    found = set()
    for seed in range(DRAWS):
        digests: list[Any] = []

        def write(folder: Path, digests: list[Any] = digests) -> None:
            blobs = FolderBlobs(folder / "blobs")
            digests.extend((blobs.put(b"kept" * 100), blobs.put(b"lost" * 100, durable=False)))

        after_a_loss_of_power(tmp_path / str(seed), seed, write)
        blobs = FolderBlobs(tmp_path / str(seed) / "blobs")
        assert blobs.is_whole(digests[0])
        found.add(blobs.is_whole(digests[1]) if blobs.has(digests[1]) else None)
    assert found == {True, False, None}


def test_a_log_keeps_what_was_durable_and_never_half_an_event(tmp_path: Path) -> None:
    lengths = set()
    for seed in range(DRAWS):

        def write(folder: Path) -> None:
            log = EventLog.open(folder / "events.db")
            log.append("run", "kept", b"1")
            log.append_many("run", [("maybe", b"2"), ("maybe", b"3")], durable=False)
            log.append_many("run", [("maybe", b"4")], durable=False)

        after_a_loss_of_power(tmp_path / str(seed), seed, write)
        log = EventLog.open(tmp_path / str(seed) / "events.db")
        lengths.add(len(log.read("run")))
        log.close()
    assert lengths >= {1, 3}
    assert lengths <= {1, 3, 4}


@pytest.mark.parametrize("is_killed", [True, False])
def test_what_lasted_once_lasts_over_a_second_loss_and_a_kill_makes_nothing_last(
    tmp_path: Path, is_killed: bool
) -> None:
    events, blobs = set(), set()
    for seed in range(DRAWS):
        digests: list[Any] = []

        def write(folder: Path, digests: list[Any] = digests) -> None:
            log = EventLog.open(folder / "events.db")
            log.append("run", "kept", b"1")
            log.append("run", "kept", b"2")
            for data in (b"3", b"4"):
                log.append_many("run", [("maybe", data)], durable=False)
            store = FolderBlobs(folder / "blobs")
            digests.extend((store.put(b"kept"), store.put(b"maybe", durable=False)))

        def later(folder: Path) -> None:
            if not is_killed:
                EventLog.open(folder / "events.db")

        here = tmp_path / str(seed)
        after_a_loss_of_power(here, seed, write, later, is_killed=is_killed)
        log = EventLog.open(here / "events.db")
        events.add(len(log.read("run")))
        log.close()
        assert FolderBlobs(here / "blobs").is_whole(digests[0])
        blobs.add(FolderBlobs(here / "blobs").is_whole(digests[1]))
    assert {2, 3} <= events <= {2, 3, 4}
    assert blobs == {True, False}


@pytest.mark.parametrize("act", ["commit", "rename"])
def test_what_a_killed_process_had_not_synced_lasts_once_its_successor_has_seen_it(tmp_path: Path, act: str) -> None:
    for seed in range(DRAWS):
        here, deaths, found = tmp_path / str(seed), [act], []

        def dies(what: str, path: Path, deaths: list[str] = deaths) -> None:
            if deaths and what.startswith(deaths[0]) and what.endswith("done"):
                deaths.clear()
                raise Died

        def write(folder: Path) -> None:
            log, store = EventLog.open(folder / "events.db"), FolderBlobs(folder / "blobs")
            with contextlib.suppress(Died):
                store.put(b"a blob")
                log.append("run", "kind", b"an event")

        def see(folder: Path, found: list[tuple[int, bool]] = found) -> EventLog:
            log = EventLog.open(folder / "events.db")
            found.append((len(log.read("run")), FolderBlobs(folder / "blobs").is_whole(digest_of(b"a blob"))))
            return log

        after_a_loss_of_power(here, seed, write, see, is_killed=True, on_act=dies)
        see(here).close()
        assert found == [(int(act == "commit"), True)] * 2


def test_a_blob_that_was_there_lasts_once_it_is_put_to_last(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        store = FolderBlobs(folder / "blobs")
        store.put(b"a blob", durable=False)
        store.put(b"a blob")

    for seed in range(DRAWS):
        after_a_loss_of_power(tmp_path / str(seed), seed, write)
        assert FolderBlobs(tmp_path / str(seed) / "blobs").is_whole(digest_of(b"a blob"))


def test_links_lose_and_repeat_by_their_weather_and_keep_the_order_of_the_rest() -> None:
    async def scene(weather: Weather) -> list[int]:
        links, came = FaultyLinks(random.Random(1)), []
        links.weather[NodeId("b")] = weather
        for number in range(200):
            parcel = Parcel("query", NodeId("a"), NodeId("b"), "key", bytes([number]))
            links.carry(parcel, lambda content: came.append(content[0]))
        await asyncio.sleep(60.0)
        return came

    fair, lossy, twice, deaf, late = (
        in_virtual_time(1, lambda _, w=weather: scene(w))  # type: ignore[misc]
        for weather in (Weather(), Weather(lose=0.3), Weather(duplicate=0.5), Weather(deaf=True), Weather(reorder=0.5))
    )
    assert fair == list(range(200))
    assert 100 < len(lossy) < 180
    assert lossy == sorted(lossy)
    assert 260 < len(twice) < 340
    assert deaf == []
    assert late != fair
    assert sorted(late) == fair
