"""Model versions at the coordinator: made from vectors without torch, evaluated on held-out data, kept in the registry."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewise.core.errors import DataError, InputError, StoreDamaged
from edgewise.core.ids import Digest, RunId
from edgewise.core.layout import Layout, Vector
from edgewise.fleet.serving.holdout import Holdout, evidence_of, feeds_of, is_right, misfit, own_metrics
from edgewise.fleet.serving.plan_gate import codec_gate
from edgewise.fleet.store.events import Registry
from edgewise.fleet.store.retention import Hold
from edgewise.inference.evidence import run_graph
from edgewise.inference.gates.exit import confidence
from edgewise.lifecycle.change import DriftAnswer
from edgewise.lifecycle.version_gate import compare
from edgewise.models.graph.graph import Graph
from edgewise.models.graph.input_hints import NO_HINTS, InputHints, load_with
from edgewise.models.graph.weights import with_weights
from edgewise.models.model_choice import check_model_name
from edgewise.models.task import Task, described
from edgewise.models.version import ExitEvidence, GateResult, ModelVersion
from edgewise.planning.plan import Plan
from edgewise.transport.bulk.blobs import FolderBlobs

log = logging.getLogger("edgewise.fleet")
IMPORTED_DOMAIN = "cloud"
"""A model that was trained elsewhere counts as trained in the cloud, here as in `edgewise plan FILE`."""


def outputs_of(graph: bytes, inputs: Any) -> list[NDArray[np.float32]]:
    """Runs a graph on a batch.

    Args:
        graph: ONNX bytes.
        inputs: [n, …] of its only input, or a dict of them.

    Returns:
        Per exit, first exit first, [n, classes]; other outputs are left out.
    """
    known = Graph.load(graph)
    return run_graph(graph, feeds_of(known, inputs), known.exits)


class VersionStore:
    """The registry with its graphs.

    Args:
        registry: Durable list of versions.
        blobs: Where graphs and weights are.
        holdout: Held-out data, or by model with "" for the others; versions without have no evidence and no gate, and
            say so.
        judge: A task whose own metrics are taken of held-out data, too.
    """

    def __init__(
        self,
        registry: Registry,
        blobs: FolderBlobs,
        holdout: Holdout | Mapping[str, Holdout] | None,
        judge: Task | None = None,
    ) -> None:
        self.registry = registry
        self.blobs = blobs
        self._holdouts = {"": holdout} if isinstance(holdout, Holdout) else dict(holdout or {})
        self._judge = judge
        self._answers: dict[int, dict[int, tuple[DriftAnswer, ...]]] = {}
        self._known: set[Digest] | None = None

    @property
    def holdout(self) -> Holdout | None:
        """Held-out data of models that have none of their own."""
        return self.holdout_of("")

    def holdout_of(self, model: str) -> Holdout | None:
        """Held-out data of a model; None without any."""
        return self._holdouts.get(model, self._holdouts.get(""))

    def _holdout_for(self, model: str, graph: bytes) -> Holdout | None:
        return self._found_holdout(model, graph)[0]

    def _found_holdout(self, model: str, graph: bytes) -> tuple[Holdout | None, str]:
        """Held-out data to evaluate a graph on; None without, or where those of all models are not of its kind, and why."""
        holdout = self.holdout_of(model)
        if holdout is None:
            return None, "there is no held-out data for it"
        text = misfit(Graph.load(graph), holdout.calibration_x, holdout.calibration_y, model)
        if not text:
            return holdout, ""
        if model in self._holdouts:
            raise DataError(f"{text} Start the coordinator with others, --holdout {model}=FILE.")
        log.warning("%s It has no evidence and no gate; give it its own with --holdout %s=FILE", text, model)
        return None, text.removesuffix(".")

    def get(self, number: int) -> ModelVersion:
        """A version by number.

        Raises:
            InputError: If there is none.
            StoreDamaged: If its row in the registry is not as it was written.
        """
        known = {v.number: v for v in self.registry.versions()}
        if number in self.registry.damaged:
            return self.registry.get(number)
        if number not in known:
            raise InputError(f"there is no model version {number}. Known: {sorted(known) or 'none; train one first'}.")
        return known[number]

    def kept(self, number: int) -> ModelVersion:
        """A version by number whose graph and weights are about to be used; for a while nobody lets go of them.

        Raises:
            InputError: If there is none, or its blobs were pruned.
        """
        version = self.get(number)
        here = [self.blobs.claim(digest) for digest in _digests(version)]
        if not all(here) and number in self.registry.pruned():
            raise InputError(
                f"the graph of version {number} of {version.task!r} was pruned: this coordinator keeps what serves, what served "
                "before it, the newest version, and older ones while they fit into --keep-bytes. Train it anew, or register the "
                "file that `edgewise export` once wrote."
            )
        return version

    def digests(self) -> set[Digest]:
        """Graphs and weights of all versions; any thread."""
        if self._known is None:
            self._known = {digest for version in self.registry.versions() for digest in _digests(version)}
        return self._known

    def held(self, serving: Mapping[str, Iterable[int]]) -> list[Hold]:
        """What versions hold: those that serve or may have to, and the newest of each model, are needed, others wanted.

        Args:
            serving: Numbers in force, rolling out and to go back to, by model.

        Returns:
            A hold for each.

        Raises:
            StoreDamaged: If the row of one cannot be read: what it needs is not known.
        """
        for sentence in self.registry.damaged.values():
            raise StoreDamaged(sentence)
        versions = self.registry.versions()
        newest = {version.task: version.number for version in versions}
        current = {task: self.registry.current(task) for task in newest}
        holds = []
        for version in versions:
            in_force = current[version.task]
            needed = {newest[version.task], *serving.get(version.task, ())}
            needed |= set() if in_force is None else {in_force.number}
            digests, let_go = frozenset(_digests(version)), partial(self.registry.prune, version.number)
            what = f"version {version.number} of {version.task}"
            holds.append(Hold(what, digests, version.number in needed, let_go))
        return holds

    def is_graph(self, digest: Digest) -> bool:
        """Whether a blob is the graph of a version."""
        return any(version.graph == digest for version in self.registry.versions())

    def graph(self, number: int) -> bytes:
        """A version's ONNX bytes, checked.

        Raises:
            StoreDamaged: If they are not what was registered; the file is named.
        """
        return self.blobs.read(self.kept(number).graph)

    def graph_size(self, number: int) -> int:
        """Bytes of its graph."""
        return self.blobs.size(self.kept(number).graph)

    def codec_gate(self, number: int, plan: Plan, hints: InputHints = NO_HINTS) -> GateResult | None:
        """A plan with its codecs against itself without, on the gate's examples.

        Args:
            number: Version.
            plan: With coded cuts.
            hints: What it was planned with.

        Returns:
            The comparison; None for lossless plans, and without held-out data.
        """
        data = self.graph(number)
        holdout = self._holdout_for(self.get(number).task, data)
        if holdout is None or not _is_plain(holdout):
            return None
        return codec_gate(load_with(data, hints), plan, holdout.gate_x, holdout.gate_y)

    def promote(self, number: int, *, note: str = "") -> None:
        """Makes a version the current one; a note says why it is to serve whatever its gate said."""
        self.registry.promote(number, note=note)

    def comparison(self, number: int, serves: int) -> tuple[GateResult | None, str]:
        """A version against the one that serves, on the gate's examples; what is found is kept with the version.

        Args:
            number: Which.
            serves: The version of its model in force; 0 for none, then what its registration found is told.

        Returns:
            The comparison and "", or None and why there is none.

        Raises:
            DataError: If the model's own held-out data do not fit it.
        """
        version = self.get(number)
        if version.gate is not None and version.gate.reference == serves:
            return version.gate, ""
        graph = self.graph(number)
        holdout, missing = self._found_holdout(version.task, graph)
        if serves in (0, number):
            return version.gate, "" if version.gate is not None else missing
        if self.get(serves).graph == version.graph:
            return _same_model(serves), ""
        if holdout is None:
            return None, missing
        gate, missing = self._gate(graph, serves, version.task, holdout)
        if gate is not None and all(p.number != number for p in self.registry.history(version.task)):
            self.registry.set_gate(number, gate)  # of one that served before it stays what it was when it came to serve
        return gate, missing

    def calibration_answers(self, number: int) -> dict[int, tuple[DriftAnswer, ...]]:
        """Confidences and classes on the calibration data by exit, without labels; {} without, or where they are named."""
        graph = self.graph(number)
        holdout = self._holdout_for(self.get(number).task, graph)
        if holdout is None or not _is_plain(holdout):
            return {}
        if number not in self._answers:
            outputs = outputs_of(graph, holdout.calibration_x)
            self._answers[number] = {
                index: tuple(map(DriftAnswer, confidence(logits).tolist(), logits.argmax(axis=1).tolist()))
                for index, logits in enumerate(outputs)
                if logits.ndim == 2
            }
        return self._answers[number]

    def calibration_scores(
        self, template: Digest, layout: Layout, vector: Vector, model: str = ""
    ) -> tuple[float, dict[str, float]]:
        """How good a vector is on a model's calibration data.

        Args:
            template: Digest of the template graph.
            layout: Its slots.
            vector: float32[d].
            model: Whose.

        Returns:
            The share of examples that it answers rightly, NaN where nothing can be judged; and the task's metrics.
        """
        holdout = self.holdout_of(model)
        if holdout is None:
            return float("nan"), {}
        graph = Graph.load(with_weights(self.blobs.read(template), layout, vector))
        inputs, targets = holdout.calibration_x, holdout.calibration_y
        fits = not misfit(graph, inputs, targets, model)
        accuracy = float(is_right(graph, inputs, targets).mean()) if fits else float("nan")
        try:
            has_own = self._judge is not None and self._judge.name == model
            return accuracy, own_metrics(self._judge, graph, inputs, targets) if has_own else {}
        except Exception as error:  # a user's code; the run goes on without
            log.warning("the metrics of task %r cannot be taken of held-out data: %s", model, described(error))
            return accuracy, {}

    def register_vector(
        self,
        template: Digest,
        layout: Layout,
        vector: Vector,
        *,
        task: str,
        run: RunId,
        parent: int,
        data: dict[str, int],
        own: tuple[str, ...] = (),
    ) -> ModelVersion:
        """Makes a version from a trained vector: graph, evidence, gate, entry.

        Args:
            template: Digest of the template graph.
            layout: Its slots.
            vector: float32[d].
            task: Task name.
            run: Which run made it.
            parent: Version it started from.
            data: Examples by client.
            own: Tensors that each client keeps to itself.

        Returns:
            The version; its gate may have refused it.
        """
        graph = with_weights(self.blobs.read(template), layout, vector)
        weights = self.blobs.put(np.ascontiguousarray(vector).tobytes())
        return self._register(graph, ModelVersion(0, Digest(""), weights, task, run, parent, data=data, own=own))

    def register_graph(self, graph: bytes, *, task: str, origin: str, parent: int) -> ModelVersion:
        """Registers a graph from outside a run, under the same gate.

        Raises:
            GraphError: If it cannot be served.
            InputError: If that can be no model's name.
        """
        check_model_name(task)
        Graph.load(graph)
        domain = self.get(parent).training_domain if parent else IMPORTED_DOMAIN
        version = ModelVersion(0, Digest(""), Digest(""), task, parent=parent, training_domain=domain, origin=origin)
        return self._register(graph, version)

    def judge(self, graph: bytes, model: str) -> GateResult | None:
        """What the gate says of a graph that is no version; None without held-out data, or without one to compare it with.

        Raises:
            GraphError: If it cannot be served.
        """
        Graph.load(graph)
        holdout = self._holdout_for(model, graph)
        return None if holdout is None else self._gate(graph, self._reference(model), model, holdout)[0]

    def _register(self, graph: bytes, version: ModelVersion) -> ModelVersion:
        digest = self.blobs.put(graph)
        evidence: tuple[ExitEvidence, ...] = ()
        gate: GateResult | None = None
        holdout = self._holdout_for(version.task, graph)
        if holdout is not None:
            evidence = evidence_of(Graph.load(graph), holdout.calibration_x, holdout.calibration_y)
            gate, _ = self._gate(graph, self._reference(version.task), version.task, holdout)
        version = msgspec.structs.replace(version, graph=digest, evidence=evidence, gate=gate)
        added = self.registry.add(version)
        self._known = None
        return added

    def _reference(self, model: str) -> int:
        """What a candidate is compared with: the version in force, else the newest that might serve; 0 for none."""
        if (current := self.registry.current(model)) is not None:
            return current.number
        versions = [v for v in self.registry.versions(model) if self.blobs.has(v.graph)]
        might = [v.number for v in versions if v.gate is None or v.gate.passed]
        return max(might, default=0)

    def _gate(self, graph: bytes, serves: int, model: str, holdout: Holdout) -> tuple[GateResult | None, str]:
        """A candidate against another version; None and why, where there is no other or it cannot be asked the same."""
        if not serves:
            return None, "it is the first"
        reference = self.graph(serves)
        known, other = Graph.load(reference), Graph.load(graph)
        if text := misfit(known, holdout.gate_x, holdout.gate_y, model):
            return None, f"version {serves} cannot be asked about the held-out data: {text.removesuffix('.')}"
        right = [is_right(each, holdout.gate_x, holdout.gate_y) for each in (known, other)]
        result = compare(right[0], right[1])
        return msgspec.structs.replace(result, reference=serves), ""


def _digests(version: ModelVersion) -> tuple[Digest, ...]:
    return tuple(digest for digest in (version.graph, version.weights) if digest)


def _is_plain(holdout: Holdout) -> bool:
    """Whether inputs and targets are an array each."""
    return not any(isinstance(tree, Mapping) for tree in (holdout.calibration_x, holdout.calibration_y))


def _same_model(number: int) -> GateResult:
    return GateResult(True, 0, 0, 0, 0.0, 0.0, f"passed: it is the same model as version {number}.", number)
