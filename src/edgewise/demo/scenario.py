"""The demo's numbers, and what its stages share."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import msgspec

from edgewise.core.ids import NodeId, Tier
from edgewise.fleet.messages import LedgerAnswer, NodeRow, RunStatus
from edgewise.fleet.operator.operator import Operator
from edgewise.ledger.energy import ENERGY_MODELS, modelled_energy
from edgewise.ledger.entry import Direction, LedgerEntry, Purpose
from edgewise.ledger.kpis import LEARNING
from edgewise.models.version import FEDERATED, ModelVersion
from edgewise.planning.plan import Plan
from edgewise.planning.policy import Policy
from edgewise.planning.search import Search
from edgewise.service.report import Report, RequestRow, TimelineEntry
from edgewise.simulation.emulated.emulated_fleet import EmulatedFleet
from edgewise.simulation.emulated.fleet_file import CloudClass, DeviceClass, EdgeClass, FleetFile, LinkClass
from edgewise.training.tasks.digits_task import DigitsTask

TASK = "digits"
OWN_DOMAIN = FEDERATED
"""What the demo's version is trained in: by all devices together, through their edges."""
LOCAL = {
    "name": "sgd",
    "learning_rate": 0.07,
    "epochs": 3,
    "batch_size": 24,
    "direction": {"name": "clipped", "bound": 5.0},
}
"""Clipped: without it one batch of a skewed client now and then throws its model off (seed 1 shows it)."""
RETRAINING = {**LOCAL, "epochs": 2}
"""After the drift: as many steps, since the hard examples come on top."""
UPLINK = {"name": "int8", "rounding": "stochastic"}
EXIT_WEIGHT = 0.2
"""Loss weight of the device's exit: low, so that it is clearly worse than the model's end and the question is real."""
MODEL = {"channels": [16]}
"""A light head, so that very slow devices can run it, and a tail that they had better not."""
NARROW = {"channels": [8], "tail_channels": 64}
"""The same at half the width: another candidate, if it is as accurate."""
DEVICE_SPEED, EDGE_SPEED = "60 MFLOP/s", "10 GFLOP/s"
"""How fast these classes run the model, on whichever machine the demo runs; the cloud is as fast as that machine."""
PRIVATE = Policy(raw_may_reach=Tier.DEVICE)
OPEN = Policy()
SLOW_BYTES_PER_S = 8_000.0
"""64 kbit/s."""


class DemoSettings(msgspec.Struct, frozen=True):
    """How long and how large the demo is.

    Attributes:
        seed: Of data, training and drift.
        rounds: Federated rounds of the first training, coded.
        comparison_rounds: Rounds trained both coded and uncoded, for the comparison of bytes.
        domain_rounds: Rounds of the models that levels 0-3, 5 and 6 would serve; as many as the first training's,
            or the levels would differ in more than the domain.
        retraining_rounds: Rounds after the drift.
        fault_free: Requests before the faults.
        compared: Inputs that the plan and the best other ways answer in turn.
        asked_elsewhere: The same for the two other questions, on a fleet of their own.
        link_drop: Requests while a link is slow.
        edge_kill: Requests around the death and return of an edge.
        drifted: Drifted requests served by the old version.
        gap_s: Time between arrivals.
        drift_gap_s: The same in the drifted streams, whose latency is not compared.
        profile_s: Seconds of profiling per node.
    """

    seed: int = 0
    rounds: int = 6
    comparison_rounds: int = 1
    domain_rounds: int = 6
    retraining_rounds: int = 5
    fault_free: int = 380
    compared: int = 64
    asked_elsewhere: int = 18
    link_drop: int = 100
    edge_kill: int = 220
    drifted: int = 320
    gap_s: float = 0.03
    drift_gap_s: float = 0.03
    profile_s: float = 1.5

    @staticmethod
    def short(seed: int = 0) -> DemoSettings:
        """The same stages, fewer rounds and requests; for checks, not for figures."""
        return DemoSettings(
            seed,
            rounds=6,
            comparison_rounds=1,
            domain_rounds=3,
            retraining_rounds=5,
            fault_free=160,
            compared=32,
            asked_elsewhere=12,
            link_drop=60,
            edge_kill=160,
            drifted=240,
        )


class Show(Protocol):
    """Where the demo shows what it does; `cli.output.Output` is one."""

    def line(self, text: str = "") -> None:
        """Prints a line."""
        ...

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Prints a table."""
        ...

    def progress(self, description: str, total: int) -> AbstractContextManager[Callable[[str], None]]:
        """Shows how far a piece of work is."""
        ...


def task_settings(settings: DemoSettings) -> dict[str, Any]:
    """What every node and the demo itself pass to the digits task."""
    return {"seed": settings.seed, "exit_weight": EXIT_WEIGHT, "model": MODEL}


def fleet_file(settings: DemoSettings) -> FleetFile:
    """1 cloud, 2 edges, 8 devices: three of four devices under an edge train, one only infers."""
    return FleetFile(
        name="demo",
        task=TASK,
        task_settings=task_settings(settings),
        cloud=CloudClass(dilation=1.0),
        edges=EdgeClass(count=2, speed=EDGE_SPEED, link=LinkClass("50 Mbit/s", "20 ms")),
        devices=DeviceClass(per_edge=4, trainers_per_edge=3, speed=DEVICE_SPEED, link=LinkClass("20 Mbit/s", "20 ms")),
    )


Counted = dict[NodeId, LedgerAnswer]


def _row(entry: LedgerEntry) -> tuple[Any, ...]:
    return (entry.kind, entry.purpose, entry.direction, entry.run, entry.data_classes)


@dataclass(slots=True)
class Demo:
    """What the stages share; each fills its part.

    Attributes:
        settings: Numbers.
        show: Where to show.
        folder: Throw-away folder of the fleet.
        task: The digits task.
        fleet: The processes.
        operator: Connection to the coordinator.
        nodes: Rows of the fleet.
        run: The first training run's status.
        trained: What it made, and later what the retraining made: versions with weights.
        version: What serves: a trained one, or a variant made from it.
        search: What plans are made from, under the demo's policy, of the trained graph.
        variants: The same of the other graphs that could be served in its place.
        graphs: ONNX bytes by digest, of the model and its variants.
        assumed: Speeds of the classes, in words.
        plan: The plan in force.
        deadline_s: Of a request: see `planning.deadline_of`.
        stream_sent: Phases of the stream so far.
        report: What is known so far.
        requests: All requests, for the plots.
        timeline: What happened.
        start_s: Zero of the report's clock.
    """

    settings: DemoSettings
    show: Show
    folder: Path
    task: DigitsTask
    fleet: EmulatedFleet
    operator: Operator = field(init=False)
    nodes: list[NodeRow] = field(default_factory=list)
    run: RunStatus = field(init=False)
    trained: ModelVersion = field(init=False)
    version: ModelVersion = field(init=False)
    search: Search = field(init=False)
    variants: list[Search] = field(default_factory=list)
    graphs: dict[str, bytes] = field(default_factory=dict)
    assumed: tuple[str, ...] = ()
    plan: Plan = field(init=False)
    deadline_s: float = 1.0
    stream_sent: list[Any] = field(default_factory=list)
    report: Report = field(default_factory=Report)
    requests: list[RequestRow] = field(default_factory=list)
    timeline: list[TimelineEntry] = field(default_factory=list)
    start_s: float = field(default_factory=time.monotonic)

    def happened(self, phase: str, text: str, kind: str = "step") -> None:
        """Adds to the timeline and shows it."""
        entry = TimelineEntry(time.monotonic() - self.start_s, phase, text, kind)
        self.timeline.append(entry)
        self.show.line(f"  {entry.time_s:6.1f} s  {text}")

    def search_of(self, plan: Plan) -> Search:
        """What a plan was made from: the search of its graph."""
        return next(s for s in (self.search, *self.variants) if s.table.graph.digest == plan.graph)

    @property
    def tiers(self) -> dict[NodeId, Tier]:
        """Where each node stands."""
        return {row.info.node: row.info.tier for row in self.nodes}

    async def counted(self) -> dict[NodeId, LedgerAnswer]:
        """What every node counted so far."""
        return {node: await self.operator.ledger(node) for node in self.tiers}

    def entries(self, before: Counted, after: Counted) -> list[LedgerEntry]:
        """What was counted between two readings; a node that was restarted counts from its start."""
        found = []
        for node, answer in after.items():
            known = {_row(e): e for e in before[node].entries} if node in before else {}
            for entry in answer.entries:
                old = known.get(_row(entry))
                if old is not None and old.num_frames > entry.num_frames:
                    old = None
                frames, size = (old.num_frames, old.size_bytes) if old is not None else (0, 0)
                change = {"num_frames": entry.num_frames - frames, "size_bytes": entry.size_bytes - size}
                found.append(msgspec.structs.replace(entry, **change))
        return found

    def inference_energy_j(self, before: Counted, after: Counted) -> float:
        """Modelled energy of computing and sending between two readings, all nodes."""
        return self._energy_j(before, after, "inference_s", (Purpose.SERVING,))

    def training_energy_j(self, before: Counted, after: Counted) -> float:
        """The same for training."""
        return self._energy_j(before, after, "training_s", LEARNING)

    def _energy_j(self, before: Counted, after: Counted, seconds: str, purposes: Sequence[Purpose]) -> float:
        total = 0.0
        moved = [e for e in self.entries(before, after) if e.purpose in purposes]
        for node, answer in after.items():
            spent = max(0.0, getattr(answer, seconds) - (getattr(before[node], seconds) if node in before else 0.0))
            sizes = {d: sum(e.size_bytes for e in moved if e.node == node and e.direction is d) for d in Direction}
            model = ENERGY_MODELS[self.tiers[node]]
            total += modelled_energy(
                model, cpu_seconds=spent, sent_bytes=sizes[Direction.SENT], received_bytes=sizes[Direction.RECEIVED]
            ).joules
        return total

    def stage(self, number: int, title: str) -> None:
        """Shows the beginning of a stage."""
        self.show.line()
        self.show.line(f"{number}. {title}")

    def change(self, **parts: Any) -> None:
        """Fills parts of the report."""
        self.report = msgspec.structs.replace(self.report, **parts)
