"""Draws what a campaign against real processes does, from its seed: a run, what goes on beside it, and faults.

>>> one = draw(7)
>>> one == draw(7), 1 <= len(one.faults) <= MOST_FAULTS
(True, True)
"""

from __future__ import annotations

import random
from typing import Any

import msgspec

MOST_FAULTS = 4
WINDOW_S = 4.0
"""Faults begin within so many seconds after the run was submitted."""
CLOUD, EDGES, DEVICES = "cloud", ("edge-1", "edge-2"), ("device-1", "device-2")
LOCAL = {"name": "sgd", "learning_rate": 0.1, "epochs": 1}
BUFFERED = {"name": "buffered", "concurrency": 2, "buffer_size": 2}
FEEDBACK = {"name": "error_feedback", "codec": {"name": "top_k", "fraction": 0.25}}


class LiveRunKind(msgspec.Struct, frozen=True):
    """A kind of run.

    Attributes:
        name: For people.
        algorithm, protocol: Their specs.
        is_in_lockstep: Whether its model is the simulator's, byte by byte, as long as every client takes part.
    """

    name: str
    algorithm: dict[str, Any]
    protocol: str | dict[str, Any]
    is_in_lockstep: bool = True


RUN_KINDS = (
    LiveRunKind("fed_avg", {"name": "fed_avg", "local": LOCAL, "uplink": "int8"}, "hierarchical"),
    LiveRunKind("error feedback", {"name": "fed_avg", "local": LOCAL, "uplink": FEEDBACK}, "hierarchical"),
    LiveRunKind("scaffold", {"name": "scaffold", "local": LOCAL}, "hierarchical"),
    LiveRunKind("fed_avg without edges", {"name": "fed_avg", "local": LOCAL}, "synchronous"),
    LiveRunKind("buffered", {"name": "fed_avg", "local": LOCAL}, BUFFERED, is_in_lockstep=False),
    LiveRunKind("gossip", {"name": "fed_avg", "local": LOCAL}, "gossip", is_in_lockstep=False),
)

LINK_FAULTS: dict[str, dict[str, Any]] = {
    "cut": {"outage": "cut"},
    "half-open": {"outage": "black_hole"},
    "slow": {"bytes_per_s": 8_000.0},
    "lossy": {"loss_fraction": 0.2, "jitter_s": 0.05, "delay_s": 0.05},
    "corrupt": {"corrupt": 1},
}
"""What each does to a link."""
NODE_FAULTS = ("kill", "kill", "kill", "freeze", "store locked", "disk full", "blob flipped")
"""Of processes and their disks; the commonest is the likeliest."""
BESIDE = ("serve", "roll out", "offer a bad version", "roll back", "deploy other plans", "retrain", "retrain")
"""What goes on beside training; requests are sent in each."""
RETRAINING_STRETCH = 3.0
"""Faults of a campaign that retrains begin within so many times `WINDOW_S`: labels, a run and a rollout take that long."""
DEGREES = (-30.0, 30.0)
"""By which inputs of a drifted stream are rotated."""


class LiveFault(msgspec.Struct, frozen=True):
    """One fault.

    Attributes:
        kind: A word of `NODE_FAULTS` or `LINK_FAULTS`.
        target: A node, or a link as `source→target`.
        at_s: When it begins, from the submission of the run.
        seconds: How long it lasts; a killed process is started again after it.
    """

    kind: str
    target: str
    at_s: float
    seconds: float

    def __str__(self) -> str:
        return f"{self.at_s:.2f} s: {self.kind} {self.target} for {self.seconds:.2f} s"


class LiveSchedule(msgspec.Struct, frozen=True):
    """What a campaign does.

    Attributes:
        seed: It was drawn from.
        run: Trained meanwhile.
        num_rounds: Of the run.
        training_seed: Of the run; few, so that a simulation of each is at hand.
        beside: A word of `BESIDE`.
        faults: In the order in which they begin.
        degrees: By which the inputs of requests are rotated where a retraining is to follow; 0 leaves them.
    """

    seed: int
    run: LiveRunKind
    num_rounds: int
    training_seed: int
    beside: str
    faults: tuple[LiveFault, ...]
    degrees: float = 0.0


def draw(seed: int) -> LiveSchedule:
    """Draws a campaign; the same for the same seed, on every machine.

    Args:
        seed: Any whole number.

    Returns:
        It.
    """
    rng = random.Random(f"live campaign {seed}")
    run = rng.choice(RUN_KINDS)
    faults = sorted(
        (_fault(rng) for _ in range(rng.randint(1, MOST_FAULTS))), key=lambda fault: (fault.at_s, fault.target)
    )
    num_rounds, training_seed, beside = rng.randint(2, 5), rng.randint(0, 3), rng.choice(BESIDE)
    degrees = 0.0
    if beside == "retrain":
        degrees = rng.choice(DEGREES)
        faults = [msgspec.structs.replace(f, at_s=round(f.at_s * RETRAINING_STRETCH, 2)) for f in faults]
    return LiveSchedule(seed, run, num_rounds, training_seed, beside, tuple(faults), degrees)


def _fault(rng: random.Random) -> LiveFault:
    at_s = round(rng.uniform(0.0, WINDOW_S), 2)
    if rng.random() < 0.5:
        target = rng.choice((CLOUD, *EDGES, *DEVICES, *DEVICES))
        return LiveFault(rng.choice(NODE_FAULTS), target, at_s, round(rng.uniform(0.0, 4.0), 2))
    number = rng.randrange(2)
    link = rng.choice((f"{EDGES[number]}→{CLOUD}", f"{DEVICES[number]}→{EDGES[number]}"))
    return LiveFault(rng.choice(tuple(LINK_FAULTS)), link, at_s, round(rng.uniform(0.2, 5.0), 2))
