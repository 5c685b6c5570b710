"""Stage 7: inputs drift, the fleet notices, learns from hard examples that never leave their devices, and rolls out or back."""

from __future__ import annotations

import asyncio

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewise.core.errors import EdgewiseError
from edgewise.core.ids import Digest, NodeId
from edgewise.core.seeds import Seeds
from edgewise.datasets.shifts import drifted
from edgewise.demo.scenario import RETRAINING, TASK, UPLINK, Demo
from edgewise.demo.serve_requests import deploy
from edgewise.demo.streaming import Sent, stream, take
from edgewise.demo.training import follow, round_rows
from edgewise.fleet.messages import Deploy, Feedback, HardExamples
from edgewise.fleet.operator.submission import task_request
from edgewise.inference.evidence import CODECS
from edgewise.lifecycle.labels import feedback
from edgewise.models.graph.graph import Graph
from edgewise.models.version import ModelVersion
from edgewise.planning.choose import make_search
from edgewise.planning.levels import recommend
from edgewise.service.client import Reply
from edgewise.service.report import LabelRow, LoopSection, MonitorRow, VersionRow
from edgewise.testing.spoiled_graph import spoiled
from edgewise.transport.frame import Frame

DETECTOR = "e-processes over all devices: wrong answers by betting (harm), ranks of confidences, classes and covariates (change)"
"""Noise on the deliberately bad version's weights, in standard deviations of each tensor."""


async def stay_good(demo: Demo) -> None:
    """Drift, labels, retraining, gate, rollout; a bad version; a rollback."""
    before = demo.stream_sent[0].accuracy
    parts = demo.task.parts.stream
    half = len(parts.inputs) // 2
    notes = _DriftNotes()
    registration = await demo.operator.node.transport.subscribe(
        demo.operator.node.keys.event(demo.operator.coordinator), notes.event
    )
    demo.happened("drift", "from now on inputs are rotated and noisy", "fault")
    learn = await _drifted_stream(
        demo, "drifted", parts.inputs[:half], parts.targets[:half], demo.settings.drifted, notes
    )
    notes.labelled = await _feed_back(demo, learn)
    old = await _drifted_stream(
        demo, "drifted, held out", parts.inputs[half:], parts.targets[half:], len(parts.inputs) - half
    )
    await registration.close()
    first = demo.version
    monitors, kind = await _monitors(demo)
    new = await _retrain(demo)
    accuracy_after, outcome = None, "refused"
    if new.gate is not None and new.gate.passed:
        demo.trained = demo.version = new
        _replan(demo, Graph.load(await demo.operator.graph(new.number)))
        await deploy(demo)
        sent = await _drifted_stream(
            demo, "recovered", parts.inputs[half:], parts.targets[half:], len(parts.inputs) - half
        )
        accuracy_after, outcome = sent.accuracy, "rolled back"
        demo.happened(
            "rollout", f"accuracy on the drifted stream {old.accuracy:.3f} before, {sent.accuracy:.3f} after", "plan"
        )
    else:
        demo.happened("gate", f"version {new.number} was refused: {new.gate.reason if new.gate else 'no gate'}")
    bad, refused = await _offer_bad(demo)
    rolled_back = await _roll_back(demo, first) if outcome == "rolled back" else None
    demo.change(
        loop=LoopSection(
            before,
            old.accuracy,
            accuracy_after,
            refused,
            rolled_back,
            notes.after,
            DETECTOR,
            (LabelRow("feedback", demo.settings.drifted, notes.labelled, 1.0),),
            monitors,
            kind,
        ),
        versions=(
            _version_row(first, "first training", "serving"),
            _version_row(new, "after drift", outcome),
            _version_row(bad, "deliberately bad", "refused" if refused else "not refused"),
        ),
    )


async def _monitors(demo: Demo) -> tuple[tuple[MonitorRow, ...], str]:
    """What the coordinator's drift monitors know before retraining."""
    known = (await demo.operator.nodes()).monitors.get(TASK)
    if known is None or known.harm_statistic is None or known.change_statistic is None:
        return (), ""
    found = known.sentence if known.calls_for_training else ""
    changed = f"{known.kind} changed" if known.kind and known.kind != "concept" else ""
    demo.happened("drift", known.sentence or f"no drift is proved; waits for {known.waits_for}")
    rows = (
        MonitorRow(
            "harm", known.harm_statistic, known.threshold, known.num_labels, found, known.waits_for, known.price
        ),
        MonitorRow("change", known.change_statistic, known.threshold, known.num_requests, changed),
    )
    return rows, known.kind


class _DriftNotes:
    """What became known of the drift: after how many drifted requests, and how many labels were taken."""

    def __init__(self) -> None:
        self.sent = 0
        self.after: int | None = None
        self.labelled = 0

    def event(self, _: str, frame: Frame) -> None:
        if frame.kind == "drift_detected" and self.after is None:
            self.after = self.sent


async def _drifted_stream(
    demo: Demo,
    phase: str,
    inputs: NDArray[np.float32],
    targets: NDArray[np.int64],
    number: int,
    notes: _DriftNotes | None = None,
) -> Sent:
    images, labels = take(inputs, targets, number)
    rng = Seeds(demo.settings.seed).at("drift", phase.split(",")[-1]).rng()

    def on_reply(_: int, device: str, reply: Reply) -> None:
        if notes is not None:
            notes.sent += 1

    sent = await stream(
        demo,
        phase,
        drifted(images, rng=rng),
        labels,
        plan=demo.plan,
        on_reply=on_reply,
        gap_s=demo.settings.drift_gap_s,
    )
    demo.stream_sent.append(sent)
    if notes is not None:
        when = f"noticed after {notes.after} requests" if notes.after is not None else "not noticed"
        demo.happened(
            "drift",
            f"accuracy falls from {demo.stream_sent[0].accuracy:.3f} to {sent.accuracy:.3f}; the drift is {when}",
        )
    return sent


async def _feed_back(demo: Demo, sent: Sent) -> int:
    """Users say what was right; labels go to the device that answered and stay there."""
    taken = 0
    for device in demo.fleet.devices:
        labels = {f"{sent.phase}-{i}": int(sent.targets[i]) for i, asked in enumerate(sent.devices) if asked == device}
        ack = await demo.operator.feedback(NodeId(device), Feedback(TASK, labels))
        taken += ack.taken
    demo.happened("labels", f"{taken} hard examples have labels from feedback; none left its device")
    return taken


async def _retrain(demo: Demo) -> ModelVersion:
    algorithm, settings = {"name": "fed_avg", "local": RETRAINING, "uplink": UPLINK}, demo.settings
    request, files = await asyncio.to_thread(
        task_request,
        demo.task,
        algorithm,
        num_rounds=settings.retraining_rounds,
        seed=settings.seed + 1,
        name="after-drift",
        start_version=demo.trained.number,
        hard_examples=HardExamples(feedback().spec.to_dict()),
    )
    status = await follow(demo, request, files)
    demo.change(rounds=(*demo.report.rounds, *round_rows("after drift", status)))
    version = next(v for v in (await demo.operator.versions()).versions if v.number == status.version)
    demo.happened("gate", f"version {version.number}: {version.gate.reason if version.gate else 'no gate'}")
    return version


def _replan(demo: Demo, graph: Graph) -> None:
    """The new version has the old one's shape, so its costs are known; its exits are not the old ones'."""
    table = demo.search.table
    profiles = {
        tier: msgspec.structs.replace(p, fingerprint=msgspec.structs.replace(p.fingerprint, graph=Digest(graph.digest)))
        for tier, p in table.profiles.items()
    }
    demo.search = make_search(
        graph, profiles, table.links, demo.search.policy, demo.version.evidence, codecs=CODECS, sizes=table.sizes
    )
    demo.variants = []  # those of the former version; this one is served as it is
    demo.plan = recommend(demo.search).plan


async def _offer_bad(demo: Demo) -> tuple[ModelVersion, bool]:
    """A version with noise on its weights is offered; the gate must refuse it, and a deployment of it too."""
    graph = spoiled(await demo.operator.graph(demo.trained.number), demo.settings.seed)
    ack = await demo.operator.register(graph, task=TASK, origin="deliberately bad", parent=demo.trained.number)
    number = ack.version
    bad = next(v for v in (await demo.operator.versions()).versions if v.number == number)
    plan = msgspec.structs.replace(demo.plan, graph=bad.graph)
    try:
        deployed = (await demo.operator.deploy(Deploy(number, (plan,), demo.deadline_s))).accepted
    except EdgewiseError:
        deployed = False
    refused = bad.gate is not None and not bad.gate.passed and not deployed
    demo.happened("gate", f"deliberately bad version {number}: {bad.gate.reason if bad.gate else 'no gate'}")
    return bad, refused


async def _roll_back(demo: Demo, former: ModelVersion) -> bool:
    ack = await demo.operator.rollback(TASK)
    parts = demo.task.parts.stream
    inputs, targets = take(parts.inputs, parts.targets, len(demo.fleet.devices))
    sent = await stream(demo, "rolled back", inputs, targets, plan=demo.plan)
    served = {int(r.parameters["model_version"]) for r in sent.replies if not r.error}
    restored = ack.accepted and served == {former.number}
    demo.happened("rollback", f"rolled back: devices answer with version {', '.join(map(str, sorted(served)))}", "plan")
    return restored


def _version_row(version: ModelVersion, what: str, outcome: str) -> VersionRow:
    whole = [e.accuracy_all for e in version.evidence if e.codec == "none" and e.threshold == 0.0]
    accuracy = whole[-1] if whole else None
    return VersionRow(version.number, what, str(version.graph), version.parent, accuracy, version.gate, outcome)
