"""Judges a campaign against real processes: what must hold whatever was disturbed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from edgewise.chaos.live.live_requests import Request
from edgewise.chaos.live.live_scene import CLIENTS, LiveScene
from edgewise.chaos.live.live_schedule import CLOUD, DEVICES, EDGES, LiveSchedule
from edgewise.core.errors import EdgewiseError
from edgewise.core.ids import digest_of
from edgewise.fleet.messages import RunStatus

MOST_MORE_DESCRIPTORS, MOST_MORE_THREADS = 24, 12
"""A process may have so many more than after its first campaign: connections to others come and go."""
SETTLED_S = 20.0
"""Within so many seconds what was opened on account of faults is given back: threads that wait for work live ten."""
SERVES_S = 60.0
"""Within so many seconds after the last fault everybody serves what is in force."""
DAMAGE_WORDS = ("damaged", "spoiled", "repair", "not in this node's store", "lacks what it needs")
"""A run may end for one of these where a blob was flipped."""


async def broken_invariants(
    scene: LiveScene, schedule: LiveSchedule, status: RunStatus, requests: list[Request]
) -> list[str]:
    """What does not hold after a campaign whose faults are over.

    Args:
        scene: The fleet.
        schedule: What was done.
        status: How the run ended.
        requests: All that were sent.

    Returns:
        A sentence for each.
    """
    return [
        *_of_the_run(scene, schedule, status),
        *_of_requests(requests),
        *await _of_versions(scene, requests),
        *await _of_what_serves(scene),
    ]


def names_damage(schedule: LiveSchedule, status: RunStatus) -> bool:
    """Whether a run says that a damaged blob keeps it from going on, where one was damaged."""
    was_flipped = any(fault.kind == "blob flipped" for fault in schedule.faults)
    return was_flipped and any(word in status.cause for word in DAMAGE_WORDS)


def _of_the_run(scene: LiveScene, schedule: LiveSchedule, status: RunStatus) -> list[str]:
    if status.state == "running":
        return [f"the run has not ended, though every fault is over; it says: {status.cause}"]
    if status.state != "completed":
        if names_damage(schedule, status):
            return []
        return [f"the run ended {status.state}: {status.cause}"]
    if len(status.rounds) != schedule.num_rounds and schedule.run.protocol != "gossip":
        return [f"{len(status.rounds)} rounds are told of {schedule.num_rounds}"]
    is_whole = all(record.num_updates == len(CLIENTS) for record in status.rounds)
    if not (schedule.run.is_in_lockstep and is_whole):
        return []
    expected = digest_of(scene.expected_model(schedule.run, schedule.num_rounds, schedule.training_seed))
    return [] if status.model == expected else ["the model is another than that of the run nobody disturbed"]


def _of_requests(requests: list[Request]) -> list[str]:
    found = []
    for word in ("lost", "late"):
        those = [request for request in requests if request.outcome == word]
        if those:
            one = those[0]
            found.append(
                f"{len(those)} requests are {word}, e.g. {one.device} after {one.latency_s:.2f} s: {one.error}"
            )
    return found


async def _of_versions(scene: LiveScene, requests: list[Request]) -> list[str]:
    served = {int(r.parameters["model_version"]) for r in requests if "model_version" in r.parameters}
    try:
        versions = (await scene.operator.versions()).versions
    except EdgewiseError as error:
        return [f"the registry gives no answer: {error.message}"]
    refused = {version.number for version in versions if version.gate is not None and not version.gate.passed}
    found = [f"version {number} served, which the gate refused" for number in sorted(served & refused)]
    known = {version.number for version in versions}
    return found + [f"version {number} served, which nobody registered" for number in sorted(served - known)]


async def _of_what_serves(scene: LiveScene) -> list[str]:
    """Once the faults are over, every node soon has the deployment in force, whichever it missed."""
    end = time.monotonic() + SERVES_S
    found = "nobody answers"
    while time.monotonic() < end:
        with contextlib.suppress(EdgewiseError):
            found = await _not_in_force(scene)
        if not found:
            return []
        await asyncio.sleep(0.5)
    return [f"not everybody serves what is in force: {found}"]


async def _not_in_force(scene: LiveScene) -> str:
    name = scene.task.name
    version = (await scene.operator.versions()).in_force.get(name, 0)
    rows = {str(row.info.node): row.info for row in (await scene.operator.nodes(fresh=True)).nodes}
    served = {node: rows[node].models.get(name) for node in (CLOUD, *EDGES, *DEVICES) if node in rows}
    if any(now is None or now.version != version for now in served.values()):
        numbers = {node: now and now.version for node, now in served.items()}
        return f"version {version} is, served are {numbers}"
    digests = {now.digest for now in served.values() if now is not None}
    return "" if len(digests) == 1 else f"of version {version} there are {len(digests)} deployments"


@dataclass(slots=True)
class HeldBefore:
    """What a fleet's processes had after their first campaign, to see what grows.

    Attributes:
        seen: (descriptors, threads) by process id.
    """

    seen: dict[int, tuple[int, int]] = field(default_factory=dict)

    async def grown(self, scene: LiveScene) -> list[str]:
        """Processes that ended by themselves, and those that keep more descriptors or threads than before."""
        end = time.monotonic() + SETTLED_S
        while (found := self._grown(scene)) and time.monotonic() < end:  # noqa: ASYNC110 - looked at from outside
            await asyncio.sleep(0.5)
        return found

    def _grown(self, scene: LiveScene) -> list[str]:
        found = []
        for name, child in scene.fleet.children.items():
            if not child.running:
                found.append(f"{name} ended by itself")
                continue
            now = _held(child.pid)
            before = self.seen.setdefault(child.pid, now)
            for what, had, has, most in zip(
                ("descriptors", "threads"), before, now, (MOST_MORE_DESCRIPTORS, MOST_MORE_THREADS), strict=True
            ):
                found += [f"{name} has {has} {what}, {had} after its first campaign"] if has > had + most else []
        return found

    @staticmethod
    def log_sizes(scene: LiveScene) -> dict[Path, int]:
        """How long each log is."""
        return {path: path.stat().st_size for path in (scene.folder / "logs").glob("*.log")}


def unexpected_lines(scene: LiveScene, since: dict[Path, int]) -> list[str]:
    """Tracebacks that processes logged during a campaign."""
    found = []
    for path in sorted((scene.folder / "logs").glob("*.log")):
        with path.open("rb") as file:
            file.seek(since.get(path, 0))
            text = file.read().decode(errors="replace")
        if "Traceback (most recent call last)" in text:
            last = text.split("Traceback (most recent call last)")[1].splitlines()
            error = next((line for line in last[1:] if line and not line.startswith(" ")), "")
            found.append(f"{path.stem} logged a traceback: {error[:200]}")
    return found


def _held(pid: int) -> tuple[int, int]:
    with contextlib.suppress(FileNotFoundError):
        return len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task"))
    return 0, 0
