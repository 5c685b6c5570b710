"""The demo's loop without processes: one seed, the real parts, the demo's own numbers.

Training is `simulate_rounds` with the demo's words; devices are `ExampleCollector`, the coordinator `DriftWatch` and
`VersionStore`; answers leave at the first exit where the version's evidence lets them, as the demo's plan has it.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgewise.core.ids import ClientId, Digest, Generation, NodeId, RequestId, Revision, RunId, Tier
from edgewise.core.seeds import Seeds
from edgewise.datasets.shifts import drifted
from edgewise.demo.scenario import LOCAL, RETRAINING, UPLINK, DemoSettings, task_settings
from edgewise.demo.streaming import take
from edgewise.fleet.messages import Capability, NodeInfo
from edgewise.fleet.serving.drift_reference import drift_reference
from edgewise.fleet.serving.drift_watch import CollectOrder, DriftWatch
from edgewise.fleet.serving.example_collector import ExampleCollector
from edgewise.fleet.serving.holdout import Holdout
from edgewise.fleet.serving.versions import VersionStore, outputs_of
from edgewise.fleet.store.registry import Registry
from edgewise.fleet.training.local_worker import joined
from edgewise.inference.gates.exit import confidence
from edgewise.inference.observation import Observation
from edgewise.inference.request_driver import Served
from edgewise.inference.session import AnswerSource
from edgewise.models.export import export_template
from edgewise.models.task import Examples
from edgewise.models.version import GateResult, ModelVersion
from edgewise.simulation.simulate import SimulationOptions, simulate_rounds
from edgewise.testing.spoiled_graph import spoiled
from edgewise.training.algorithms import make_algorithm
from edgewise.training.tasks.digits_task import DigitsTask
from edgewise.transport.bulk.blobs import FolderBlobs

EDGES = 2
DEVICES = tuple(NodeId(f"device-{i}") for i in range(8))
TRAINERS = tuple(DEVICES[i] for i in (0, 1, 2, 4, 5, 6))
"""Three of four under each edge."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one seed gave."""

    seed: int
    before: float
    drifted: float
    after: float
    false_alarm: bool
    alarm_after: int | None
    gate: GateResult
    bad_gate: GateResult

    @property
    def drop(self) -> float:
        return self.before - self.drifted

    @property
    def recovered(self) -> float:
        return (self.after - self.drifted) / self.drop


class CollectingDigits(DigitsTask):
    """The digits, and what devices collected."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.collected: dict[ClientId, Examples | None] = {}

    def data(self, client: ClientId) -> Examples:
        return joined(super().data(client), self.collected.get(client))


@dataclass
class Fleet:
    """Devices and the coordinator's watch, in one process."""

    versions: VersionStore
    collectors: dict[NodeId, ExampleCollector] = field(
        default_factory=lambda: {d: ExampleCollector(d, "digits", 4_000_000) for d in DEVICES}
    )
    alarms: list[dict[str, Any]] = field(default_factory=list)
    asked: dict[str, NodeId] = field(default_factory=dict)
    serving: int = 0

    def __post_init__(self) -> None:
        self.watch = DriftWatch(
            lambda: self.serving,
            lambda _: False,
            lambda version, exits: drift_reference(self.versions, version, exits),
            lambda _: (),
            lambda: DEVICES,
            self._order,
            lambda _, said: self.alarms.append(said),
        )

    async def _order(self, device: NodeId, order: CollectOrder) -> None:
        self.collectors[device].collect(order.last)

    async def serve(self, phase: str, inputs: Any, version: ModelVersion) -> tuple[Any, int | None]:
        """Serves requests in turn; returns the answers, and after how many an alarm came."""
        answers, first, logits = answered(self.versions, version, inputs)
        sure, named = confidence(first), first.argmax(-1)
        noticed, self.serving = None, version.number
        for index in range(len(inputs)):
            device, name = DEVICES[index % len(DEVICES)], f"{phase}-{index}"
            self.asked[name] = device
            seen = Observation(
                RequestId(name), Revision(1), version.number, Digest(""), AnswerSource.PLAN, 1, "", 0.0, 0.0, 1.0,
                confidence=float(sure[index]), predicted=int(named[index]),
            )  # fmt: skip
            served = Served({"exit": logits[index : index + 1]}, seen)
            told = self.collectors[device].served({"image": inputs[index : index + 1]}, served)
            if told is not None:
                await self.watch.arrived(told, None, info(device))  # type: ignore[arg-type]
            noticed = index + 1 if self.alarms and noticed is None else noticed
        return answers, noticed

    def feed_back(self, phase: str, targets: Any) -> None:
        """Labels go to the device that answered."""
        labels: dict[NodeId, dict[str, int]] = defaultdict(dict)
        for index, target in enumerate(targets):
            labels[self.asked[f"{phase}-{index}"]][f"{phase}-{index}"] = int(target)
        for device, known in labels.items():
            self.collectors[device].label(known)


def info(device: NodeId) -> NodeInfo:
    """A device as the coordinator knows it."""
    return NodeInfo(device, Tier.DEVICE, Generation(1), "", NodeId("edge-1"), Capability(1, 1, 1.0, 1.0, 1.0, ""))


def threshold_of(version: ModelVersion) -> float:
    """Lowest confidence at which answers may leave at exit 0 with the whole system within two points of the model."""
    whole = next(e.accuracy_all for e in version.evidence if e.codec == "none" and e.threshold == 0.0 and not e.before)
    allowed = []
    for first in (e for e in version.evidence if e.codec == "none" and e.exit_index == 0 and e.threshold > 0):
        rest = [e for e in version.evidence if e.codec == "none" and e.before == ((0, first.threshold),)]
        right = first.exit_fraction * np.nan_to_num(first.accuracy)
        right += sum(e.exit_fraction * np.nan_to_num(e.accuracy) for e in rest)
        if rest and right >= whole - 0.02:
            allowed.append(first.threshold)
    return min(allowed, default=1.0)


def answered(versions: VersionStore, version: ModelVersion, inputs: Any) -> tuple[Any, Any, Any]:
    """Answers, logits of exit 0 and logits as served."""
    first, last = outputs_of(versions.graph(version.number), inputs)
    sure = confidence(first)
    logits = np.where((sure >= threshold_of(version))[:, None], first, last)
    return logits.argmax(-1), first, logits


def run_loop(seed: int) -> Outcome:
    """Trains, serves, drifts, notices, collects, trains again, and asks the gate."""
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(_loop(seed, Path(folder)))


async def _loop(seed: int, folder: Path) -> Outcome:
    settings = DemoSettings(seed)
    task = CollectingDigits(**task_settings(settings))
    parts = task.parts
    holdout = Holdout(parts.calibration.inputs, parts.calibration.targets, parts.gate.inputs, parts.gate.targets)
    registry = Registry.open(folder / "registry.sqlite")
    versions = VersionStore(registry, FolderBlobs(folder / "blobs"), holdout)
    graph, layout = export_template(task)
    template = versions.blobs.put(graph)

    def version_of(vector: Any, parent: int) -> ModelVersion:
        return versions.register_vector(
            template, layout, vector, task="digits", run=RunId("run"), parent=parent, data={}
        )

    vector = trained(task, LOCAL, settings.rounds, seed)
    first = version_of(vector, 0)
    fleet = Fleet(versions)
    images, targets = take(parts.stream.inputs, parts.stream.targets, settings.fault_free)
    answers, early = await fleet.serve("fault-free", images, first)
    before = np.mean(answers == targets)

    half = len(parts.stream.inputs) // 2
    images, targets = take(parts.stream.inputs[:half], parts.stream.targets[:half], settings.drifted)
    _, noticed = await fleet.serve("drifted", _drift(images, seed, "learned"), first)
    fleet.feed_back("drifted", targets)
    task.collected = {
        c: fleet.collectors[device].labelled() for c, device in zip(task.clients(), TRAINERS, strict=True)
    }
    second = version_of(trained(task, RETRAINING, settings.retraining_rounds, seed + 1, vector), first.number)
    images, targets = _drift(parts.stream.inputs[half:], seed, "held out"), np.asarray(parts.stream.targets[half:])
    old, new = (np.mean(answered(versions, v, images)[0] == targets) for v in (first, second))
    bad = versions.register_graph(
        spoiled(versions.graph(second.number), seed), task="digits", origin="deliberately bad", parent=second.number
    )
    registry.close()
    assert second.gate is not None
    assert bad.gate is not None
    return Outcome(seed, float(before), float(old), float(new), early is not None, noticed, second.gate, bad.gate)


def trained(task: DigitsTask, local: dict[str, Any], rounds: int, seed: int, initial: Any = None) -> Any:
    """Federated rounds through two edges, as the fleet does them."""
    clients = task.clients()
    run = simulate_rounds(
        task,
        make_algorithm({"name": "fed_avg", "local": local, "uplink": UPLINK}),
        rounds=rounds,
        seed=seed,
        initial=initial,
        edge_of={c: NodeId(f"edge-{i * EDGES // len(clients)}") for i, c in enumerate(clients)},
        options=SimulationOptions(engine="sequential", evaluate_every=0, test_data=task.test_data()),
    )
    return run.vector


def _drift(images: Any, seed: int, noise: str) -> Any:
    return drifted(images, rng=Seeds(seed).at("drift", noise).rng())
