"""An operator's job file as a request to a running fleet: who takes part, what they hold, and what is sent.

held = participants(rows, task.name)
print(audit_of(held))
request, files = make_request(job, task, held)
run = await operator.submit(request, files)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from edgewise.core.errors import InputError, TaskError
from edgewise.core.ids import RunId
from edgewise.core.layout import Layout
from edgewise.core.seeds import Seeds
from edgewise.core.spec import Spec
from edgewise.core.units import parse_duration
from edgewise.datasets.audit import SplitAudit, audit
from edgewise.fleet.messages import HardExamples, NodeInfo, NodeRow, SubmitRun, with_hard_examples
from edgewise.fleet.operator.operator import RunFiles
from edgewise.lifecycle.labels import label_source
from edgewise.models.graph.weights import without_weights
from edgewise.models.task import Task, user_code
from edgewise.models.task_code import code_digest
from edgewise.training.algorithm import Candidate
from edgewise.training.job import JobFile
from edgewise.training.protocols.opening import quorum_of
from edgewise.training.protocols.run_spec import RunSpec


def participants(rows: Sequence[NodeRow], task: str) -> tuple[NodeInfo, ...]:
    """Who can train a task: nodes that are alive and have it installed.

    Args:
        rows: The coordinator's view.
        task: The task's name.

    Returns:
        Their infos, in the order of their clients.

    Raises:
        InputError: If there is none; says what is installed instead.
    """
    found = [r.info for r in rows if r.state == "alive" and r.info.client and r.info.task == task]
    if not found:
        others = ", ".join(f"{r.info.task!r} on {r.info.node} ({r.state})" for r in rows if r.info.task) or "nothing"
        raise InputError(
            f"no live node of the fleet has task {task!r} installed; installed is {others}. "
            "Start devices with: edgewise agent --task FILE"
        )
    return tuple(sorted(found, key=lambda info: info.client))


def audit_of(held: Sequence[NodeInfo]) -> SplitAudit:
    """Looks at who holds what, from the counts that nodes tell; no example leaves them.

    Args:
        held: As from `participants`.

    Returns:
        The audit.
    """
    return audit({str(i.client): _targets(i) for i in held}, notes={str(i.client): i.data_notes for i in held})


def make_request(
    job: JobFile,
    task: Task,
    held: Sequence[NodeInfo],
    *,
    start_version: int = 0,
    name: str = "",
    labels: str = "",
    teacher_version: int = 0,
    needs_graph: bool = True,
) -> tuple[SubmitRun, RunFiles]:
    """Turns a job into what `Operator.submit` takes. Imports torch, for the template and the first model.

    Who holds no examples is left out. Without a quorum a round needs its whole cohort.

    Args:
        job: As read and checked.
        task: Of the job.
        held: Who takes part.
        start_version: Version to go on from; 0 starts anew.
        name: The run's name; "" lets the coordinator name it.
        labels: Words of the source of labels for the hard examples that join; "" trains without them.
        teacher_version: Version that labels, for the source `teacher`; 0 for the one in force.
        needs_graph: As in `run_files`; without a graph the result does not become a version.

    Returns:
        The request, and what travels beside it.

    Raises:
        TaskError: If the model cannot be exported and a graph is needed.
        InputError: If nobody holds examples, or more updates are asked for than there are clients.
    """
    training, algorithm = job.training, job.algorithm()
    source = label_source(labels) if labels else None
    candidates = [Candidate(info.client, info.num_examples) for info in held if info.num_examples]
    if not candidates:
        raise InputError(f"none of the {len(held)} nodes with task {task.name!r} holds examples. Look at the audit.")
    if training.quorum > len(candidates):
        raise InputError(
            f"training.quorum is {training.quorum}, only {len(candidates)} nodes hold data of task {task.name!r}. "
            "Lower it, or start more devices."
        )
    layout, files = run_files(task, seed=None if start_version else training.seed, needs_graph=needs_graph)
    request = SubmitRun(
        spec=run_spec(
            algorithm.spec.to_dict(),
            layout,
            protocol=training.protocol,
            seed=training.seed,
            name=name,
            hard_examples=HardExamples(source.spec.to_dict()) if source is not None else None,
        ),
        task=task.name,
        num_rounds=training.rounds,
        layout=msgspec.msgpack.encode(layout),
        quorum=quorum_of(algorithm, candidates, training.seed, training.quorum),
        round_deadline_s=parse_duration(training.round_deadline) if training.round_deadline else None,
        clients=tuple(candidate.client for candidate in candidates),
        start_version=start_version,
        teacher_version=teacher_version,
        task_code=code_digest(task),
        register=files.template is not None,
    )
    return request, files


def task_request(
    task: Task,
    algorithm: Any,
    *,
    num_rounds: int,
    seed: int = 0,
    protocol: Any = "hierarchical",
    name: str = "",
    hard_examples: HardExamples | None = None,
    **fields: Any,
) -> tuple[SubmitRun, RunFiles]:
    """A run without a job file. Imports torch.

    Args:
        task: What is learned.
        algorithm: Spec of the algorithm, as text or table.
        num_rounds: Rounds.
        seed: The job's seed; the first model is the seed tree's.
        protocol: Spec of the protocol, as text or table.
        name: The run's name; "" lets the coordinator name it.
        hard_examples: What joins the clients' data.
        **fields: Others of `SubmitRun`, e.g. `quorum`, `clients`, `start_version`, `register`.

    Returns:
        The request, and what travels beside it.
    """
    layout, files = run_files(task, seed=None if fields.get("start_version") else seed)
    spec = run_spec(algorithm, layout, protocol=protocol, seed=seed, name=name, hard_examples=hard_examples)
    known: dict[str, Any] = {"task": task.name, "num_rounds": num_rounds, "layout": msgspec.msgpack.encode(layout)}
    return SubmitRun(spec=spec, **{"task_code": code_digest(task), **known, **fields}), files


def run_files(task: Task, *, seed: int | None, needs_graph: bool = True) -> tuple[Layout, RunFiles]:
    """What a run of a task begins with. Imports torch.

    Args:
        task: What is learned.
        seed: The job's seed, for the first model; None where the run goes on from a version.
        needs_graph: Whether a model that cannot be exported is refused; otherwise the files say why there is no graph.

    Returns:
        The model's layout, and the files.

    Raises:
        TaskError: If the model cannot be exported and a graph is needed.
    """
    from edgewise.models.export import export_template
    from edgewise.models.flat import initial_vector, layout_of

    template, cause = None, ""
    with user_code(f"task {task.name!r} makes no model"):
        layout = layout_of(task.model())
        model = None if seed is None else initial_vector(task, Seeds(seed))
    try:
        template = without_weights(*export_template(task))
    except TaskError as error:
        if needs_graph:
            raise
        cause = error.message
    return layout, RunFiles(template, model, cause)


def run_spec(
    algorithm: Any,
    layout: Layout,
    *,
    protocol: Any = "hierarchical",
    seed: int = 0,
    name: str = "",
    hard_examples: HardExamples | None = None,
) -> RunSpec:
    """What every node of a run must know of it.

    Args:
        algorithm: Spec of the algorithm, as text or table.
        layout: The model's.
        protocol: Spec of the protocol, as text or table.
        seed: The job's seed.
        name: The run's name; "" lets the coordinator name it.
        hard_examples: What joins the clients' data.

    Returns:
        The spec.
    """
    parts = Spec.of(algorithm).to_dict(), Spec.of(protocol).to_dict()
    return with_hard_examples(RunSpec(RunId(name), *parts, seed, layout.digest, layout.size), hard_examples)


def _targets(info: NodeInfo) -> Any:
    """Targets with the counts a node tells; without labels only their number is known."""
    if not info.label_counts:
        return np.zeros(info.num_examples, np.float32)
    labels = np.array([int(label) for label in info.label_counts], np.int64)
    return np.repeat(labels, list(info.label_counts.values()))
