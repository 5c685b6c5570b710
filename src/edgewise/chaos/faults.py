"""The faults: what each does to a node of a virtual fleet, and how it is over.

A fault begins at a moment of its node and ends by itself after some seconds: a node that was killed is started again, a link
heals, a disk has room. So a run can always go on, and has to.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import msgspec

from edgewise.chaos.crafted_peer import CRAFTED
from edgewise.chaos.faulty_links import Weather
from edgewise.chaos.virtual_fleet import VirtualFleet
from edgewise.chaos.virtual_loop import Lane
from edgewise.testing.fleet import CLOUD

LOOK_AGAIN_S = 0.05
"""A node without a blob is looked at again after so long."""
SLOW_DISK_S = 0.3
Undo = Callable[[], object]


class Fault(msgspec.Struct, frozen=True):
    """One fault of a campaign.

    Attributes:
        kind: Name in `FAULTS`.
        node: Whom it hits.
        moment: When: after so many things that a node did since the run was submitted.
        seconds: How long it lasts.
        of: Whose moment it is; "" for its own.
        during: A place, `client/working`: only what was done while the node that is met was in that is counted. "" counts all.
    """

    kind: str
    node: str
    moment: int
    seconds: float
    of: str = ""
    during: str = ""

    def __str__(self) -> str:
        whose, during = f"{self.of}'s" if self.of else "its", f" of {self.during}" if self.during else ""
        return f"{self.kind} {self.node} at {whose} moment {self.moment}{during} for {self.seconds:.3g} s"


@dataclass(frozen=True, slots=True)
class FaultKind:
    """A kind of fault.

    Attributes:
        begin: Does it; what it returns is called when the fault is over.
        says: One line for people.
        hits: Which nodes: `all`, `device`, `operator` where it is an order of one, `spared`: a device that the run can do
            without, or `apart`: all, and it is drawn apart from the others.
        loses_frames: Whether a frame may vanish without anybody hearing of it: its sender then waits for its own time-out.
        longest_s: How long it lasts at most.
    """

    begin: Callable[[VirtualFleet, Fault], Undo]
    says: str
    hits: str = "all"
    loses_frames: bool = False
    longest_s: float = 8.0


def _nothing() -> None:
    return None


def _crash(fleet: VirtualFleet, fault: Fault, *, power: bool) -> Undo:
    if fleet.lanes[fault.node].is_dead:
        return _nothing
    fleet.crash(fault.node, power=power)
    return partial(_start_again, fleet, fault.node)


def _start_again(fleet: VirtualFleet, node: str) -> None:
    fleet.spawn(fleet.start_again(node), f"start {node} again")


def _leave(fleet: VirtualFleet, fault: Fault) -> Undo:
    """The cloud goes down, and a device meanwhile: nobody sees it go. It stays away until the run is over."""
    gone, is_spared = (
        [name for name in (CLOUD, fault.node) if not fleet.lanes[name].is_dead],
        fleet.can_spare(fault.node),
    )
    for name in gone:
        fleet.crash(name, power=False)
    if is_spared and fault.node in gone:
        gone.remove(fault.node)
        fleet.away.add(fault.node)

    def over() -> None:
        for name in gone:
            _start_again(fleet, name)

    return over


def _freeze(fleet: VirtualFleet, fault: Fault) -> Undo:
    lane: Lane = fleet.lanes[fault.node]
    if lane.is_dead:
        return _nothing
    fleet.freeze(fault.node)
    return lambda: fleet.thaw(fault.node, lane)


def _cut(fleet: VirtualFleet, fault: Fault) -> Undo:
    fleet.fabric.cut(fault.node)
    return lambda: fleet.fabric.heal(fault.node)


def _hush(fleet: VirtualFleet, fault: Fault, *, deaf: bool) -> Undo:
    fleet.hush(fault.node, deaf=deaf)

    def over() -> None:
        weather = fleet.links.of(fault.node)
        weather.deaf = weather.mute = False
        fleet.fabric.heal(fault.node)

    return over


def _weather(fleet: VirtualFleet, fault: Fault, **changes: float) -> Undo:
    weather = fleet.links.of(fault.node)
    for name, value in changes.items():
        setattr(weather, name, value)

    def over() -> None:
        for name in changes:  # also where another such fault goes on: what it found was no fair weather
            setattr(weather, name, getattr(Weather(), name))

    return over


def _trouble(fleet: VirtualFleet, fault: Fault, *, kind: str) -> Undo:
    disk = fleet.disks[fault.node]
    disk.trouble = kind

    def over() -> None:
        disk.trouble = ""

    return over


def _flip(fleet: VirtualFleet, fault: Fault) -> Undo:
    """Now, or as soon as the node has a blob."""
    flipping = fleet.spawn(_flip_first(fleet, fault.node), f"flip a blob of {fault.node}")
    return flipping.cancel


async def _flip_first(fleet: VirtualFleet, node: str) -> None:
    while not fleet.flip_blob(node):  # noqa: ASYNC110 - nothing says that a blob is there
        await asyncio.sleep(LOOK_AGAIN_S)


def _slow_disk(fleet: VirtualFleet, fault: Fault) -> Undo:
    fleet.loop.slow_threads_s[fault.node] = SLOW_DISK_S
    return lambda: fleet.loop.slow_threads_s.pop(fault.node, None)


def _jump(fleet: VirtualFleet, fault: Fault, *, seconds: float) -> Undo:
    fleet.wall_jump_s[fault.node] = seconds
    return lambda: fleet.wall_jump_s.pop(fault.node, None)


def _expire(fleet: VirtualFleet, fault: Fault) -> Undo:
    """It comes with a certificate that expires at once, and later with a renewed one."""
    if fleet.lanes[fault.node].is_dead:
        return _nothing
    fleet.valid_s[fault.node] = float(int(fleet.loop.time()) + 1)
    _renew(fleet, fault.node)

    def over() -> None:
        fleet.valid_s.pop(fault.node, None)
        _renew(fleet, fault.node)

    return over


def _renew(fleet: VirtualFleet, node: str) -> None:
    if not fleet.lanes[node].is_dead:
        fleet.crash(node, power=False)
        _start_again(fleet, node)


def _crafted(fleet: VirtualFleet, fault: Fault, *, kind: str) -> Undo:
    fleet.spawn(CRAFTED[kind](fleet, fault.moment), f"crafted {kind}")
    return _nothing


FAULTS: Mapping[str, FaultKind] = {
    "kill": FaultKind(partial(_crash, power=False), "the process is killed, also in the middle of a write"),
    "power": FaultKind(partial(_crash, power=True), "the power is lost: what was not synced is gone or torn"),
    "leave": FaultKind(_leave, "a device leaves while the cloud is down, until the run is over", hits="spared"),
    "freeze": FaultKind(_freeze, "the process is stopped and goes on later"),
    "cut": FaultKind(_cut, "nobody reaches it, its connections break"),
    "deaf": FaultKind(partial(_hush, deaf=True), "half-open: nothing arrives at it", loses_frames=True),
    "mute": FaultKind(partial(_hush, deaf=False), "half-open: nothing leaves it", loses_frames=True),
    "slow": FaultKind(partial(_weather, delay_s=3.0), "its frames take up to 3 s"),
    "lose": FaultKind(partial(_weather, lose=0.3), "three in ten of its frames vanish", loses_frames=True),
    "fade": FaultKind(partial(_weather, lose=0.9), "nine in ten of its frames vanish", hits="apart", loses_frames=True),
    "duplicate": FaultKind(partial(_weather, duplicate=0.5), "half of its frames arrive twice"),
    "reorder": FaultKind(partial(_weather, reorder=0.7, delay_s=0.5), "its frames overtake each other"),
    "corrupt": FaultKind(partial(_weather, corrupt=0.2), "bits of its frames flip"),
    "disk full": FaultKind(partial(_trouble, kind="full"), "no write finds room"),
    "locked": FaultKind(partial(_trouble, kind="locked"), "another program holds its database"),
    "blob flipped": FaultKind(_flip, "bits of a blob on its disk flip", hits="apart"),
    "slow disk": FaultKind(_slow_disk, f"what waits for its disk waits up to {SLOW_DISK_S:g} s longer", hits="apart"),
    "clock ahead": FaultKind(partial(_jump, seconds=3600.0), "its wall clock is an hour ahead"),
    "clock behind": FaultKind(partial(_jump, seconds=-3600.0), "its wall clock is an hour behind"),
    "far clock": FaultKind(
        partial(_jump, seconds=-7 * 86400.0), "its wall clock is before its certificates were issued"
    ),
    "expire": FaultKind(_expire, "its certificate expires and is renewed later"),
    **{
        kind: FaultKind(partial(_crafted, kind=kind), says, hits="operator")
        for kind, says in {
            "forge": "an enrolled device reports in the name of others",
            "stale": "an enrolled device sends a report of a round that is over",
            "replay": "frames that were sent before are sent again",
            "readdress": "frames to one node are sent to another",
            "wrong tier": "an enrolled device gives orders",
            "oversize": "an enrolled device announces far too much",
        }.items()
    },
}


def begin(fleet: VirtualFleet, fault: Fault, on_over: Callable[[Fault], None]) -> None:
    """Begins a fault, and has it be over after its time.

    Args:
        fleet: Whose.
        fault: Which.
        on_over: Told when it is.
    """
    undo: Undo = _nothing

    def over() -> None:
        undo()
        on_over(fault)

    try:
        undo = FAULTS[fault.kind].begin(fleet, fault)
    finally:  # also where the node died of another one in that very moment
        asyncio.get_running_loop().call_later(fault.seconds, over, context=contextvars.Context())
