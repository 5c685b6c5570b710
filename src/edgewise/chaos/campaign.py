"""A campaign: a small fleet, a job and faults, all drawn from one seed."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec

from edgewise.chaos.aims import aimed_faults
from edgewise.chaos.faults import FAULTS, Fault
from edgewise.chaos.virtual_fleet import MALLORY
from edgewise.core.errors import InputError
from edgewise.testing import tiny_task
from edgewise.testing.fleet import CLOUD, OPERATOR

_LOCAL = {"name": "sgd", "learning_rate": 0.1, "epochs": 1, "batch_size": 8}
_FEEDBACK = {"name": "error_feedback", "codec": {"name": "top_k", "fraction": 0.25}}
ALGORITHMS: dict[str, dict[str, Any]] = {
    "fed_avg": {"name": "fed_avg", "local": _LOCAL},
    "error feedback": {"name": "fed_avg", "local": _LOCAL, "uplink": _FEEDBACK},
    "int8 down": {"name": "fed_avg", "local": _LOCAL, "downlink": "int8"},
    "scaffold": {"name": "scaffold", "local": _LOCAL},
    "ditto": {"name": "ditto", "pull": 0.5, "local": _LOCAL},
    "fed_adam": {"name": "fed_adam", "local": _LOCAL},
    "dane": {"name": "dane", "local": _LOCAL},
    "median": {"name": "fed_avg", "local": _LOCAL, "aggregate": "coordinate_median"},
    "by staleness": {"name": "fed_avg", "local": _LOCAL, "aggregate": {"name": "weighted_mean", "weigh": "staleness"}},
}
CARRIED: dict[str, tuple[str, ...]] = {
    "synchronous": ("fed_avg", "error feedback", "int8 down", "scaffold", "ditto", "fed_adam", "dane", "median"),
    "hierarchical": ("fed_avg", "error feedback", "int8 down", "scaffold", "ditto", "fed_adam", "dane"),
    "buffered": ("fed_avg", "error feedback", "scaffold", "by staleness"),
    "gossip": ("fed_avg", "ditto"),
}
"""What each protocol is tried with."""
_DRAWN = sorted(kind for kind, of in FAULTS.items() if of.hits not in ("spared", "apart"))
_EDGES = (
    {"a": "", "b": ""},
    {"a": "", "b": "", "c": ""},
    {"a": "edge-1", "b": "edge-1"},
    {"a": "edge-1", "b": "edge-1", "c": "edge-2"},
    {"a": "edge-1", "b": "edge-2"},
)
_MOST_FAULTS = 5
DEADLINE_S = 24.0
"""Of a round that has one: longer than all that faults do but silence, shorter than the time-out of a letter."""
FLIPPED_SHARE = 0.15
"""Of campaigns in which a blob is flipped."""
TOGETHER = 0.4
"""Share of campaigns with several faults in which they hit one node,"""
SOON = 20
"""within about so many of its moments."""
SLOW_SHARE, EARLY_SHARE = 0.12, 0.12
"""Of campaigns in which a disk is slow, and in which something happens while the run is submitted:"""
SUBMITTED = 40
"""within so many moments of the cloud."""
PAIRED_SHARE = 0.25
"""Of campaigns with two faults more that make each other worse."""
_LAST_MOMENT = 260
"""By then the nodes of an undisturbed campaign have done most of what they do."""


class Campaign(msgspec.Struct, frozen=True, kw_only=True):
    """What a seed stands for.

    Attributes:
        seed: Also of the order of callbacks, of delays and of what disks lose.
        edge_of: Edge of each client, "" for none.
        protocol: Spec.
        algorithm: Spec.
        rounds: Of the run.
        quorum: Updates that a round needs; 0 for all.
        inline_bytes: Of blobs that travel inside a letter.
        long_work: Whether local work counts as long.
        deadline_s: Of a round; None for none.
        faults: What happens.
        task: File of the task; "" for a tiny one.
        settings: Of the task.
    """

    seed: int
    edge_of: dict[str, str]
    protocol: dict[str, Any]
    algorithm: dict[str, Any]
    rounds: int
    quorum: int = 0
    inline_bytes: int = 65536
    long_work: bool = False
    deadline_s: float | None = None
    faults: tuple[Fault, ...] = ()
    task: str = ""
    settings: dict[str, Any] = {}

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of its nodes, the operator left out."""
        edges = dict.fromkeys(edge for edge in self.edge_of.values() if edge)
        return (CLOUD, *edges, *(f"device-{client}" for client in self.edge_of))

    @property
    def clients(self) -> tuple[str, ...]:
        """Who takes part."""
        return tuple(client for client in self.edge_of if client != MALLORY)

    @property
    def task_file(self) -> str:
        """The task's file."""
        return self.task or tiny_task.__file__

    @property
    def undisturbed(self) -> Campaign:
        """The same without faults, for any seed and way of sending."""
        edge_of = {client: self.edge_of[client] for client in self.clients}
        return msgspec.structs.replace(
            self,
            seed=0,
            edge_of=edge_of,
            faults=(),
            inline_bytes=65536,
            long_work=False,
            quorum=0,
            deadline_s=None,
        )

    def __str__(self) -> str:
        places = ", ".join(f"{client} under {edge or CLOUD}" for client, edge in self.edge_of.items())
        lines = [
            f"{self.algorithm['name']} by {self.protocol['name']}, {self.rounds} rounds, {places}"
            + (f", quorum {self.quorum}" if self.quorum else "")
            + (f", blobs above {self.inline_bytes} bytes are pulled" if self.inline_bytes < 65536 else "")
            + (", long work" if self.long_work else "")
            + (f", a round has {self.deadline_s:g} s" if self.deadline_s else "")
        ]
        return "\n".join([*lines, *(f"  {fault}" for fault in self.faults)])


def draw_campaign(seed: int, *, task: str = "", settings: dict[str, Any] | None = None) -> Campaign:
    """Draws a campaign.

    Args:
        seed: Says all.
        task: A task file in place of the tiny one.
        settings: Of the task.

    Returns:
        The campaign; the same for the same seed.
    """
    rng = random.Random(f"campaign {seed}")
    protocol = rng.choice(sorted(CARRIED))
    edge_of: dict[str, str] = dict(rng.choice(_EDGES[2:] if protocol == "hierarchical" else _EDGES[:3]))
    algorithm = ALGORITHMS[rng.choice(CARRIED[protocol])]
    number = len(edge_of)
    spec: dict[str, Any] = {"name": protocol}
    if protocol == "buffered":
        spec |= {"concurrency": number, "buffer_size": rng.randint(1, number)}
    elif protocol == "gossip":
        spec |= {"mixing": 2}
    quorum = number - 1 if protocol in ("synchronous", "hierarchical") and rng.random() < 0.2 else 0
    kinds = [rng.choice(_DRAWN) for _ in range(1 + int(rng.random() ** 2 * _MOST_FAULTS))]
    if any(FAULTS[kind].hits == "operator" for kind in kinds):
        edge_of[MALLORY] = ""
    campaign = Campaign(
        seed=seed,
        edge_of=edge_of,
        protocol=spec,
        algorithm=algorithm,
        rounds=rng.randint(2, 3),
        quorum=quorum,
        inline_bytes=rng.choice((65536, 65536, 64)),
        long_work=rng.random() < 0.3,
        task=task,
        settings=settings or {},
    )
    faults = tuple(_fault(rng, kind, campaign) for kind in kinds)
    campaign = msgspec.structs.replace(campaign, faults=_together(random.Random(f"together {seed}"), faults))
    campaign = _with_silence(random.Random(f"silence {seed}"), campaign)
    campaign = _with_more(random.Random(f"more {seed}"), campaign)
    campaign = _with_flip(random.Random(f"flip {seed}"), campaign)
    campaign = _with_pair(random.Random(f"pair {seed}"), campaign)
    return _with_aim(random.Random(f"aim {seed}"), campaign)


def _together(rng: random.Random, faults: tuple[Fault, ...]) -> tuple[Fault, ...]:
    """In some campaigns troubles come together: they hit one node, one soon after the other."""
    own = [fault for fault in faults if FAULTS[fault.kind].hits == "all"]
    if len(own) < 2 or rng.random() > TOGETHER:
        return faults
    moments = {fault: max(1, own[0].moment + int(rng.random() * 2 * SOON) - SOON // 2) for fault in own[1:]}
    return tuple(
        msgspec.structs.replace(fault, node=own[0].node, moment=moments[fault]) if fault in moments else fault
        for fault in faults
    )


def _with_silence(rng: random.Random, campaign: Campaign) -> Campaign:
    """Some rounds have a deadline and a device whose frames vanish; where a client can be spared, one may leave for good."""
    if campaign.protocol["name"] not in ("synchronous", "hierarchical"):
        return campaign
    device, more, draw = f"device-{rng.choice(campaign.clients)}", list(campaign.faults), rng.random()
    if draw < 0.2:
        campaign = msgspec.structs.replace(campaign, deadline_s=DEADLINE_S)
        more.append(Fault("fade", device, 1 + int(rng.random() * 40), round(1.0 + 7.0 * rng.random(), 3)))
        if rng.random() < 0.5:  # its server is started again as that begins
            server = campaign.edge_of[device.removeprefix("device-")] or CLOUD
            more.append(Fault("kill", server, more[-1].moment + int(rng.random() * 6), 0.01, of=device))
    elif campaign.quorum and draw < 0.5:
        more.append(Fault("leave", device, 1 + int(rng.random() * 60), round(0.01 + 4.0 * rng.random(), 3)))
    return msgspec.structs.replace(campaign, faults=tuple(more))


def _with_more(rng: random.Random, campaign: Campaign) -> Campaign:
    """In some campaigns a disk is slow; in some, trouble begins while the run is submitted."""
    faults = list(campaign.faults)
    if rng.random() < SLOW_SHARE:
        faults.append(_fault(rng, "slow disk", campaign))
    if rng.random() < EARLY_SHARE:
        kind = rng.choice([kind for kind in _DRAWN if FAULTS[kind].hits == "all"])
        early = _fault(rng, kind, campaign)
        faults.append(msgspec.structs.replace(early, moment=1 + int(rng.random() * SUBMITTED), of=CLOUD))
    return msgspec.structs.replace(campaign, faults=tuple(faults))


def _with_flip(rng: random.Random, campaign: Campaign) -> Campaign:
    """In some campaigns a blob is flipped on a disk, early or late."""
    if rng.random() >= FLIPPED_SHARE:
        return campaign
    return msgspec.structs.replace(campaign, faults=(*campaign.faults, _fault(rng, "blob flipped", campaign)))


def _with_pair(rng: random.Random, campaign: Campaign) -> Campaign:
    """In some campaigns one trouble has another in its wake."""
    if rng.random() >= PAIRED_SHARE:
        return campaign
    device, other = (f"device-{client}" for client in rng.sample(campaign.clients, 2))
    draw, is_led = rng.random(), campaign.protocol["name"] != "gossip"
    if draw < 0.3:  # a device comes back while its run is still written down
        pair = [Fault("slow disk", CLOUD, 0, 3.0), Fault("kill", device, 0, round(0.2 + 0.8 * rng.random(), 3))]
    elif draw < 0.65 or not is_led:  # what a process sent last arrives after what its successor sent first
        during = "client/working" if is_led else ""
        kind, moment = rng.choice(("kill", "power", "expire")), 1 + int(rng.random() * 6)
        pair = [
            Fault("reorder", device, 1 + int(rng.random() * 4), round(0.02 + 0.1 * rng.random(), 3), during=during),
            Fault(kind, device, moment, 0.01, during=during.replace("working", "reporting")),
        ]
    else:  # a report is taken and its sender does not hear of it; the round is held open, or goes on without it
        held = Fault(
            "kill", other, 1 + int(rng.random() * 3), round(5.0 + 3.0 * rng.random(), 3), during="client/working"
        )
        kind, moment = rng.choice(("deaf", "cut", "kill")), 1 + int(rng.random() * 6)
        late = Fault(kind, device, moment, round(2.5 + 2.0 * rng.random(), 3), during="client/reporting")
        pair = [late] if campaign.quorum else [held, late]
    return msgspec.structs.replace(campaign, faults=(*campaign.faults, *pair))


def _with_aim(rng: random.Random, campaign: Campaign) -> Campaign:
    """Most campaigns have one or two more faults, each aimed at a place."""
    edge_of = {client: campaign.edge_of[client] for client in campaign.clients}
    more = aimed_faults(rng, campaign.protocol["name"], edge_of, has_quorum=bool(campaign.quorum))
    if any(FAULTS[fault.kind].hits == "operator" for fault in more):
        edge_of[MALLORY] = ""
    return msgspec.structs.replace(campaign, edge_of={**campaign.edge_of, **edge_of}, faults=(*campaign.faults, *more))


def load_campaign(path: Path) -> Campaign:
    """Reads a campaign that was printed.

    Args:
        path: JSON: the campaign, or what `edgewise chaos --json` printed of one.

    Returns:
        The campaign.

    Raises:
        InputError: If it is none.
    """
    try:
        found = msgspec.json.decode(path.read_bytes())
        if isinstance(found, dict):
            found = found.get("smallest") or found.get("campaign") or found
        return msgspec.convert(found[0] if isinstance(found, list) else found, Campaign)
    except (msgspec.MsgspecError, IndexError) as error:
        raise InputError(
            f"{str(path)!r} is no campaign: {error}. Give a file that `edgewise chaos --json --seed N` has printed."
        ) from error


def _fault(rng: random.Random, kind: str, campaign: Campaign) -> Fault:
    of = FAULTS[kind]
    nodes = (OPERATOR,) if of.hits == "operator" else [n for n in campaign.nodes if n != f"device-{MALLORY}"]
    moment = 1 + int(rng.random() ** 1.5 * (_LAST_MOMENT if of.hits != "operator" else 20))
    return Fault(kind, rng.choice(nodes), moment, round(0.01 + rng.random() ** 3 * of.longest_s, 3))
