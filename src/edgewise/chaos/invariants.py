"""What must hold after every campaign, whatever happened; each broken one is a sentence."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from edgewise.chaos.campaign import Campaign
from edgewise.chaos.campaign_report import CampaignReport
from edgewise.chaos.cells import drivers_of
from edgewise.chaos.faults import FAULTS, Fault
from edgewise.chaos.repairs import names_one
from edgewise.chaos.virtual_fleet import MALLORY, VirtualFleet
from edgewise.core.ids import NodeId
from edgewise.fleet.membership.membership import NodeState
from edgewise.testing.fleet import CLOUD, OPERATOR
from edgewise.transport.bulk.blobs import DAMAGED

LEDGER_SHARE = 0.02
EARLY_SHARE = 0.1
"""Of a round's deadline: an edge that is there again by then has time to forward what it has."""
SPARE_S = 2.0
SPARE_FILES = 8
"""Blobs of letters that were still under way when the run ended: retention takes them later."""
LEAVES_FILES = frozenset(("kill", "power", "expire", "leave"))
"""Faults after which a blob may be left that nobody names: its process did not live to delete it."""


def unsettled(fleet: VirtualFleet) -> str:
    """A node that has not let go of a run that is over; "" where all have."""
    if fleet.down:
        return sorted(fleet.down)[0]
    return next((node for node in sorted(fleet.training) if drivers_of(fleet, node)), "")


def unseen(fleet: VirtualFleet) -> str:
    """A node that is up and that a server takes for absent, with the server's name; "" where everybody is seen."""
    if fleet.down:
        return ""
    watches = {CLOUD: fleet.coordinator.watch} | {node: of.watch for node, of in fleet.training.items()}
    up = [name for name in fleet.lanes if name not in (CLOUD, OPERATOR)]
    for server, watch in sorted(watches.items()):
        members = {} if watch is None else watch.members.members
        expected = [name for name in up if server == CLOUD or name.startswith("device-")]
        for name in expected if watch is not None else ():
            if name not in members or members[NodeId(name)].state in (NodeState.GONE, NodeState.JOINING):
                return f"{name} is up and {server} does not see it"
    return ""


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
        broken += _gathered(campaign, fleet, report, over_s) + _in_time(campaign, fleet)
        if report.state == "too_few_clients":  # who is silent for so long is missed
            return broken
    if report.state == "cancelled" and fleet.is_cancelled and names_one(fleet.live.status.cause, fleet.flipped):
        return broken  # nobody has that blob any more
    if report.state != "completed":
        return [*broken, f"the run ended {report.state}: {fleet.live.status.cause}"]
    return broken + _acknowledged(campaign, fleet, report) + _keeps(fleet)


def files_of(fleet: VirtualFleet) -> dict[str, int]:
    """How many blobs each node has on its disk, and what is left of their writing."""
    found = {}
    for name, disk in sorted(fleet.disks.items()):
        if name not in (OPERATOR, f"device-{MALLORY}"):
            files = (*disk.root.glob("blobs/*"), *disk.root.glob("kept/*"))
            found[name] = len([file for file in files if file.is_file() and file.suffix != DAMAGED])
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


def _keeps(fleet: VirtualFleet) -> list[str]:
    """What a client keeps at the end is what came of its last update that counted."""
    if any(exchange for _, _, exchange in fleet.witness.kept):
        return []
    broken = []
    for client in sorted(fleet.witness.last):
        training, expected = fleet.training.get(NodeId(f"device-{client}")), fleet.witness.kept_by(client)
        kept = None if training is None else training.roles.kept(fleet.run)
        if kept is not None and expected and set(kept) not in [{digest} - {None} for digest in expected]:
            broken.append(f"{client} does not keep what came of its last update that counted")
    return broken


def _gathered(
    campaign: Campaign, fleet: VirtualFleet, report: CampaignReport, over_s: Mapping[Fault, float]
) -> list[str]:
    """What an edge has by its deadline counts, whoever else is silent, also where trouble was over early in the round."""
    witness, broken = fleet.witness, []
    if campaign.deadline_s is None or not witness.forwarded or any(each[2] for each in witness.forwarded):
        return []
    run = fleet.live.driver.state.run if fleet.live is not None else None
    answered = () if run is None else run.collection.answers  # of a round that has not closed
    for (client, number, _), edges in sorted(witness.forwarded.items()):
        early_s = witness.closed_s.get(number - 1, 0.0) + EARLY_SHARE * campaign.deadline_s
        for edge in sorted(edges):
            hit = [fault for fault in campaign.faults if fault.node in (edge, CLOUD)]
            is_fair = all(_leaves_time(fault) and over_s.get(fault, 0.0) <= early_s for fault in hit)
            counts = report.rounds[number - 1] if number <= len(report.rounds) else answered
            if is_fair and client not in counts:
                broken.append(f"{edge} took the update of {client} in round {number} in time and it does not count")
    return broken


def _in_time(campaign: Campaign, fleet: VirtualFleet) -> list[str]:
    """A round is closed by its deadline, where nothing happens to who closes it."""
    closed_s, deadline_s = fleet.witness.closed_s, campaign.deadline_s
    if deadline_s is None or any(fault.node == CLOUD for fault in campaign.faults):
        return []
    took_s = {number: at - closed_s[number - 1] for number, at in closed_s.items() if number - 1 in closed_s}
    late = [number for number, seconds in sorted(took_s.items()) if seconds > deadline_s + SPARE_S]
    return [f"round {n} has {deadline_s:g} s and closes after {took_s[n]:.0f} s" for n in late]


def _leaves_time(fault: Fault) -> bool:
    """Whether an edge or a cloud that it hits can do all the same when it is over: nothing is lost with it."""
    return not FAULTS[fault.kind].loses_frames and fault.kind not in ("power", "leave")


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
    begins_anew = any("/kept/" in flipped for flipped in report.flipped)
    if len(report.rounds) != len(same.rounds):
        return [f"the run is complete after {len(report.rounds)} of {campaign.rounds} rounds"]
    expected = tuple(sorted(campaign.clients))
    if all(clients == expected for clients in report.rounds):
        if report.model != same.model and not begins_anew:
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
