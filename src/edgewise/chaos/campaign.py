"""A campaign: a small fleet, a job and faults, all drawn from one seed."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec

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
_DRAWN = sorted(kind for kind, of in FAULTS.items() if of.hits != "spared")
_EDGES = (
    {"a": "", "b": ""},
    {"a": "", "b": "", "c": ""},
    {"a": "edge-1", "b": "edge-1"},
    {"a": "edge-1", "b": "edge-1", "c": "edge-2"},
    {"a": "edge-1", "b": "edge-2"},
)
_MOST_FAULTS = 5
DEADLINE_S = 120.0
"""Of a round that has one: longer than all that faults do but silence."""
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
    campaign = msgspec.structs.replace(campaign, faults=tuple(_fault(rng, kind, campaign) for kind in kinds))
    return _with_silence(random.Random(f"silence {seed}"), campaign)


def _with_silence(rng: random.Random, campaign: Campaign) -> Campaign:
    """Some rounds have a deadline and a device whose frames vanish; where a client can be spared, one may leave for good."""
    if campaign.protocol["name"] not in ("synchronous", "hierarchical"):
        return campaign
    device, more, draw = f"device-{rng.choice(campaign.clients)}", list(campaign.faults), rng.random()
    if draw < 0.2:
        campaign = msgspec.structs.replace(campaign, deadline_s=DEADLINE_S)
        more.append(Fault("lose", device, 1 + int(rng.random() * 40), round(1.0 + 7.0 * rng.random(), 3)))
    elif campaign.quorum and draw < 0.5:
        more.append(Fault("leave", device, 1 + int(rng.random() * 60), round(0.01 + 4.0 * rng.random(), 3)))
    return msgspec.structs.replace(campaign, faults=tuple(more))


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
