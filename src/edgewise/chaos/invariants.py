"""What must hold after every campaign, whatever happened; each broken one is a sentence."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgewise.chaos.campaign import Campaign
from edgewise.chaos.campaign_report import CampaignReport
from edgewise.chaos.faults import Fault
from edgewise.chaos.virtual_fleet import MALLORY, VirtualFleet
from edgewise.core.ids import NodeId
from edgewise.testing.fleet import CLOUD, OPERATOR

LEDGER_SHARE = 0.02
EARLY_SHARE = 0.1
"""Of a round's deadline: an edge that is there again by then has time to forward what it has."""
SPARE_FILES = 8
"""Blobs of letters that were still under way when the run ended: retention takes them later."""
LEAVES_FILES = frozenset(("kill", "power", "expire", "leave"))
"""Faults after which a blob may be left that nobody names: its process did not live to delete it."""


def phases(fleet: VirtualFleet, node: str) -> list[str]:
    """In which phase each role of a node is: `client/working`; `-/down` or `-/idle` where it has none."""
    if node in fleet.down:
        return ["-/down"]
    found = []
    for driver in _drivers(fleet, node):
        state = getattr(driver.state, "run", driver.state)
        found.append(f"{driver.role_name}/{getattr(state, 'phase', 'begun') if state is not None else 'new'}")
    return found or ["-/idle"]


def unsettled(fleet: VirtualFleet) -> str:
    """A node that has not let go of a run that is over; "" where all have."""
    if fleet.down:
        return sorted(fleet.down)[0]
    return next((node for node in sorted(fleet.training) if _drivers(fleet, node)), "")


def check_run(
    campaign: Campaign, fleet: VirtualFleet, report: CampaignReport, over_s: Mapping[Fault, float]
) -> list[str]:
    """What the run came to.

    Args:
        campaign: What was done.
        fleet: Still up.
        report: How the run ended.
        over_s: When each fault was over.

    Returns:
        Broken invariants.
    """
    broken = [*fleet.taken, *dict.fromkeys(fleet.witness.wrongs)]
    if fleet.live is None or report.state == "running":
        return broken
    if campaign.deadline_s is not None:
        broken += _gathered(campaign, fleet, report, over_s)
        if report.state == "too_few_clients":  # who is silent for so long is missed
            return broken
    if report.state != "completed":
        return [*broken, f"the run ended {report.state}: {fleet.live.status.cause}"]
    return broken + _acknowledged(campaign, fleet, report) + _keeps(campaign, fleet)


def files_of(fleet: VirtualFleet) -> dict[str, int]:
    """How many blobs each node has on its disk, and what is left of their writing."""
    found = {}
    for name, disk in sorted(fleet.disks.items()):
        if name not in (OPERATOR, f"device-{MALLORY}"):
            files = (*disk.root.glob("blobs/*"), *disk.root.glob("kept/*"))
            found[name] = len([file for file in files if file.is_file()])
    return found


def check_end(fleet: VirtualFleet, folder: Path) -> list[str]:
    """What is left when everybody has stopped.

    Args:
        fleet: Closed.
        folder: Of all its files.

    Returns:
        Broken invariants.
    """
    broken = []
    running = [lane for lane in fleet.lanes.values() if not lane.is_dead]
    left = [f"{lane.name}: {task.get_name()}" for lane in running for task in fleet.loop.tasks_of(lane)]
    if left:
        broken.append(f"tasks are left when all nodes have stopped: {', '.join(left[:5])}")
    if open_files := _open_below(folder):
        broken.append(f"{len(open_files)} files are left open: {', '.join(open_files[:5])}")
    if fleet.loop.failures:
        broken.append(f"a callback failed: {fleet.loop.failures[0]}")
    return broken + _ledger(fleet)


def _acknowledged(campaign: Campaign, fleet: VirtualFleet, report: CampaignReport) -> list[str]:
    """Acknowledged work counts, and what counts is what a client's work came to."""
    broken, acknowledged = [], fleet.witness.acknowledged
    last = max((exchange for _, _, exchange in acknowledged), default=0)
    for (client, number, exchange), answers in sorted(acknowledged.items()):
        genuine = fleet.witness.worked.get((client, number, exchange), set())
        for digest, node in sorted(answers):
            if digest not in genuine:
                broken.append(f"{node} took an update of {client} in round {number} that is not what its work came to")
        took_part = number <= len(report.rounds) and client in report.rounds[number - 1]
        # Who is lost between two exchanges counts in the first; a round names those of its last.
        if campaign.protocol["name"] == "synchronous" and exchange == last and not took_part:
            broken.append(f"the update of {client} in round {number} was acknowledged and does not count")
    return broken


def _keeps(campaign: Campaign, fleet: VirtualFleet) -> list[str]:
    """What a client keeps at the end is what came of its last update that counted."""
    live, broken = fleet.live, []
    if live is None or any(
        (fault.kind in LEAVES_FILES and fault.node == CLOUD) or fault.kind == "leave" for fault in campaign.faults
    ):
        return []  # what the state counted before a snapshot is not known
    places = fleet.witness.counted.get(CLOUD, frozenset())
    if any(exchange for _, _, exchange in places):
        return []
    for client in sorted({client for client, _, _ in places}):
        last = max(place for place in places if place[0] == client)
        training, expected = fleet.training.get(NodeId(f"device-{client}")), fleet.witness.kept.get(last, set())
        kept = None if training is None else training.roles.kept(fleet.run)
        if kept is not None and expected and set(kept) not in [{digest} - {None} for digest in expected]:
            broken.append(f"{client} does not keep what came of its work of round {last[1]}, the last that counted")
    return broken


def _gathered(
    campaign: Campaign, fleet: VirtualFleet, report: CampaignReport, over_s: Mapping[Fault, float]
) -> list[str]:
    """What an edge has by its deadline counts, whoever else is silent, also if it was started again early in the round."""
    witness, broken = fleet.witness, []
    if campaign.deadline_s is None or not witness.forwarded or any(each[2] for each in witness.forwarded):
        return []
    run = fleet.live.driver.state.run if fleet.live is not None else None
    answered = () if run is None else run.collection.answers  # of a round that has not closed
    for (client, number, _), edges in sorted(witness.forwarded.items()):
        early_s = witness.closed_s.get(number - 1, 0.0) + EARLY_SHARE * campaign.deadline_s
        for edge in sorted(edges):
            hit = [fault for fault in campaign.faults if fault.node in (edge, CLOUD, OPERATOR)]
            is_fair = all(fault.kind == "kill" and over_s.get(fault, 0.0) <= early_s for fault in hit)
            counts = report.rounds[number - 1] if number <= len(report.rounds) else answered
            if is_fair and client not in counts:
                broken.append(f"{edge} took the update of {client} in round {number} in time and it does not count")
    return broken


def check_model(campaign: Campaign, report: CampaignReport, same: CampaignReport) -> list[str]:
    """Whether the model is the one it has to be.

    Args:
        campaign: What was done.
        report: What it came to.
        same: What the same job comes to without faults.

    Returns:
        Broken invariants.
    """
    if not any(fault.kind in LEAVES_FILES for fault in campaign.faults):
        for node, num in report.files.items():
            if num > same.files.get(node, 0) + SPARE_FILES:
                return [f"{node} keeps {num} blobs when the run is over, undisturbed {same.files.get(node, 0)}"]
    if campaign.protocol["name"] == "buffered":
        return []
    if len(report.rounds) != len(same.rounds):
        return [f"the run is complete after {len(report.rounds)} of {campaign.rounds} rounds"]
    expected = tuple(sorted(campaign.clients))
    if all(clients == expected for clients in report.rounds):
        if report.model != same.model:
            return [f"the model is {report.model[:12]}, undisturbed it is {same.model[:12]}, with the same clients"]
    elif campaign.quorum and any(len(clients) < campaign.quorum for clients in report.rounds):
        return [f"a round needs {campaign.quorum} clients and has {report.rounds}"]
    elif not campaign.quorum and campaign.protocol["name"] != "gossip":
        return [f"a round needs all clients and has {report.rounds}"]
    return []


def _open_below(folder: Path) -> list[str]:
    found = []
    for number in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
        try:
            path = Path(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:
            continue
        if path.is_relative_to(folder):
            found.append(path.relative_to(folder).as_posix())
    return sorted(found)


def _ledger(fleet: VirtualFleet) -> list[str]:
    """Bytes that nodes counted, by their own word and by the links'."""
    broken = []
    for node in sorted({name for name, _, _ in fleet.counted}):
        sent = sum(counted for name, counted, _ in fleet.counted if name == node)
        carried = fleet.links.sent_bytes[NodeId(node)]
        if abs(sent - carried) > LEDGER_SHARE * max(carried, 1):
            broken.append(f"{node} counted {sent:,} bytes sent, the links carried {carried:,}")
    return broken


def _drivers(fleet: VirtualFleet, node: str) -> list[Any]:
    if node == CLOUD:
        roles = fleet.coordinator.runs.roles
    elif node == OPERATOR or NodeId(node) not in fleet.training:
        return []
    else:
        roles = fleet.training[NodeId(node)].roles
    return [driver for _, driver in sorted(roles._drivers.items())]
